"""Where guests run.

As root: python3 -B -m unittest discover --start-directory vm/harness --top-level-directory vm
"""
import unittest
from unittest import mock

from harness import engine, host, suite


class Places(unittest.TestCase):
    """Each guest has its processors to itself."""

    def places(self, chosen, processors, memory=1 << 40):
        """What a machine with these offers."""
        with mock.patch("os.sched_getaffinity", return_value=set(processors)), \
                mock.patch.object(host, "memory_free", return_value=memory):
            return suite._places(chosen)  # pylint: disable=protected-access

    def test_user_mode_linux_has_one_processor(self):
        """Two would slow it down."""
        self.assertEqual(self.places(engine.Uml(), [0, 1, 5]), [[0], [1], [5]])

    def test_qemu_has_two(self):
        """Or all there are."""
        self.assertEqual(self.places(engine.Qemu("tcg"), [0, 1, 4, 5, 6]), [[0, 1], [4, 5]])
        self.assertEqual(self.places(engine.Qemu("tcg"), [3]), [[3]])

    def test_memory_bounds_them(self):
        """One runs in any case."""
        self.assertEqual(self.places(engine.Uml(), [0, 1, 2], 6 << 30), [[0], [1]])
        self.assertEqual(self.places(engine.Uml(), [0, 1, 2], 1 << 30), [[0]])


if __name__ == "__main__":
    unittest.main()
