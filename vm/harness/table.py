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
    figures = _figures(log)
    cold = figures.pop("cold")["bootstrap"]
    yield "| storage | " + " | ".join(title for _, title in COLUMNS) + " |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    for kind, row in figures.items():
        yield f"| {kind} | " + " | ".join(f"{row[what]:.2f}" for what, _ in COLUMNS) + " |"
    yield ""
    yield f"The bootstrap that filled the cache: {cold:.1f} s."


def render_installs(log):
    """Lines of Markdown, medians in seconds, a row for each kind of storage and project."""
    yield "| storage | project | install | over a release | ratio |"
    yield "|---|---|---|---|---|"
    for kind, row in _figures(log).items():
        whole, over = row["install"], row["install over"]
        storage, project = kind.split(", ")
        yield f"| {storage} | {project} | {whole:.2f} | {over:.2f} | {over / whole:.2f} |"


def _figures(log):
    """Medians of what was measured, by kind of storage, in seconds."""
    figures = {}
    for line in log.splitlines():
        if line.startswith("figure|"):
            _, kind, what, microseconds = line.split("|")
            figures.setdefault(kind, {}).setdefault(what, []).append(int(microseconds) / 1e6)
    return {kind: {what: statistics.median(times) for what, times in row.items()}
            for kind, row in figures.items()}
