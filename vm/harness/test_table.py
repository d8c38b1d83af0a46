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


if __name__ == "__main__":
    unittest.main()
