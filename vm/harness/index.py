"""The index of tests, vm/tests/index.toml, and what it must agree with."""
import dataclasses
import os
import pathlib
import tomllib

from . import host

TESTS = host.ROOT / "vm/tests"
ENGINES = ("uml", "qemu")
NODES = ("fresh", "ready")
KEYS = {"node", "suite", "storage", "disks", "engines", "limit", "only_when_named"}


@dataclasses.dataclass(frozen=True)
class Test:
    """One test, as the index describes it."""

    name: str
    node: str
    """`fresh` or `ready`."""
    storage: str
    """For people."""
    limit: int
    """Seconds, over all boots, at native speed."""
    suite: str = "bookworm"
    disks: tuple[int, ...] = ()
    """Blank disks, in MiB."""
    engines: tuple[str, ...] = ENGINES
    only_when_named: bool = False
    """Not part of a run of all."""

    @property
    def path(self):
        """The script."""
        return TESTS / self.name


def read():
    """The tests by name; Trouble when index and directory do not agree."""
    table = tomllib.loads((TESTS / "index.toml").read_text(encoding="utf-8"))
    tests = {name: _test(name, value) for name, value in sorted(table.items())}
    files = {path.name for path in TESTS.iterdir() if path.name != "index.toml"}
    for name in sorted(files - set(tests)):
        raise host.Trouble(f"vm/tests/{name} is not in vm/tests/index.toml")
    for name in sorted(set(tests) - files):
        raise host.Trouble(f"vm/tests/index.toml names {name}, which is not there")
    for test in tests.values():
        if not os.access(test.path, os.X_OK):
            raise host.Trouble(f"vm/tests/{test.name} is not executable")
    return tests


def _test(name, value):
    def refuse(what):
        raise host.Trouble(f"vm/tests/index.toml: {name}: {what}")

    for key in value.keys() - KEYS:
        refuse(f"there is no key {key}, but {', '.join(sorted(KEYS))}")
    for key in ("node", "storage", "limit"):
        if key not in value:
            refuse(f"{key} is missing")
    if value["node"] not in NODES:
        refuse(f"node is {' or '.join(NODES)}")
    for engine in value.get("engines", ENGINES):
        if engine not in ENGINES:
            refuse(f"there is no engine {engine}, but {', '.join(ENGINES)}")
    return Test(name, **{key: tuple(it) if isinstance(it, list) else it
                         for key, it in value.items()})


def select(tests, names):
    """The named tests, or all that need not be named; a name may be given as a path."""
    wanted = [pathlib.PurePath(name).name for name in names]
    for name in wanted:
        if name not in tests:
            raise host.Trouble(f"there is no test {name}", "vm/run --list")
    if wanted:
        return [tests[name] for name in wanted]
    return [test for test in tests.values() if not test.only_when_named]
