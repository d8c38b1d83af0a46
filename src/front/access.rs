//! The log of an application's requests, which nginx writes: how many failed.

use std::path::Path;

use anyhow::Result;

use crate::file;
use crate::layout::{self, NGINX_LOGS};
use crate::log::{self, Follower};

/// How far back the log is read for what was usual before, in bytes.
const WINDOW: u64 = 256 << 10;

/// Requests that were answered, by an application or for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// All of them.
    pub requests: u64,
    /// Those answered with a status from 500 to 599, or by another server in place of one
    /// that refused them or broke them off.
    pub errors: u64,
}

/// An application's requests from a moment on.
#[derive(Debug)]
pub struct Traffic {
    follower: Follower,
    since: Counted,
    /// What was counted of the time before.
    pub before: Counted,
}

impl Traffic {
    /// From now on.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn from_now(app: &str) -> Result<Self> {
        let path = Path::new(NGINX_LOGS).join(layout::access_log(app));
        let from = log::size(&path)?.saturating_sub(WINDOW);
        let before = count(&log::lines_since(&path, from)?);
        Ok(Self { follower: Follower::at_end(&path)?, since: Counted::default(), before })
    }

    /// What has been answered since.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn since(&mut self) -> Result<Counted> {
        let Counted { requests, errors } = count(&self.follower.lines()?);
        self.since.requests += requests;
        self.since.errors += errors;
        Ok(self.since)
    }
}

/// Counts lines in the format of our vhosts: `… "GET / HTTP/1.1" 200 5 "-" "-" 502, 200`, at
/// their end what the servers that were asked have answered. Quotes in what a client sends
/// are escaped there.
fn count(lines: &[String]) -> Counted {
    let mut counted = Counted::default();
    for line in lines {
        let mut parts = line.split('"');
        let status = parts.nth(2).and_then(|rest| rest.split_whitespace().next());
        let Some(status) = status.and_then(|status| status.parse::<u16>().ok()) else { continue };
        // A comma parts servers of one upstream (ngx_http_upstream_module): the next is asked
        // only where one has failed. A client that does not wait leaves one `-`.
        let was_passed_on = parts.nth(3).is_some_and(|asked| asked.contains(','));
        counted.requests += 1;
        counted.errors += u64::from((500..600).contains(&status) || was_passed_on);
    }
    counted
}

/// Removes the log of an application's requests, with what was rotated of it.
///
/// # Errors
/// When it cannot be removed.
pub fn forget_requests(app: &str) -> Result<()> {
    let directory = Path::new(NGINX_LOGS);
    let log = layout::access_log(app);
    for name in file::names_in(directory)? {
        if name.strip_prefix(&log).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            file::remove_if_there(&directory.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_requests_are_counted() {
        // Captured from nginx 1.22.1.
        let line = |rest: &str| format!("127.0.0.1 - - [29/Nov/2026:11:54:47 +0000] {rest}");
        let right = [
            r#""GET / HTTP/1.1" 200 5 "-" "-" 200"#,
            r#""GET /\x22 500 HTTP/1.1" 404 2 "-" "-" 404"#,
            // Its client did not wait.
            r#""GET /slow HTTP/1.1" 499 0 "-" "-" -"#,
            // The application had nginx answer by another location (X-Accel-Redirect).
            r#""GET /other HTTP/1.1" 200 5 "-" "-" 200 : 200"#,
            // As other vhosts log.
            r#""GET / HTTP/1.1" 200 5 "-" "Mozilla/5.0 (like Gecko, like KHTML)""#,
        ];
        let failed = [
            r#""GET / HTTP/1.1" 500 5 "-" "-" 500"#,
            r#""GET / HTTP/1.1" 502 5 "-" "-""#,
            // Nobody answered.
            r#""GET /none HTTP/1.1" 503 1 "-" "-" 502, 502"#,
            // What has been sent may not be done twice.
            r#""POST /gone HTTP/1.1" 503 1 "-" "-" 502"#,
            // Another server answered, or began to.
            r#""GET /gone HTTP/1.1" 200 5 "-" "-" 502, 200"#,
            r#""GET /gone/slow HTTP/1.1" 499 0 "-" "-" 502, -"#,
        ];
        for (rest, errors) in right.map(|it| (it, 0)).into_iter().chain(failed.map(|it| (it, 1))) {
            assert_eq!(count(&[line(rest)]), Counted { requests: 1, errors }, "{rest}");
        }
        assert_eq!(count(&[line("\"GET / HT")]), Counted::default());
    }
}
