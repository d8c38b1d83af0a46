//! A pinned commit of a Git repository.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::error::refuse;
use crate::machine;
use crate::run::{self, Invocation, Tool};
use crate::storage;

const GIT: Tool = Tool { name: "git", package: "git" };

/// Checks out `commit` of the repository at `url` into the new directory `target`,
/// without its history.
///
/// # Errors
/// When git is missing, the commit is not a full hash, or the repository does not have it.
pub fn checkout(url: &str, commit: &str, target: &Path) -> Result<()> {
    let is_hash = commit.len() == 40 && commit.chars().all(|digit| digit.is_ascii_hexdigit());
    if !is_hash {
        return refuse(
            "the commit is not pinned",
            "write git+URL@COMMIT with the full hash of 40 digits: a branch or tag may move",
        );
    }
    run::require(&[&GIT])?;
    let git = |arguments: &[&str]| {
        let call = Invocation::of(&GIT)
            .arg("-C")
            .arg(target)
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0");
        machine::proxied(call)
    };
    crate::file::make_directory(target, 0o700)?;
    git(&["init", "--quiet"]).run()?;
    // A server may refuse to hand out a commit by its hash: then take the branches.
    let exact = git(&["fetch", "--quiet", "--depth=1", url, commit]).outcome()?;
    if !exact.success() {
        git(&[
            "fetch",
            "--quiet",
            url,
            "+refs/heads/*:refs/remotes/origin/*",
            "+refs/tags/*:refs/tags/*",
        ])
        .run()?;
    }
    git(&["checkout", "--quiet", "--detach", commit]).run().context("checking out the commit")?;
    storage::remove_tree(&target.join(".git"))
}
