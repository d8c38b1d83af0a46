//! Asking a server over its socket, the way nginx will.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{User, setfsgid, setfsuid};

use crate::error::refuse;

/// Who nginx's workers are on Debian.
pub const WEB_USER: &str = "www-data";
/// How long one question may take: a server that needs longer is not ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest head of an answer that is read, in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// Most header fields of an answer.
const FIELDS: usize = 100;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// Any status from 200 to 399: a redirect to a login page is an answer of a server
    /// that works.
    #[must_use]
    pub fn is_good(&self) -> bool {
        (200..400).contains(&self.status)
    }
}

/// Asks for `path` over the socket, with the rights of nginx's workers: a socket they
/// may not connect to is not ready, whatever root may do.
///
/// # Errors
/// When there is no connection, no answer in time, or none in HTTP.
pub fn ready(socket: &Path, path: &str) -> Result<Answer> {
    let (sender, receiver) = mpsc::channel();
    let question = Question { socket: socket.to_owned(), path: path.to_owned() };
    // A thread of its own, for two reasons: its rights are dropped for good, and
    // connect(2) on a socket whose queue is full waits without end.
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // Nobody listens any more once the time is over.
            drop(sender.send(question.ask()));
        })
        .context("starting a thread")?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {} s", PATIENCE.as_secs()),
    }
}

struct Question {
    socket: PathBuf,
    path: String,
}

impl Question {
    fn ask(&self) -> Result<Answer> {
        let began = Instant::now();
        become_web_user()?;
        let shown = self.socket.display();
        let mut stream = match UnixStream::connect(&self.socket) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return refuse(
                    format_args!("{WEB_USER} may not connect to {shown}"),
                    "let the server make its socket writable for its group (0660) or all (0666)",
                );
            }
            Err(error) => return Err(error).with_context(|| format!("connecting to {shown}")),
        };
        stream.set_read_timeout(Some(PATIENCE)).context("setting a timeout")?;
        stream.set_write_timeout(Some(PATIENCE)).context("setting a timeout")?;
        stream.write_all(request(&self.path).as_bytes()).context("asking")?;
        let mut head = Vec::new();
        let mut chunk = [0u8; 4096];
        loop {
            let count = match stream.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading the answer"),
            };
            if count == 0 {
                bail!("the server closed the connection without an answer");
            }
            head.extend_from_slice(&chunk[..count]);
            if let Some(status) = parse_status(&head)? {
                return Ok(Answer { status, took: began.elapsed() });
            }
            if head.len() > HEAD_LIMIT {
                bail!("the head of the answer is larger than {} KiB", HEAD_LIMIT >> 10);
            }
        }
    }
}

/// Gives this thread, and no other, the file system rights of nginx's workers
/// (setfsuid(2)); root's capabilities for files go with them. Groups nginx's user was
/// added to are not looked at: the socket directory is its own group's.
fn become_web_user() -> Result<()> {
    let user = User::from_name(WEB_USER)
        .with_context(|| format!("looking up user {WEB_USER}"))?
        .with_context(|| format!("the host has no user {WEB_USER}"))?;
    setfsgid(user.gid);
    setfsuid(user.uid);
    // setfsuid(2) reports no failure; asked a second time it tells who we are.
    if setfsgid(user.gid) != user.gid || setfsuid(user.uid) != user.uid {
        bail!("cannot take on the rights of {WEB_USER}");
    }
    Ok(())
}

fn request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: farmctl\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    )
}

/// The status of an answer, once its whole head is there. An informational answer
/// (1xx) precedes the real one.
fn parse_status(bytes: &[u8]) -> Result<Option<u16>> {
    let mut rest = bytes;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(rest).context("reading the answer")? {
            httparse::Status::Partial => return Ok(None),
            httparse::Status::Complete(length) => match response.code {
                Some(code) if (100..200).contains(&code) => rest = &rest[length..],
                code => return Ok(code),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_answer_counts_when_its_head_is_whole() {
        assert_eq!(parse_status(b"HTTP/1.1 200 OK\r\nA: b\r\n").expect("no fault yet"), None);
        let informed = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 302 Found\r\n\r\n";
        assert_eq!(parse_status(informed).expect("it is HTTP"), Some(302));
        parse_status(b"SSH-2.0-OpenSSH_9.2\r\n").expect_err("it is not HTTP");
    }

    fn serve(listener: UnixListener, answer: &'static [u8]) {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody connects");
            let mut request = [0u8; 1024];
            let count = stream.read(&mut request).expect("it asks");
            assert!(request[..count].starts_with(b"GET /healthz HTTP/1.1\r\nHost: "));
            stream.write_all(answer).expect("it listens");
        });
    }

    #[test]
    fn a_server_is_asked_and_a_socket_closed_to_nginx_is_not_ready() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        let socket = place.path().join("web.sock");
        let listener = UnixListener::bind(&socket).expect("the path is short");
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))
            .expect("it is ours");
        let error = ready(&socket, "/healthz").expect_err("only root may connect");
        assert_eq!(error.to_string(), format!("www-data may not connect to {}", socket.display()));
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))
            .expect("it is ours");
        serve(listener, b"HTTP/1.1 204 No Content\r\n\r\n");
        let answer = ready(&socket, "/healthz").expect("it answers");
        assert_eq!(answer.status, 204);
        assert!(answer.is_good());
    }
}
