//! farmctl: web applications in schroot environments on Debian machines.
//!
//! This page is the map of the code. Four floors; nothing calls upstairs.
//!
//! | floor | rooms | what they do |
//! |---|---|---|
//! | face | `main`, [`cli`], [`ui`] | words in, words out |
//! | recipes | [`commands`], one file per verb | each reads like a recipe |
//! | hands | [`run`] [`parallel`] [`mount`] [`mod@file`] [`input`] [`hash`] [`process`] [`place`] [`machine`] [`inside`] [`storage`] [`chroot`] [`debian`] [`python`] [`git`] [`source`] [`locked`] [`stage`] [`tarball`] [`signature`] [`trust`] [`account`] [`secret`] [`schroot`] [`session`] [`supervise`] [`probe`] [`ready`] [`mod@log`] [`front`] [`serve`] [`switch`] [`history`] [`node`] [`revise`] [`watch`] [`undo`] | touch the system, print nothing |
//! | plans | [`profile`] [`project`] [`mod@reference`] [`template`] [`start_script`] [`lockfile`] [`manifest`] [`kept`] [`edit`] [`mod@diff`] [`sbom`] [`sizes`] [`release`] [`layout`] [`plan`] [`settings`] [`size`] | pure values: no file system, no process, no clock |
//!
//! [`error`] lies under all floors: every floor raises errors. `tests/house.rs` keeps
//! the floors apart.
//!
//! # Rules
//!
//! 1. **Plan, do, publish.** A verb that changes something first reads, then plans
//!    (`--dry-run` prints the plan and stops), then does, and publishes by one atomic
//!    act: a temporary file, synced and renamed ([`file::publish`]).
//! 2. **State never names what does not exist.** Create, then write state; forget in
//!    state, then delete.
//! 3. **Rubbish is what an unfinished transaction of this node left.** Before a recipe
//!    makes something, it writes the thing down ([`node::Transaction::intend`]); a
//!    failing recipe and `gc` remove it by the same code ([`undo`]). So is the temporary of
//!    a file whose farmctl is gone ([`file::unpublished`]). What state does not
//!    know but is whole is an orphan: reported, removed only when asked. Data
//!    directories are never rubbish.
//! 4. **What must vanish always is a guard** ([`mount::Mount`], [`node::Lock`]); what
//!    must vanish on failure is an [`node::Object`] on the record. SIGINT and SIGTERM
//!    unwind through the same path; SIGKILL and power cuts leave a record for `gc`.
//! 5. **An error is printed once**: contexts joined by colons, then one hint, the next
//!    thing to type ([`error`]).
//! 6. **Standard output carries answers**, standard error steps and progress; only
//!    [`ui`] writes to either. `-v` shows every external command.
//! 7. **One place starts processes**: [`run`]. Tools get a fixed environment, no
//!    standard input, and machine formats are read, never columns for people.

pub mod account;
pub mod chroot;
pub mod cli;
pub mod commands;
pub mod debian;
pub mod diff;
pub mod edit;
pub mod error;
pub mod file;
pub mod front;
pub mod git;
pub mod hash;
pub mod history;
pub mod input;
pub mod inside;
pub mod kept;
pub mod layout;
pub mod locked;
pub mod lockfile;
pub mod log;
pub mod machine;
pub mod manifest;
pub mod mount;
pub mod node;
pub mod parallel;
pub mod place;
pub mod plan;
pub mod probe;
pub mod process;
pub mod profile;
pub mod project;
pub mod python;
pub mod ready;
pub mod reference;
pub mod release;
pub mod revise;
pub mod run;
pub mod sbom;
pub mod schroot;
pub mod secret;
pub mod serve;
pub mod session;
pub mod settings;
pub mod signature;
pub mod size;
pub mod sizes;
pub mod source;
pub mod stage;
pub mod start_script;
pub mod storage;
pub mod supervise;
pub mod switch;
pub mod tarball;
pub mod template;
pub mod trust;
pub mod ui;
pub mod undo;
pub mod watch;
