//! The page for visitors whom nobody answers.
//!
//! A copy of the release's, beside the releases: sessions and their links may be gone, and so
//! is all of /run after a reboot.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::error::refuse;
use crate::file;
use crate::inside::Inside;
use crate::layout::{Layout, WAY_PAGE};
use crate::manifest::Manifest;

/// What nginx answers while nobody does: nothing in it may need another request.
const UNAVAILABLE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
    <meta name=\"viewport\" content=\"width=device-width\"><title>Not available</title>\
    <body style=\"font-family: sans-serif; margin: 20vh auto; max-width: 30em; padding: 0 1em\">\
    <h1>Not available at the moment</h1><p>Please try again later.</p>";

/// Where nginx finds the application's own page for that: no URL of an application's, who
/// asks for it is answered 404.
const PAGE: &str = "/+unavailable";

/// What has nginx show it: part of a `server`.
pub(super) fn render(app: &str, pages: &str) -> String {
    format!(
        "\n    # Nobody answers. What the application itself answers goes out as it is.\n    \
             error_page 502 =503 {PAGE};\n    \
             error_page 504 {PAGE};\n    \
             # Not a named location: to that a POST would be one still.\n    \
             location = {PAGE} {{\n        \
                 internal;\n        \
                 root {pages};\n        \
                 types {{}}\n        \
                 default_type text/html;\n        \
                 etag off;\n        \
                 add_header Retry-After 10 always;\n        \
                 try_files /{app} @unavailable;\n    }}\n    \
             location @unavailable {{\n        \
                 default_type text/html;\n        \
                 add_header Retry-After 10 always;\n        \
                 return 503 '{UNAVAILABLE}';\n    }}\n",
    )
}

/// Where a release has its own, if it has one.
pub(super) fn of(manifest: &Manifest) -> Option<&Path> {
    manifest.profile.front.as_ref()?.error_page.as_deref()
}

/// Copies the release's out of its tree.
pub(super) fn export(manifest: &Manifest, inside: &Inside, target: &Path) -> Result<()> {
    let Some(path) = of(manifest) else { return Ok(()) };
    match inside.read_bytes(path)? {
        Some(bytes) => file::put(&target.join(WAY_PAGE), &bytes, 0o644),
        None => refuse(
            format_args!("the release has no file {}", path.display()),
            "[front] error-page names it: correct the profile, or make it with a job at bake",
        ),
    }
}

/// Has the way to a session know what was exported.
pub(super) fn make_way(export: &Path, way: &Path) -> Result<()> {
    file::link(&export.join(WAY_PAGE), &way.join(WAY_PAGE))
}

/// Has nginx show the one of a session's release from now on, or its own.
pub(super) fn show(layout: &Layout, app: &str, session: &str) -> Result<()> {
    let (from, to) = (layout.way(session).join(WAY_PAGE), layout.page(app));
    if fs::symlink_metadata(&from).is_err() {
        return file::remove_if_there(&to);
    }
    let page = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(&to).is_ok_and(|shown| shown == page) {
        return Ok(());
    }
    file::make_directory(&layout.pages(), 0o755)?;
    file::publish(&to, &page, 0o644)
}
