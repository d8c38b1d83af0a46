"""The host: its programs and packages, where things lie, and how trouble is told."""
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
"""The repository."""
CACHE = pathlib.Path(os.environ.get("FARMCTL_CACHE", "/var/cache/farmctl")) / "vm"
"""What can be made again and takes long: packages, kernels, images, tarballs."""


class Trouble(Exception):
    """What stops the harness itself, as opposed to a test that fails; printed once."""

    def __init__(self, what, hint=None):
        super().__init__(what)
        self.hint = hint


def face(main):
    """Runs a command's `main` as root and answers its exit status; tells trouble once."""
    try:
        if os.geteuid() != 0:
            raise Trouble("this makes images of whole systems", "run it as root")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return main()
    except Trouble as trouble:
        say(f"error: {trouble}")
        if trouble.hint:
            say(f"hint: {trouble.hint}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def say(text):
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def run(command, *, within, **options):
    """Runs a program to its end and answers its standard output.

    `within` is in seconds. A failure is a Trouble with the last lines it wrote.
    """
    command = [str(word) for word in command]
    options.setdefault("stdin", subprocess.DEVNULL)
    try:
        done = subprocess.run(
            command, timeout=within, check=False, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    except subprocess.TimeoutExpired:
        raise Trouble(f"{command[0]} took more than {within} s: {' '.join(command)}") from None
    except FileNotFoundError:
        raise Trouble(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        last = "\n".join(f"  | {line}" for line in (done.stdout + done.stderr).splitlines()[-15:])
        raise Trouble(f"{' '.join(command)} exited with {done.returncode}\n{last}")
    return done.stdout


def contained(command):
    """`command` so that all it starts and mounts ends with it, and it with the thread that
    started it, however that ends: User-mode Linux leaves helpers behind when it is killed,
    and what builds a system has mounts."""
    return ["setpriv", "--pdeathsig", "KILL",
            "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", *map(str, command)]


def install_packages(*names):
    """Installs the Debian packages the host lacks."""
    run([ROOT / "scripts/packages", *names], within=900)


def build_farmctl():
    """Builds the program under test, as it is in this tree, and answers its path."""
    cargo = pathlib.Path(run([ROOT / "scripts/rust"], within=900).strip())
    path = {**os.environ, "PATH": f"{cargo}:{os.environ['PATH']}"}
    run([cargo / "cargo", "build", "--quiet", "--release", "--locked"],
        within=1800, cwd=ROOT, env=path)
    return ROOT / "target/release/farmctl"


def memory_free():
    """Bytes of memory a new process could use."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
