//! Asking a server over its socket, the way nginx will.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{User, setfsgid, setfsuid};

use crate::error::refuse;
use crate::profile::Front;
use crate::run::check_interrupted;

/// Who nginx's workers are on Debian.
pub const WEB_USER: &str = "www-data";
/// How long one question may take: a server that needs longer is not ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a user who interrupts may be kept waiting.
const HEEDING: Duration = Duration::from_millis(100);
/// How much of an answer is read, in bytes.
const LIMIT: usize = 64 << 10;
/// Most header fields of an answer.
const FIELDS: usize = 100;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Whether what was wanted of its body is there.
    pub has_body: bool,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// Why this answer to `path` is none of a server that works, if it is not. Any status
    /// from 200 to 399 is: a redirect to a login page, for one.
    #[must_use]
    pub fn trouble(&self, path: &str, body: Option<&str>) -> Option<String> {
        let Self { status, has_body, .. } = self;
        if !(200..400).contains(status) {
            return Some(format!("it answers {status} to {path}"));
        }
        (!has_body).then(|| format!("its answer to {path} is without {:?}", body.unwrap_or("")))
    }

    /// Why this answer to `path`, of which all was wanted, is the server's own fault, if it is.
    #[must_use]
    pub fn fault(&self, path: &str) -> Option<String> {
        let Self { status, has_body, .. } = self;
        if *status >= 500 {
            return Some(format!("it answers {status} to {path}"));
        }
        (!has_body).then(|| format!("it breaks off its answer to {path}"))
    }
}

/// Asks for `path` over the socket as `visitor`, with the rights of nginx's workers: a socket
/// they may not connect to is not ready, whatever root may do.
///
/// # Errors
/// When there is no connection, no answer in time, or none in HTTP.
pub fn ask(socket: &Path, visitor: &Visitor, path: &str, body: Option<&str>) -> Result<Answer> {
    let wanted = body.map_or(Wanted::Head, |body| Wanted::Text(body.to_owned()));
    let question = Question::of(socket, visitor, path, wanted, PATIENCE);
    as_web_user(PATIENCE, move || question.ask())
}

/// Asks for `path` as [`ask`] does, waits for all of the answer, and for so long.
///
/// # Errors
/// As [`ask`].
pub fn fetch(socket: &Path, visitor: &Visitor, path: &str, patience: Duration) -> Result<Answer> {
    let question = Question::of(socket, visitor, path, Wanted::Whole, patience);
    as_web_user(patience, move || question.ask())
}

/// Whom a server takes farmctl for: what a vhost would tell it of a visitor on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// Header fields, each ended by CR LF.
    fields: String,
}

impl Visitor {
    /// One who comes by the front, if there is one: a server may answer to its own names only,
    /// and send those away who come without TLS.
    #[must_use]
    pub fn of(front: Option<&Front>) -> Self {
        let Some(front) = front else { return Self { fields: "Host: localhost\r\n".to_owned() } };
        let host = front.host().unwrap_or("localhost");
        let scheme = if front.tls.is_some() { "https" } else { "http" };
        let fields = format!(
            "Host: {host}\r\nX-Real-IP: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\n\
             X-Forwarded-Proto: {scheme}\r\nX-Forwarded-Host: {host}\r\n"
        );
        Self { fields }
    }
}

/// Connects to the socket, with the rights of nginx's workers.
///
/// # Errors
/// When that cannot be done in time.
pub fn connect(socket: &Path) -> Result<()> {
    let socket = socket.to_owned();
    as_web_user(PATIENCE, move || connected(&socket).map(drop))
}

/// Does something with the rights of nginx's workers, and not for longer than this.
fn as_web_user<T: Send + 'static>(
    patience: Duration,
    what: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    // A thread of its own, for two reasons: its rights are dropped for good, and
    // connect(2) on a socket whose queue is full waits without end.
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // Nobody listens any more once the time is over.
            drop(sender.send(become_web_user().and_then(|()| what())));
        })
        .context("starting a thread")?;
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left.min(HEEDING)) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Timeout) if !left.is_zero() => check_interrupted()?,
            Err(_) => bail!("no answer within {} s", patience.as_secs()),
        }
    }
}

