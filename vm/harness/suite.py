"""A run of many tests: what they share is made first, then they run side by side."""
import concurrent.futures
import contextlib
import os
import pathlib
import queue
import tempfile

from . import cache, engine, guest, host, image, index, kernel, pool, share, table

WORK = host.ROOT / "target/vm"
TOLD = "told: "
"""What a line of a test's log begins with that is shown when it passes, too."""


def run(tests, wanted):
    """Runs the tests on the engine; answers the exit status. The index is the only reason
    to skip one: an engine that does not work is trouble."""
    chosen = engine.choose(wanted, kernel.kernels())
    # The longest first, so that none of them is alone at the end.
    runnable = sorted((test for test in tests if chosen.name in test.engines),
                      key=lambda test: -test.limit)
    for test in tests:
        if test not in runnable:
            host.say(f"skip {test.name}: not on {chosen.name}")
    with _shared("run", ["hello", "long"]) as share_image:
        results = _run_all([_guest(test, chosen, share_image) for test in runnable], chosen)
    failed = [name for name, verdict in results.items() if not verdict.passed]
    host.say(f"{len(results) - len(failed)} passed, {len(failed)} failed, "
             f"{len(tests) - len(runnable)} skipped on {chosen.name}")
    return 1 if failed else 0


def bench(wanted, runs, installs):
    """Runs vm/guest/bench and prints its table; answers the exit status."""
    chosen = engine.choose(wanted, kernel.kernels())
    test = index.Test("bench", node="ready", storage="all kinds", limit=1200 + 600 * runs,
                      disks=(6144, 3072), directory="guest")
    with _shared("bench", ["hello", "mezzanine"] if installs else ["hello"]) as share_image:
        it = _guest(test, chosen, share_image)
        _settle(_places(chosen)[0])
        verdict = it.run(argument=f"{runs},installs" if installs else str(runs))
    _tell(it, verdict)
    if verdict.passed:
        render = table.render_installs if installs else table.render
        print("\n".join(render(verdict.log)))
    return 0 if verdict.passed else 1


def shell(wanted, node, suite, disks):
    """Boots a guest with a shell on this terminal; answers the exit status."""
    chosen = engine.choose(wanted, kernel.kernels())
    test = index.Test("shell", node=node, storage="", limit=0, suite=suite, disks=tuple(disks))
    with _shared("shell", ["hello"]) as share_image:
        it = _guest(test, chosen, share_image)
        _settle(_places(chosen)[0])
        it.interact()
    return 0


@contextlib.contextmanager
def _shared(what, projects):
    """The share image of a `run` or a `shell`, of which a tree has one at a time, with the
    tarballs of these projects."""
    farmctl = host.build_farmctl()
    WORK.mkdir(parents=True, exist_ok=True)
    with (cache.turn(WORK, what, f"another {what} in this tree"),
          tempfile.TemporaryDirectory(prefix=f".{what}.", dir=WORK) as place):
        share_image = pathlib.Path(place) / "share.img"
        share.share(farmctl, projects, share_image)
        yield share_image


def _guest(test, chosen, share_image):
    place = WORK / chosen.name / test.name
    machine = engine.Machine(
        kernels=kernel.kernels(), image=image.image(test.suite, test.node),
        overlay=place / "root.cow", writable=[], parameters=[],
        read_only=[share_image, pool.pool(test.suite) / "pool.img"])
    return guest.Guest(test, chosen, machine, place, os.environ.get("FARMCTL_TEST_KEEP") == "1")


def _places(chosen):
    """The processors of each guest that runs at once, as long as there is memory for it."""
    have, each = sorted(os.sched_getaffinity(0)), chosen.processors
    places = [have[at:at + each] for at in range(0, len(have) - each + 1, each)] or [have]
    return places[:max(1, host.memory_free() // ((engine.MEMORY_MIB + 512) << 20))]


def _settle(place):
    """Keeps this thread, and the guests it starts, on these processors."""
    os.sched_setaffinity(0, place)


def _run_all(guests, chosen):
    results, places = {}, queue.SimpleQueue()
    free = _places(chosen)
    for place in free:
        places.put(place)
    with concurrent.futures.ThreadPoolExecutor(
            len(free), initializer=lambda: _settle(places.get())) as threads:
        running = {threads.submit(it.run): it for it in guests}
        try:
            for done in concurrent.futures.as_completed(running):
                it, verdict = running[done], done.result()
                results[it.test.name] = verdict
                _tell(it, verdict)
        except BaseException:
            for it in guests:
                it.stop()
            threads.shutdown(cancel_futures=True)
            raise
    return results


def _tell(it, verdict):
    line = f"{it.test.name} ({it.test.storage}, {it.engine.name}, {verdict.seconds:.0f} s)"
    if verdict.passed:
        host.say(f"ok   {line}")
        for text in verdict.log.splitlines():
            if text.startswith(TOLD):
                host.say(f"     {text.removeprefix(TOLD)}")
        return
    host.say(f"FAIL {line}: {verdict.words}")
    console = max(it.place.glob("console-*"), key=lambda path: path.stat().st_mtime)
    log = verdict.log or console.read_text(encoding="utf-8", errors="replace")
    for text in log.splitlines()[-12:]:
        host.say(f"     | {text}")
    host.say(f"     console, journal and logs: {it.place.relative_to(host.ROOT)}")
