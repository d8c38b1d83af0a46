//! Standard input: read as far as is asked and not a byte further, and left when a signal
//! comes.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::run::check_interrupted;

/// Whether somebody types there.
#[must_use]
pub fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Reads into the beginning of `bytes` and answers how many they were: none at the end.
/// Waits for the first one. Nothing is kept for the next call, so that who reads on after
/// farmctl has the rest.
///
/// # Errors
/// When it cannot be read, or a signal came.
pub fn read(bytes: &mut [u8]) -> Result<usize> {
    let input = std::io::stdin();
    loop {
        check_interrupted()?;
        let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(200u8)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error).context("waiting for input"),
        }
        match nix::unistd::read(input.as_fd(), bytes) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            read => return Ok(read?),
        }
    }
}
