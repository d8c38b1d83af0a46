-- wrk's result in a line that a test can read.
function done(summary)
    local e = summary.errors
    io.write(string.format("requests %d errors %d\n", summary.requests,
        e.connect + e.read + e.write + e.status + e.timeout))
end
