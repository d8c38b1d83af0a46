"""One test in one guest: its disks, its boots, its verdict."""
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import time

from . import host

RESULT_MIB = 64
GRACE = 30
"""Seconds beyond its limit that a guest has to report that the limit is over."""
OFF = 60
"""Seconds a guest has to be off after it was told to, at native speed."""
PAUSE = 0.05
"""Seconds between two looks at a guest."""


@dataclasses.dataclass
class Verdict:
    """How a test ended."""

    passed: bool
    words: str
    """Why it did not pass."""
    seconds: float
    log: str
    """What the test wrote at the last boot; empty when there was no report."""


@dataclasses.dataclass
class Report:
    """What a guest wrote to its result disk at the end of a boot."""

    status: int
    next: str
    """`done`, `reboot:ARGUMENT` or `cut:ARGUMENT`."""
    archive: bytes

    @property
    def log(self):
        """What the test wrote."""
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as archive:
            return archive.extractfile("log").read().decode(errors="replace")


class Died(Exception):
    """The guest ended, or hangs, without a report."""


class Guest:
    """A guest that runs one test. `place` is its directory: disks while it runs, and
    afterwards what there is to read about a failure."""

    def __init__(self, test, engine, machine, place, keep):
        self.test = test
        self.engine = engine
        self.machine = machine
        self.place = place
        self.keep = keep
        self.result = place / "result.img"
        self.stopped = False
        self.process = None

    def run(self, argument=""):
        """Boots it as often as the test asks for, and judges."""
        begun = time.monotonic()
        limit = self.test.limit * self.engine.slowness
        words, report, boot = None, None, 0
        try:
            self._make_disks()
            while True:
                boot += 1
                left = limit - (time.monotonic() - begun)
                report = self._boot(boot, argument, max(1, round(left)))
                if report.status != 0 or report.next == "done":
                    break
                argument = report.next.partition(":")[2]
                self._keep_report(report, boot)
            if report.status == 124:
                words = f"took longer than {limit} s"
            elif report.status != 0:
                words = f"exit status {report.status}"
        except Died as death:
            words, report = str(death), None
        finally:
            self._kill()
            if report and (words or self.keep):
                self._keep_report(report, boot)
            if not self.keep:
                self._remove_disks(everything=words is None)
        seconds = time.monotonic() - begun
        return Verdict(words is None, words or "", seconds, report.log if report else "")

    def interact(self):
        """Boots it once, with a shell on this terminal."""
        try:
            self._make_disks()
            _blank(self.result, RESULT_MIB)
            # A serial line tells its guest nothing of the terminal.
            columns, rows = shutil.get_terminal_size()
            machine = self._machine(["systemd.unit=vm-shell.target", f"vm.terminal={rows},{columns}"],
                                    interactive=True)
            # In this process group, so that the terminal is its own.
            subprocess.run(self.engine.command(machine), check=False)
        finally:
            self._remove_disks(everything=not self.keep)

    def stop(self):
        """Ends it from another thread."""
        self.stopped = True
        self._kill()

    def _make_disks(self):
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        for number, size in enumerate(self.test.disks, 1):
            _blank(self.place / f"disk{number}.img", size)
        self.engine.prepare(self.machine)

    def _remove_disks(self, everything):
        if everything:
            shutil.rmtree(self.place, ignore_errors=True)
        for disk in [self.machine.overlay, *self.place.glob("*.img")]:
            disk.unlink(missing_ok=True)

    def _boot(self, number, argument, left):
        """One boot, to its report and, for a reboot, to the power being off."""
        _blank(self.result, RESULT_MIB)
        machine = self._machine([
            "systemd.unit=vm-test.target", "systemd.mask=systemd-logind.service",
            f"vm.test={self.test.directory}/{self.test.script}", f"vm.argument={argument}",
            f"vm.limit={left}"])
        with open(self.place / f"console-{number}", "wb") as console:
            self._start(self.engine.command(machine), console)
            try:
                report = self._await_report(left + GRACE)
                if report.status == 0 and report.next.startswith("reboot:"):
                    self._await_off()
                return report
            finally:
                self._kill()
                # The name of a User-mode Linux that was killed is not free by itself.
                shutil.rmtree(self.place / "uml", ignore_errors=True)

    def _machine(self, parameters, interactive=False):
        """The guest with all its disks, and the words that tell it which is which."""
        first = 1 + len(self.machine.read_only)
        disks = sorted(self.place.glob("disk*.img"))
        words = ",".join(f"{{disk[{first + n}]}}" for n in range(1, len(disks) + 1))
        return dataclasses.replace(
            self.machine, interactive=interactive, writable=[self.result, *disks],
            parameters=[*parameters, f"vm.engine={self.engine.name}",
                        f"vm.slowness={self.engine.slowness}", f"vm.rounds={self.test.rounds}",
                        f"vm.result={{disk[{first}]}}", f"vm.disks={words}"])

    def _start(self, command, console):
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
            start_new_session=True)

    def _kill(self):
        """Takes the power away. The first process of the guest's PID namespace is killed,
        and the one outside waits for it: when that is gone, all are, and the disks are free."""
        process = self.process
        if process is None:
            return
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            with contextlib.suppress(OSError):
                inside = children.read_text(encoding="ascii").split()
                for pid in inside or [process.pid]:
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)

    def _await_report(self, within):
        deadline = time.monotonic() + within
        while True:
            ended = self.process.poll() is not None
            report = read_report(self.result)
            if report:
                return report
            if self.stopped:
                raise Died("interrupted")
            if ended:
                raise Died("the guest ended without a report: its console tells how")
            if time.monotonic() > deadline:
                raise Died(f"the guest never reported, in {within} s: it hangs")
            time.sleep(PAUSE)

    def _await_off(self):
        try:
            self.process.wait(OFF * self.engine.slowness)
        except subprocess.TimeoutExpired:
            raise Died("the guest does not shut down") from None

    def _keep_report(self, report, boot):
        directory = self.place / f"boot-{boot}"
        # Python before 3.11.4 knows no filters.
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        with tarfile.open(fileobj=io.BytesIO(report.archive)) as archive:
            archive.extractall(directory, **options)


def _blank(path, mebibytes):
    """An empty sparse file."""
    with open(path, "wb") as file:
        file.truncate(mebibytes << 20)


def read_report(path):
    """The report on a result disk, if all of it is there. The guest writes in order and
    the verdict last."""
    with open(path, "rb") as disk:
        if not any(disk.read(512)):
            return None
        disk.seek(0)
        try:
            with tarfile.open(fileobj=disk, mode="r:") as archive:
                members = {member.name: member for member in archive.getmembers()}
                if "verdict" not in members:
                    return None
                verdict = json.load(archive.extractfile(members["verdict"]))
                end = archive.offset
        except (tarfile.TarError, ValueError):
            return None
        disk.seek(0)
        return Report(verdict["status"], verdict["next"], disk.read(end))
