"""What vm/guest/bench prints, as a table."""
import statistics

COLUMNS = [
    ("bootstrap", "bootstrap, cached"), ("install", "install"),
    ("install over", "over a release"),
    ("start: session", "begin"), ("schroot -b", "`schroot -b`"), ("copy", "bare copy"),
    ("stop: session", "end"), ("schroot -e", "`schroot -e`"), ("remove copy", "bare removal"),
    ("start", "start"), ("stop", "stop"),
]


def render(log):
    """Lines of Markdown, medians in seconds, a row for each kind of storage."""
    figures = {}
    for line in log.splitlines():
        if line.startswith("figure|"):
            _, kind, what, microseconds = line.split("|")
            row = figures.setdefault(kind, {})
            row.setdefault(what, []).append(int(microseconds) / 1e6)
    cold = statistics.median(figures.pop("cold")["bootstrap"])
    yield "| storage | " + " | ".join(title for _, title in COLUMNS) + " |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    for kind, row in figures.items():
        cells = [f"{statistics.median(row[what]):.2f}" for what, _ in COLUMNS]
        yield f"| {kind} | " + " | ".join(cells) + " |"
    yield ""
    yield f"The bootstrap that filled the cache: {cold:.1f} s."