/// A connection to a server.
fn connected(socket: &Path) -> Result<UnixStream> {
    let shown = socket.display();
    match UnixStream::connect(socket) {
        Ok(stream) => Ok(stream),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => refuse(
            format_args!("{WEB_USER} may not connect to {shown}"),
            "let the server make its socket writable for its group (0660) or all (0666)",
        ),
        Err(error) => Err(error).with_context(|| format!("connecting to {shown}")),
    }
}

struct Question {
    socket: PathBuf,
    visitor: Visitor,
    path: String,
    wanted: Wanted,
    patience: Duration,
}

/// What is wanted of an answer.
enum Wanted {
    /// That there is one.
    Head,
    /// This text in its body.
    Text(String),
    /// All of its body, as far as it is read.
    Whole,
}

impl Question {
    fn of(
        socket: &Path,
        visitor: &Visitor,
        path: &str,
        wanted: Wanted,
        patience: Duration,
    ) -> Self {
        let (socket, visitor, path) = (socket.to_owned(), visitor.clone(), path.to_owned());
        Self { socket, visitor, path, wanted, patience }
    }

    fn ask(&self) -> Result<Answer> {
        let began = Instant::now();
        let mut stream = connected(&self.socket)?;
        stream.set_read_timeout(Some(self.patience)).context("setting a timeout")?;
        stream.set_write_timeout(Some(self.patience)).context("setting a timeout")?;
        stream.write_all(self.request().as_bytes()).context("asking")?;
        let mut answer = Vec::new();
        let mut chunk = [0u8; 4096];
        loop {
            let count = match stream.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading the answer"),
            };
            answer.extend_from_slice(&chunk[..count]);
            let is_over = count == 0 || answer.len() > LIMIT;
            if let Some((status, has_body)) = self.judge(&answer, is_over)? {
                return Ok(Answer { status, has_body, took: began.elapsed() });
            }
        }
    }

    /// The status of as much of an answer as there is, and whether it has what is wanted,
    /// as soon as both are known.
    fn judge(&self, answer: &[u8], is_over: bool) -> Result<Option<(u16, bool)>> {
        match parse_head(answer)? {
            None if !is_over => Ok(None),
            None if answer.len() > LIMIT => {
                bail!("the head of the answer is larger than {} KiB", LIMIT >> 10)
            }
            None => bail!("the server closed the connection without an answer"),
            Some(Head { status, end, content }) => {
                let body = &answer[end..];
                let has_body = match &self.wanted {
                    Wanted::Head => true,
                    Wanted::Text(text) => {
                        body.windows(text.len()).any(|part| part == text.as_bytes())
                    }
                    Wanted::Whole => match content {
                        Some(length) => body.len() >= length || answer.len() > LIMIT,
                        None => is_over,
                    },
                };
                Ok((has_body || is_over).then_some((status, has_body)))
            }
        }
    }

    fn request(&self) -> String {
        // nginx asks by 1.1; by 1.0 no server sends chunks, which may part what is looked for.
        let version = if matches!(self.wanted, Wanted::Head) { "1.1" } else { "1.0" };
        format!(
            "GET {path} HTTP/{version}\r\n{fields}User-Agent: farmctl\r\nAccept: */*\r\n\
             Connection: close\r\n\r\n",
            path = self.path,
            fields = self.visitor.fields
        )
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

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Where the body begins.
    end: usize,
    /// How long the body is, if that is said.
    content: Option<usize>,
}

