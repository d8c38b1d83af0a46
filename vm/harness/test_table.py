"""How a bench is printed."""
import unittest

from harness import table


class Table(unittest.TestCase):
    """A log becomes a table."""

    def test_figures_become_medians(self):
        log = "== cold\nfigure|cold|bootstrap|90200000\n== lvm\n"
        for what, _ in table.COLUMNS:
            log += "".join(f"figure|lvm|{what}|{it}\n" for it in (3_000_000, 1_250_000, 900_000))
        lines = list(table.render(log))
        self.assertEqual(lines[2], "| lvm |" + " 1.25 |" * len(table.COLUMNS))
        self.assertEqual(lines[-1], "The bootstrap that filled the cache: 90.2 s.")

    def test_installs_have_a_ratio(self):
        log = "".join(f"figure|lvm, hello|{what}|{it}\n"
                      for what, it in (("install", 8_000_000), ("install over", 2_000_000)))
        self.assertEqual(list(table.render_installs(log))[2], "| lvm | hello | 8.00 | 2.00 | 0.25 |")


if __name__ == "__main__":
    unittest.main()
