"""How a guest is judged, with shell scripts for engines: each does what a machine might.

As root: python3 -B -m unittest discover --start-directory vm/harness --top-level-directory vm
"""
import dataclasses
import pathlib
import tempfile
import threading
import unittest
from unittest import mock

from harness import engine, guest, host, index

REPORT = """
    printf '{"status": %s, "next": "%s"}' "$1" "$2" >"$place/verdict"
    echo "what it says in boot $boot" >"$place/log"
    tar --create --directory "$place" log verdict | dd of="$result" conv=notrunc status=none
"""


@dataclasses.dataclass
class Script:
    """An engine that runs a script; `$boot` counts, `$argument` is the test's."""

    text: str
    name: str = "script"
    slowness: int = 1
    boots: int = 0

    def prepare(self, machine):
        """Nothing."""

    def command(self, machine):
        """The script, with what a guest is told."""
        self.boots += 1
        words = dict(word.split("=", 1) for word in machine.parameters if word.startswith("vm."))
        head = (f"boot={self.boots} argument={words['vm.argument']} place={machine.overlay.parent} "
                f"result={machine.writable[0]}; report() {{ {REPORT} }};")
        return host.contained(["sh", "-euc", head + self.text])


class Judging(unittest.TestCase):
    """Every end a machine can come to has its own words."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="farmctl-guest.")
        self.addCleanup(scratch.cleanup)
        self.place = pathlib.Path(scratch.name) / "place"
        for name, value in {"GRACE": 1, "OFF": 1}.items():
            patch = mock.patch.object(guest, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def guest(self, text, limit=1):
        """A guest whose machine is a script."""
        machine = engine.Machine(kernels=None, image=None, overlay=self.place / "root.cow",
                                 read_only=[], writable=[], parameters=[])
        test = index.Test("name", node="fresh", storage="none", limit=limit)
        return guest.Guest(test, Script(text), machine, self.place, keep=False)

    def judge(self, text):
        """Its verdict's words, empty when it passed."""
        found = self.guest(text).run()
        self.assertEqual(found.passed, not found.words)
        return found.words

    def test_a_test_that_passes_leaves_nothing(self):
        self.assertEqual(self.judge("report 0 done; sleep infinity"), "")
        self.assertFalse(self.place.exists())

    def test_a_test_that_fails_leaves_its_report_and_no_disk(self):
        self.assertEqual(self.judge("echo words; report 3 done; sleep infinity"), "exit status 3")
        self.assertTrue((self.place / "boot-1/verdict").exists())
        self.assertIn("words\n", (self.place / "console-1").read_text())
        self.assertEqual(list(self.place.glob("*.img")), [])

    def test_a_test_that_is_too_slow_is_told_from_a_guest_that_hangs(self):
        self.assertEqual(self.judge("report 124 done; sleep infinity"), "took longer than 1 s")
        self.assertIn("never reported", self.judge("sleep infinity"))

    def test_a_kernel_that_dies_is_told_from_both(self):
        self.assertIn("ended without a report", self.judge("exit 0"))

    def test_half_a_report_is_none(self):
        text = "echo half | dd of=$result conv=notrunc status=none; sleep infinity"
        self.assertIn("never reported", self.judge(text))

    def test_a_reboot_and_a_power_cut_lead_to_the_next_part(self):
        text = """case $boot:$argument in
            1:) report 0 reboot:two ;;
            2:two) report 0 cut:three; sleep infinity ;;
            3:three) report 0 done; sleep infinity ;;
            *) report 9 done ;;
            esac"""
        found = self.guest(text).run()
        self.assertEqual((found.words, found.log), ("", "what it says in boot 3\n"))

    def test_an_old_report_is_not_taken_for_a_new_one(self):
        text = "case $boot in 1) report 0 cut:two; sleep infinity ;; *) sleep infinity ;; esac"
        self.assertIn("never reported", self.judge(text))

    def test_a_guest_that_does_not_shut_down_fails(self):
        self.assertIn("does not shut down", self.judge("report 0 reboot:two; sleep infinity"))

    def test_an_interrupted_guest_ends_at_once_with_all_it_started(self):
        marker = self.place / "marker"
        it = self.guest(f"sleep 600 & touch {marker}; wait", limit=600)
        thread = threading.Thread(target=lambda: setattr(it, "verdict", it.run()))
        thread.start()
        while not marker.exists():
            self.assertTrue(thread.is_alive())
        outside = it.process.pid
        beneath = f"/proc/{outside}/task/{outside}/children"
        inside, = pathlib.Path(beneath).read_text().split()
        sleeping = pathlib.Path(f"/proc/{inside}/task/{inside}/children").read_text().split()
        it.stop()
        thread.join(10)
        self.assertEqual(it.verdict.words, "interrupted")
        for pid in [inside, *sleeping]:
            self.assertFalse(pathlib.Path(f"/proc/{pid}").exists())

    def test_what_is_mounted_beside_a_guest_is_gone_with_it(self):
        tree = self.place / "tree"
        text = f"mkdir {tree}; mount -t tmpfs tmpfs {tree}; touch {tree}/in; report 3 done"
        self.assertEqual(self.judge(text), "exit status 3")
        self.assertNotIn(str(self.place), pathlib.Path("/proc/self/mountinfo").read_text())
        self.assertEqual(list(tree.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
