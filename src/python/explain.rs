//! What pip and uv say when they cannot install, and how to go on.

use anyhow::{Result, anyhow};

use crate::error::{Exit, Mark as _, exit_of, hint_of, message};

/// Says how to go on when pip or uv could not install.
///
/// # Errors
/// The one given, with a hint that fits its words, and without what says nothing.
pub fn explain<T>(result: Result<T>) -> Result<T> {
    let error = match result {
        Ok(value) => return Ok(value),
        Err(error) if exit_of(&error) != Exit::Failed || hint_of(&error).is_some() => {
            return Err(error);
        }
        Err(error) => anyhow!(without_noise(&message(&error))),
    };
    let text = error.to_string().to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["hash mismatch", "do not match the hashes"]) {
        return Err(error).hint(
            "the index serves other bytes than were locked: find out why before farmctl lock",
        );
    }
    if says(&["certificate"]) {
        return Err(error).hint("the host does not trust the index: update-ca-certificates");
    }
    // Before what pip says at the end of it: that it has found nothing.
    if says(&UNREACHABLE) {
        return Err(error).hint_with(|| match address(&text) {
            Some(address) => format!("is the package index reachable? curl --head {address}"),
            None => "is the package index reachable? pip's and uv's settings and the proxy of \
                     this machine say where it is"
                .to_owned(),
        });
    }
    const INDEX: &str =
        "is it in the index, for this Python? farmctl shell NAME --source shows the environment's";
    // pip says of a build also that it has not found what that needs; setup scripts say "not
    // found" of programs.
    Err(error).hint(if says(&["no matching distribution", "no solution"]) {
        INDEX
    } else if says(&TO_BUILD) {
        "add what it needs to build.packages, e.g. \"build-essential\", or lock a version with a wheel"
    } else if says(&["not found"]) {
        INDEX
    } else {
        "farmctl bake -v shows the call"
    })
}

/// What pip, uv and setup scripts say, in small letters, of a distribution that must be built
/// and cannot be: pip's `metadata-generation-failed` and `subprocess-exited-with-error`.
const TO_BUILD: [&str; 7] = [
    "gcc",
    "compiler",
    "failed to build",
    "metadata-generation-failed",
    "subprocess-exited-with-error",
    "_config executable not found",
    "pkg-config",
];

/// What pip and uv say, in small letters, of an index that does not answer.
const UNREACHABLE: [&str; 7] = [
    "connection broken by",
    "error sending request",
    "request failed after",
    "status server error",
    "read timed out",
    "connection refused",
    "name resolution",
];

/// The address uv could not fetch.
fn address(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("failed to fetch: ")?;
    rest.split_whitespace().next().map(|word| word.trim_matches('`'))
}

/// What pip says without each of its tries but the last, and without Python's objects.
fn without_noise(text: &str) -> String {
    const TRY: &str = "WARNING: Retrying (Retry(total=";
    const AFTER: &str = "after connection broken by '";
    let mut tries = text.lines().filter(|line| line.contains(TRY)).count();
    let kept = text.lines().filter_map(|line| {
        let Some((start, rest)) = line.split_once(TRY) else { return Some(line.to_owned()) };
        tries -= 1;
        let why = rest.split_once(AFTER).map_or(rest, |(_, why)| why);
        let mut why = why.to_owned();
        while let Some((before, after)) = why.split_once('<') {
            let Some((_, after)) = after.split_once('>') else { break };
            why = format!("{before}{}", after.trim_start_matches([':', ',', ' ']));
        }
        (tries == 0).then(|| format!("{start}{}", why.replace("'", "")))
    });
    kept.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_does_not_answer_is_told_from_one_that_lacks_something() {
        // Captured from pip 23.0.1 and uv 0.13.8.
        let pip = "pip install: exit status 1\n  | WARNING: Retrying (Retry(total=1, connect=None, \
            read=None, redirect=None, status=None)) after connection broken by \
            'NewConnectionError('<pip._vendor.urllib3.connection.HTTPConnection object at \
            0x7f2f48d2c2d0>: Failed to establish a new connection: [Errno 111] Connection \
            refused')': /simple/markupsafe/\n  | WARNING: Retrying (Retry(total=0, connect=None, \
            read=None, redirect=None, status=None)) after connection broken by \
            'NewConnectionError('<pip._vendor.urllib3.connection.HTTPConnection object at \
            0x7f2f48d2d050>: Failed to establish a new connection: [Errno 111] Connection \
            refused')': /simple/markupsafe/\n  | ERROR: No matching distribution found for \
            markupsafe==3.0.2";
        let uv = "uv install: exit status 2\n  | error: Request failed after 3 retries in 10.6s\n  \
            |   cause: Failed to fetch: http://127.0.0.1:9/simple/markupsafe/\n  \
            |   cause: error sending request for url (http://127.0.0.1:9/simple/markupsafe/)";
        let said = |text: &str| {
            let failed = explain(Err::<(), _>(anyhow!(text.to_owned())));
            crate::error::render(&failed.expect_err("it was one"))
        };
        insta::assert_snapshot!(said(pip), @r"
        error: pip install: exit status 1
          | NewConnectionError(Failed to establish a new connection: [Errno 111] Connection refused): /simple/markupsafe/
          | ERROR: No matching distribution found for markupsafe==3.0.2
        hint: is the package index reachable? pip's and uv's settings and the proxy of this machine say where it is
        ");
        insta::assert_snapshot!(said(uv), @r"
        error: uv install: exit status 2
          | error: Request failed after 3 retries in 10.6s
          |   cause: Failed to fetch: http://127.0.0.1:9/simple/markupsafe/
          |   cause: error sending request for url (http://127.0.0.1:9/simple/markupsafe/)
        hint: is the package index reachable? curl --head http://127.0.0.1:9/simple/markupsafe/
        ");
        let lacks = said("ERROR: No matching distribution found for markupsafe==3.0.2");
        assert!(lacks.contains("hint: is it in the index"), "{lacks}");
        // The ends of what pip 23.0.1 says of psycopg2 2.9.11 and mysqlclient 2.2.7.
        for end in [
            "  | Error: pg_config executable not found.\n  | note: This is an issue with the \
             package mentioned above, not pip.",
            "  | error: metadata-generation-failed\n  | × Encountered error while generating \
             package metadata.\n  | hint: See above for details.",
        ] {
            let build = said(&format!("pip install: exit status 1\n{end}"));
            assert!(build.contains("hint: add what it needs to build.packages"), "{build}");
        }
    }
}
