"""How the index of tests is read."""
import pathlib
import tempfile
import unittest
from unittest import mock

from harness import host, index

INDEX = """
[it-works]
node = "fresh"
suites = ["bookworm", "trixie"]
storage = "none"
limit = 60

[it-takes-long]
node = "ready"
storage = "lvm"
disks = [64, 32]
engines = ["uml"]
rounds = 3
limit = 600
only_when_named = true
"""


class Index(unittest.TestCase):
    """A table is a test on each of its suites."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="farmctl-index.")
        self.addCleanup(scratch.cleanup)
        self.place = pathlib.Path(scratch.name)
        patch = mock.patch.object(index, "TESTS", self.place)
        patch.start()
        self.addCleanup(patch.stop)
        for name in ("it-works", "it-takes-long"):
            (self.place / name).touch(mode=0o755)

    def read(self, text=INDEX):
        """The tests of an index."""
        (self.place / "index.toml").write_text(text, encoding="utf-8")
        return index.read()

    def names(self, *wanted):
        """The names of those that are chosen."""
        return [test.name for test in index.select(self.read(), wanted)]

    def test_more_rounds_have_more_time(self):
        tests = self.read()
        for rounds, limit in [(1, 600), (3, 600), (4, 1200), (20, 4200)]:
            test = index.repeated(tests["it-takes-long"], rounds)
            self.assertEqual((test.rounds, test.limit), (rounds, limit))
        self.assertEqual(index.repeated(tests["it-works"], 20), tests["it-works"])

    def test_a_test_runs_on_each_of_its_suites(self):
        self.assertEqual(self.names(), ["it-works", "it-works@trixie"])
        self.assertEqual(self.names("vm/tests/it-works@trixie"), ["it-works@trixie"])
        found = self.read()["it-works@trixie"]
        self.assertEqual((found.script, found.suite), ("it-works", "trixie"))

    def test_a_name_without_a_suite_means_all_of_them(self):
        self.assertEqual(self.names("vm/tests/it-works"), ["it-works", "it-works@trixie"])
        self.assertEqual(self.names("it-takes-long"), ["it-takes-long"])
        with self.assertRaisesRegex(host.Trouble, "there is no test it-takes-long@trixie"):
            self.names("it-takes-long@trixie")

    def test_what_is_named_runs_on_any_engine(self):
        self.assertEqual(self.read()["it-takes-long"].engines, ("uml",))
        chosen, = index.select(self.read(), ["it-takes-long"])
        self.assertEqual(chosen.engines, ("uml", "qemu"))

    def test_a_wrong_index_is_refused_in_words(self):
        for old, new, words in [
            ("trixie", "sid", "in suites there is no sid, but bookworm, trixie"),
            ('"uml"', '"kvm"', "in engines there is no kvm, but uml, qemu"),
            ("[it-works]", "[it-does-not]", "vm/tests/it-works is not in"),
            ("disks", "disk", "there is no key disk"),
        ]:
            with self.assertRaisesRegex(host.Trouble, words):
                self.read(INDEX.replace(old, new))


if __name__ == "__main__":
    unittest.main()
