"""The index of tests, vm/tests/index.toml, and what it must agree with."""
import dataclasses
import os
import pathlib
import tomllib

from . import host

TESTS = host.ROOT / "vm/tests"
ENGINES = ("uml", "qemu")
NODES = ("fresh", "ready")
SUITES = ("bookworm", "trixie")
KEYS = {"node", "suites", "storage", "disks", "engines", "limit", "rounds", "only_when_named"}


@dataclasses.dataclass(frozen=True)
class Test:
    """One test on one suite, as the index describes it."""

    name: str
    """That of its file, and on any suite but the first `@SUITE` after it."""
    node: str
    """`fresh` or `ready`."""
    storage: str
    """For people."""
    limit: int
    """Seconds, over all boots, at native speed."""
    suite: str = SUITES[0]
    disks: tuple[int, ...] = ()
    """Blank disks, in MiB."""
    engines: tuple[str, ...] = ENGINES
    rounds: int = 0
    """How often it does what it is about; 0 if it does not ask."""
    only_when_named: bool = False
    """Not part of a run of all."""
    directory: str = "tests"
    """Where in the share its file is."""

    @property
    def script(self):
        """The name of its file."""
        return self.name.partition("@")[0]


def read():
    """The tests by name; Trouble when index and directory do not agree."""
    table = tomllib.loads((TESTS / "index.toml").read_text(encoding="utf-8"))
    tests = [test for name, value in sorted(table.items()) for test in _tests(name, value)]
    files = {path.name for path in TESTS.iterdir() if path.name != "index.toml"}
    for name in sorted(files - set(table)):
        raise host.Trouble(f"vm/tests/{name} is not in vm/tests/index.toml")
    for name in sorted(set(table) - files):
        raise host.Trouble(f"vm/tests/index.toml names {name}, which is not there")
    for name in sorted(table):
        if not os.access(TESTS / name, os.X_OK):
            raise host.Trouble(f"vm/tests/{name} is not executable")
    return {test.name: test for test in tests}


def _tests(name, value):
    """The tests of a table, one for each suite."""
    def refuse(what):
        raise host.Trouble(f"vm/tests/index.toml: {name}: {what}")

    for key in value.keys() - KEYS:
        refuse(f"there is no key {key}, but {', '.join(sorted(KEYS))}")
    for key in ("node", "storage", "limit"):
        if key not in value:
            refuse(f"{key} is missing")
    if value["node"] not in NODES:
        refuse(f"node is {' or '.join(NODES)}")
    for key, known in (("engines", ENGINES), ("suites", SUITES)):
        for word in value.get(key, known):
            if word not in known:
                refuse(f"in {key} there is no {word}, but {', '.join(known)}")
    fields = {key: tuple(it) if isinstance(it, list) else it for key, it in value.items()}
    suites = fields.pop("suites", SUITES[:1])
    return [Test(name if suite == SUITES[0] else f"{name}@{suite}", suite=suite, **fields)
            for suite in suites]


def repeated(test, rounds):
    """The test with another number of rounds, and as much more time."""
    if not test.rounds:
        return test
    return dataclasses.replace(test, rounds=rounds,
                               limit=test.limit * max(1, -(-rounds // test.rounds)))


def select(tests, names):
    """The named tests, or all that need not be named. A name may be given as a path, and
    without a suite it means all of the file's. What is named runs on any engine."""
    wanted = [pathlib.PurePath(name).name for name in names]
    known = {name for test in tests.values() for name in (test.name, test.script)}
    for name in wanted:
        if name not in known:
            raise host.Trouble(f"there is no test {name}", "vm/run --list")
    if wanted:
        return [dataclasses.replace(test, engines=ENGINES) for test in tests.values()
                if test.name in wanted or test.script in wanted]
    return [test for test in tests.values() if not test.only_when_named]