/// The head of an answer, once all of it is there. An informational answer (1xx) precedes the
/// real one.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut begin = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(&bytes[begin..]).context("reading the answer")? {
            httparse::Status::Partial => return Ok(None),
            httparse::Status::Complete(length) => {
                begin += length;
                match response.code {
                    Some(status) if !(100..200).contains(&status) => {
                        let mut fields = response.headers.iter();
                        let content = fields
                            .find(|field| field.name.eq_ignore_ascii_case("content-length"))
                            .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
                        return Ok(Some(Head { status, end: begin, content }));
                    }
                    Some(_) => {}
                    None => return Ok(None),
                }
            }
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
        assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\nA: b\r\n").expect("no fault yet"), None);
        let informed = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 302 Found\r\n\r\n<p>";
        let head = Head { status: 302, end: informed.len() - 3, content: None };
        assert_eq!(parse_head(informed).expect("it is HTTP"), Some(head));
        parse_head(b"SSH-2.0-OpenSSH_9.2\r\n").expect_err("it is not HTTP");
    }

    fn question(wanted: Wanted) -> Question {
        Question::of("x".as_ref(), &Visitor::of(None), "/", wanted, PATIENCE)
    }

    #[test]
    fn a_whole_answer_is_as_long_as_it_says() {
        let judged = |answer: &str, is_over| {
            let judged = question(Wanted::Whole).judge(answer.as_bytes(), is_over);
            judged.expect("it is HTTP")
        };
        let said = "HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\n";
        assert_eq!(judged(&format!("{said}pag"), false), None);
        assert_eq!(judged(&format!("{said}page"), false), Some((200, true)));
        assert_eq!(judged(&format!("{said}pag"), true), Some((200, false)));
        let unsaid = "HTTP/1.0 200 OK\r\n\r\n";
        assert_eq!(judged(&format!("{unsaid}page"), false), None);
        assert_eq!(judged(&format!("{unsaid}page"), true), Some((200, true)));
        question(Wanted::Whole).judge(b"", true).expect_err("it is none");
        let fault = |status, has_body| Answer { status, has_body, took: Duration::ZERO }.fault("/");
        assert_eq!(fault(404, true), None);
        assert_eq!(fault(500, true).as_deref(), Some("it answers 500 to /"));
        assert_eq!(fault(200, false).as_deref(), Some("it breaks off its answer to /"));
    }

    #[test]
    fn a_text_is_looked_for_in_the_body_until_the_answer_is_over() {
        let wants = question(Wanted::Text("ready".to_owned()));
        let judged =
            |answer: &str, is_over| wants.judge(answer.as_bytes(), is_over).expect("it is HTTP");
        let head = "HTTP/1.0 200 OK\r\nServer: ready\r\n\r\n";
        assert_eq!(judged(head, false), None);
        assert_eq!(judged(&format!("{head}not rea"), false), None);
        assert_eq!(judged(&format!("{head}it is ready,"), false), Some((200, true)));
        assert_eq!(judged(&format!("{head}warming up"), true), Some((200, false)));
        let any = question(Wanted::Head).judge(head.as_bytes(), false).expect("it is HTTP");
        assert_eq!(any, Some((200, true)));
        let answer = Answer { status: 200, has_body: false, took: Duration::ZERO };
        let trouble = answer.trouble("/", Some("ready"));
        assert_eq!(trouble.as_deref(), Some("its answer to / is without \"ready\""));
    }

    #[test]
    fn a_server_is_told_what_its_vhost_would_tell_it() {
        let request = |front: &str| {
            let profile = crate::profile::parse(&format!(
                "schema = 1\nname = \"shop\"\nversion = \"1.0\"\n[environment]\nsuite = \"bookworm\"\n\
                 [[process]]\nname = \"web\"\ncommand = \"gunicorn\"\n{front}"
            ));
            let front = profile.expect("the profile is right").front;
            let visitor = Visitor::of(front.as_ref());
            Question::of("x".as_ref(), &visitor, "/", Wanted::Head, PATIENCE).request()
        };
        insta::assert_snapshot!(
            request(
                "[front]\nserver-names = [\"*.example\", \"shop.example\"]\n\
                 [front.tls]\nlisten = [\"443\"]\n"
            ),
            @r"
        GET / HTTP/1.1
        Host: shop.example
        X-Real-IP: 127.0.0.1
        X-Forwarded-For: 127.0.0.1
        X-Forwarded-Proto: https
        X-Forwarded-Host: shop.example
        User-Agent: farmctl
        Accept: */*
        Connection: close
        "
        );
        let plain = request("[front]\nlisten = [\"80\"]\n");
        assert!(plain.contains("\r\nHost: localhost\r\n"), "{plain}");
        assert!(plain.contains("\r\nX-Forwarded-Proto: http\r\n"), "{plain}");
        let alone = request("");
        assert!(alone.contains("\r\nHost: localhost\r\nUser-Agent: "), "{alone}");
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
        let visitor = Visitor::of(None);
        let error = ask(&socket, &visitor, "/healthz", None).expect_err("only root may connect");
        connect(&socket).expect_err("neither");
        assert_eq!(error.to_string(), format!("www-data may not connect to {}", socket.display()));
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))
            .expect("it is ours");
        serve(listener, b"HTTP/1.1 204 No Content\r\n\r\n");
        let answer = ask(&socket, &visitor, "/healthz", None).expect("it answers");
        assert_eq!((answer.status, answer.trouble("/healthz", None)), (204, None));
    }
}
