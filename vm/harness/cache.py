"""Things that take long to make, kept under a name that hashes what they are made from."""
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time

from . import host

UNUSED_DAYS = 7
"""Entries nobody asked for in this time are removed when another of their kind is made."""


def digest(*parts):
    """Hash of texts, bytes, values JSON can write, and files and directories by content."""
    total = hashlib.sha256()

    def add(data):
        total.update(len(data).to_bytes(8, "big") + data)

    for part in parts:
        if isinstance(part, os.PathLike):
            for path in sorted([part, *part.rglob("*")]):
                if path.is_file():
                    add(str(path.relative_to(part)).encode())
                    add(bytes([path.stat().st_mode & 0o100 > 0]))
                    add(path.read_bytes())
        elif isinstance(part, bytes):
            add(part)
        else:
            add(json.dumps(part, sort_keys=True).encode())
    return total.hexdigest()[:16]


def entry(kind, key, what, make):
    """The directory `kind-key`, made by `make(directory)` unless it is there and whole.

    `what` says to people what is being made. An interrupted or failing `make` leaves
    nothing; two runs at once make it once.
    """
    place = host.CACHE / f"{kind}-{key}"
    host.CACHE.mkdir(parents=True, exist_ok=True)
    if _is_whole(place):
        return place
    with turn(host.CACHE, kind, f"another run that makes {what}"):
        if _is_whole(place):
            return place
        host.say(f"· making {what}")
        begun = time.monotonic()
        _prune(kind)
        part = host.CACHE / f".{kind}-{key}.part"
        for old in (part, place):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir()
        try:
            make(part)
            seal = json.dumps(_seal(part))
            os.sync()
            (part / "made.json").write_text(seal)
            part.rename(place)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        host.say(f"✓ made {what} ({time.monotonic() - begun:.0f} s)")
    return place


@contextlib.contextmanager
def turn(directory, name, whom):
    """One at a time on this machine; says that it waits for `whom`."""
    with open(directory / f".{name}.lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host.say(f"· waiting for {whom}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _seal(place):
    """Size and time of every file: what is cut short or written to is noticed."""
    found = {}
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "made.json":
            status = path.stat()
            found[str(path.relative_to(place))] = [status.st_size, status.st_mtime_ns]
    return found


def _is_whole(place):
    """Whether it is there as it was made; it counts as used then."""
    try:
        os.utime(place)
        return json.loads((place / "made.json").read_text()) == _seal(place)
    except (OSError, ValueError):
        return False


def _prune(kind):
    limit = time.time() - UNUSED_DAYS * 86400
    for path in host.CACHE.glob(f"{kind}-*"):
        if path.stat().st_mtime < limit:
            shutil.rmtree(path, ignore_errors=True)
