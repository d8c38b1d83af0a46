//! An application as its visitors meet it: one request, and many.

#![expect(clippy::disallowed_types, reason = "tests start the program as a user does")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{tool, wait_for};

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Asks the server on a port of this machine for a path.
#[track_caller]
pub fn get(port: u16, path: &str) -> Answer {
    get_with(port, path, "")
}

/// Like [`get`], with more header lines, each ended by CR LF.
#[track_caller]
pub fn get_with(port: u16, path: &str, headers: &str) -> Answer {
    ask("GET", port, path, headers)
}

/// Like [`get_with`], by another method.
#[track_caller]
pub fn ask(method: &str, port: u16, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("it is not zero");
    // HTTP/1.0: the answer ends with the connection, without chunks.
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{headers}\r\n")
        .expect("the server reads");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the server answers to the end");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("no HTTP answer: {head:?}")),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

/// Visitors: wrk(1).
#[derive(Debug)]
pub struct Load {
    wrk: Child,
    since: Instant,
}

/// What the visitors met.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub requests: u64,
    /// Of them in a second.
    pub rate: u64,
    /// How long they came, as wrk prints it.
    pub within: String,
    /// Connections that were refused or cut, and answers that came after a minute and a half.
    pub socket_errors: u64,
    /// Answers other than 2xx and 3xx.
    pub bad_answers: u64,
    /// Time within which half of the requests were answered.
    pub p50: Duration,
    /// And 99 of 100.
    pub p99: Duration,
}

impl Load {
    /// Thirty-two, who come about fifteen hundred times a second: no gap escapes them, and they
    /// leave processors to what is tested.
    pub fn start(url: &str) -> Self {
        Self::coming(32, url, 20)
    }

    /// Thirty-two at once, as fast as they are answered.
    pub fn full(url: &str) -> Self {
        Self::of(&["-c32", url])
    }

    /// A hundred and twenty-eight, each of which pauses after an answer for so many
    /// milliseconds: together they come at about a constant rate.
    pub fn pausing(url: &str, milliseconds: u64) -> Self {
        Self::coming(128, url, milliseconds)
    }

    fn coming(visitors: u32, url: &str, milliseconds: u64) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/vm/guest/load.lua");
        let (visitors, pause) = (format!("-c{visitors}"), milliseconds.to_string());
        Self::of(&[&visitors, "-s", script, url, "--", &pause])
    }

    fn of(arguments: &[&str]) -> Self {
        let mut command = Command::new("wrk");
        // wrk 4.1 says "timeout" of an answer that came, but later than this (`response_complete`
        // in its wrk.c). Slow is what p99 is for; what never comes is nginx's 504, after a minute.
        let late = "90s";
        // Ended by [`Self::end`] long before two hours.
        command.args(["-t2", "--timeout", late, "--latency", "-d7200s"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self { wrk: command.spawn().expect("wrk is installed"), since: Instant::now() }
    }

    /// How long [`Self::pausing`] visitors pause for half as many requests as are possible.
    pub fn pause_for_half(url: &str) -> u64 {
        let full = Self::full(url).end(Duration::from_secs(3));
        2 * 128 * 1000 / full.rate.max(1)
    }

    /// Ends it when it has gone on for this long at least.
    #[track_caller]
    pub fn end(mut self, least: Duration) -> Report {
        assert_eq!(self.wrk.try_wait().expect("it is our child"), None, "it went on until now");
        wait_for("the time to be over", least, || self.since.elapsed() >= least);
        // SIGINT has wrk print what it has measured.
        tool("kill", &["-s", "INT", &self.wrk.id().to_string()]);
        let mut text = String::new();
        let mut output = self.wrk.stdout.take().expect("it is a pipe");
        output.read_to_string(&mut text).expect("wrk prints text");
        assert!(self.wrk.wait().expect("it is our child").success(), "wrk failed:\n{text}");
        parse(&text).unwrap_or_else(|| panic!("wrk printed:\n{text}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.wrk.kill());
        drop(self.wrk.wait());
    }
}

/// The lines of wrk 4.1 that count. Lines about failures are there only when there are any.
fn parse(text: &str) -> Option<Report> {
    let lines = || text.lines().map(str::trim);
    let after = |start: &str| lines().find_map(|line| line.strip_prefix(start)).map(str::trim);
    let (requests, rest) = lines().find_map(|line| line.split_once(" requests in "))?;
    let socket_errors = match after("Socket errors: ") {
        None => 0,
        Some(kinds) => kinds.split([',', ' ']).filter_map(|word| word.parse::<u64>().ok()).sum(),
    };
    let bad_answers = match after("Non-2xx or 3xx responses: ") {
        None => 0,
        Some(count) => count.parse().ok()?,
    };
    Some(Report {
        requests: requests.parse().ok()?,
        rate: after("Requests/sec:")?.split('.').next()?.parse().ok()?,
        within: rest.split(',').next()?.to_owned(),
        socket_errors,
        bad_answers,
        p50: time(after("50%")?)?,
        p99: time(after("99%")?)?,
    })
}

/// A time as wrk prints it: `1.05ms`.
fn time(text: &str) -> Option<Duration> {
    let at = text.find(|char: char| char.is_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * unit))
}

#[test]
fn failures_that_wrk_reports_are_counted() {
    let text = "Running 2s test @ http://127.0.0.1:1/\n  2 threads and 32 connections\n  \
                Latency Distribution\n     50%    1.05ms\n     99%    2.31ms\n  \
                5050 requests in 2.01s, 1.20MB read\n  \
                Socket errors: connect 32, read 1, write 0, timeout 2\n  \
                Non-2xx or 3xx responses: 7\nRequests/sec:   2512.43\n";
    let report = Report {
        requests: 5050,
        rate: 2512,
        within: "2.01s".to_owned(),
        socket_errors: 35,
        bad_answers: 7,
        p50: Duration::from_micros(1050),
        p99: Duration::from_micros(2310),
    };
    assert_eq!(parse(text), Some(report));
    assert_eq!(time("1.20s"), Some(Duration::from_millis(1200)));
    assert_eq!(time("970.00us"), Some(Duration::from_micros(970)));
}
