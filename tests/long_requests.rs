//! Clients that stay: an answer of twenty seconds and a websocket, begun before a switch,
//! are served to their end by the release they were begun with.

#[path = "common/mod.rs"]
mod common;
#[path = "common/server.rs"]
mod server;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/web.rs"]
mod web;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Farm, Running, wait_for};
use signal::word;
use web::{Load, get};

const PORT: u16 = 18_085;
const SOON: Duration = Duration::from_secs(60);

fn pack(farm: &Farm, version: &str) -> PathBuf {
    // What a client has not ended by then is cut.
    let stop = "stop = { within = \"2s\" }\n";
    server::pack(farm, version, &format!("{stop}[front]\nlisten = [\"127.0.0.1:{PORT}\"]\n"))
}

/// A websocket (RFC 6455) that is open.
struct WebSocket(TcpStream);

impl WebSocket {
    #[track_caller]
    fn open() -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT)).expect("nginx listens");
        stream.set_read_timeout(Some(SOON)).expect("it is not zero");
        write!(
            stream,
            "GET /websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\n\r\n"
        )
        .expect("nginx reads");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("it is answered");
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // The example of RFC 6455, 1.3.
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        Self(stream)
    }

    /// Says a word, and answers what comes back.
    #[track_caller]
    fn echo(&mut self, text: &str) -> String {
        let length = u8::try_from(text.len()).expect("it is short");
        // Masked with zeros: it stays as it is.
        let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat();
        self.0.write_all(&frame).expect("it is open");
        let mut head = [0; 2];
        self.0.read_exact(&mut head).expect("it is open");
        let mut answer = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut answer).expect("it is open");
        String::from_utf8(answer).expect("it is text")
    }

    #[track_caller]
    fn close(mut self) {
        self.0.write_all(&[0x88, 0x80, 0, 0, 0, 0]).expect("it is open");
        let mut answer = Vec::new();
        self.0.read_to_end(&mut answer).expect("the server closes as well");
        assert_eq!(answer, [0x88, 0]);
    }
}

/// Begins an answer of twenty seconds: answers when its first bytes are there. Joined, it
/// is what came, and how long it took.
#[track_caller]
fn long() -> JoinHandle<(String, Duration)> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", PORT)).expect("nginx listens");
    stream.set_read_timeout(Some(SOON)).expect("it is not zero");
    write!(stream, "GET /long HTTP/1.0\r\n\r\n").expect("nginx reads");
    let mut first = [0];
    stream.read_exact(&mut first).expect("it is answered");
    std::thread::spawn(move || {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("it comes to its end");
        (rest, begun.elapsed())
    })
}

/// So many switches, with both of them there.
fn outlive(farm: &Farm, switches: usize) {
    farm.run(&["install", word(&pack(farm, "1.0"))]).ok();
    farm.run(&["start", "shop"]).ok();
    let second = pack(farm, "1.1");
    let load = Load::start(&format!("http://127.0.0.1:{PORT}/"));
    let (upgrade, again) = (["upgrade", "shop", word(&second)], ["upgrade", "shop", "1.1"]);
    for (verb, before, after) in [
        (&upgrade[..], "1.0", "1.1"),
        (&["rollback", "shop"], "1.1", "1.0"),
        (&again, "1.0", "1.1"),
    ]
    .into_iter()
    .take(switches)
    {
        let mut socket = WebSocket::open();
        assert_eq!(socket.echo("before"), format!("{before} before"));
        let answer = long();
        let mut working = Running(
            farm.command(&[verb, &["--watch", "1s"]].concat())
                .spawn()
                .expect("farmctl can be started"),
        );
        wait_for("the switch", SOON, || get(PORT, "/").body == after);
        assert_eq!(socket.echo("after"), format!("{before} after"));
        let (body, took) = answer.join().expect("it has come");
        assert!(body.ends_with(&format!("{}{before}", ".".repeat(20))), "{body}");
        assert!(took >= Duration::from_secs(20), "{took:?}");
        // Its client is there still: the session is, too.
        assert_eq!(working.0.try_wait().expect("it is our child"), None);
        assert_eq!(socket.echo("at last"), format!("{before} at last"));
        socket.close();
        assert!(working.0.wait().expect("it is our child").success(), "{verb:?}");
        farm.assert_clean();
    }
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
}

#[test]
fn a_long_answer_and_a_websocket_outlive_three_switches() {
    outlive(&Farm::new(), 3);
}

#[test]
fn a_long_answer_and_a_websocket_outlive_a_switch_on_btrfs() {
    let asked = std::env::var_os("FARMCTL_TEST_SWITCHES").is_some();
    outlive(&Farm::on("mkfs.btrfs"), if asked { 3 } else { 1 });
}

#[test]
fn when_the_time_to_drain_is_over_the_old_session_ends_whoever_is_there() {
    let farm = Farm::new();
    farm.run(&["install", word(&pack(&farm, "1.0"))]).ok();
    farm.run(&["start", "shop"]).ok();
    farm.run(&["install", word(&pack(&farm, "1.1"))]).ok();
    let load = Load::start(&format!("http://127.0.0.1:{PORT}/"));
    let mut socket = WebSocket::open();
    assert_eq!(socket.echo("before"), "1.0 before");
    let begun = Instant::now();
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s", "--drain", "1s"]).ok();
    // It would be waited for a minute.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_eq!(socket.0.read(&mut [0]).expect("nginx closes it"), 0);
    assert_eq!(get(PORT, "/").body, "1.1");
    let status = farm.run(&["status", "shop"]).ok().stdout;
    assert!(!status.contains("standby"), "{status}");
    farm.assert_clean();
}
