//! A Redis, as the broker of Celery.

use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use crate::common::{Farm, Running, called, wait_for};

/// Starts one that listens on a port of this machine, and ends with what is answered.
pub fn start(farm: &Farm, port: u16) -> Running {
    // The package with the daemon would start one; its program is this one by that name.
    let program = farm.root().join("redis-server");
    symlink("/usr/bin/redis-check-rdb", &program).expect("there is room");
    let program = program.to_str().expect("the path is ours");
    let text = port.to_string();
    let mut command = called(program, &["--port", &text, "--bind", "127.0.0.1", "--save", ""]);
    let child = command.stdout(Stdio::null()).spawn().expect("redis-tools is installed");
    let broker = Running(child);
    wait_for("Redis", Duration::from_secs(10), || TcpStream::connect(("127.0.0.1", port)).is_ok());
    broker
}
