"""A page that says who serves it: name, version, machine, process, time, visits."""

import fcntl
import html
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from string import Template

NAME = "hello"
VERSION = os.environ.get("HELLO_VERSION", "unknown")
COUNTER = Path(os.environ.get("HELLO_DATA", ".")) / "visits"
PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def count_visit():
    """The number of this visit; None where it cannot be kept."""
    try:
        descriptor = os.open(COUNTER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return None
    with os.fdopen(descriptor, "r+") as file:
        # Held by one worker of all; closing the file gives it back.
        fcntl.flock(file, fcntl.LOCK_EX)
        digits = file.read().strip()
        visits = int(digits) + 1 if digits.isdecimal() else 1
        # A longer number never leaves digits of a shorter one behind.
        file.seek(0)
        file.write(f"{visits}\n")
    return visits


def page(counted):
    visits = count_visit() if counted else None
    values = {
        "name": NAME,
        "version": VERSION,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "visits": "not counted" if visits is None else f"{visits:,}",
    }
    return PAGE.substitute({key: html.escape(str(value)) for key, value in values.items()})


def application(environ, start_response):
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if method not in ("GET", "HEAD"):
        status, kind, text = "405 Method Not Allowed", "text/plain", "only GET and HEAD\n"
    elif path == "/health":
        status, kind, text = "200 OK", "text/plain", "ok\n"
    elif path == "/":
        status, kind, text = "200 OK", "text/html", page(counted=method == "GET")
    else:
        status, kind, text = "404 Not Found", "text/plain", "there is no such page\n"
    body = text.encode()
    headers = [
        ("Content-Type", f"{kind}; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    start_response(status, headers)
    return [body if method != "HEAD" else b""]
