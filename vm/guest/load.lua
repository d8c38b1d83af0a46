-- wrk's result in a line that a test can read: requests, those that failed, and microseconds
-- until half and until 99 of a hundred were answered. With an argument after `--`, each
-- connection waits so many milliseconds before each request.
local pause = 0

function init(arguments)
    pause = tonumber(arguments[1]) or 0
end

function delay()
    return pause
end

function done(summary, latency)
    local e = summary.errors
    io.write(string.format("requests %d errors %d half %d most %d\n", summary.requests,
        e.connect + e.read + e.write + e.status + e.timeout,
        latency:percentile(50), latency:percentile(99)))
end
