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
    /// Those answered with a status from 500 to 599.
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

/// Counts lines in nginx's `combined` format: `… "GET / HTTP/1.1" 200 …`. Quotes in a
/// request are escaped there.
fn count(lines: &[String]) -> Counted {
    let mut counted = Counted::default();
    for line in lines {
        let status = line.split('"').nth(2).and_then(|rest| rest.split_whitespace().next());
        let Some(status) = status.and_then(|status| status.parse::<u16>().ok()) else { continue };
        counted.requests += 1;
        counted.errors += u64::from((500..600).contains(&status));
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
        let text = "127.0.0.1 - - [21/Nov/2026:13:00:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"\n\
            127.0.0.1 - - [21/Nov/2026:13:00:01 +0000] \"GET /\\x22 500 HTTP/1.1\" 404 5 \"-\" \"-\"\n\
            127.0.0.1 - - [21/Nov/2026:13:00:02 +0000] \"GET / HTTP/1.1\" 502 5 \"-\" \"-\"\n\
            127.0.0.1 - - [21/Nov/2026:13:00:02 +0000] \"GET / HT";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(count(&lines), Counted { requests: 3, errors: 1 });
    }
}
