"""``make soak``: random faults, one after the other, under load; and nothing grows.

Both apps, of threads and of greenlets, stand behind one proxy before one server.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.matrix.faults import DURABLE, FAULTS, Fault, World, as_user, direct, proxied
from tests.matrix.features import FEATURES, REFUSED, SERVED, Feature, Load
from tests.matrix.page import PAGE, write_soak
from tests.matrix.run import all_well, held, is_clean, left_of, serve, settled
from tests.support import GunicornApp, Proxy, RedisServer, eventually

MODELS = ("gthread", "gevent")

#: Seconds of a fault, and of calm after it.
FAULT, CALM = (0.5, 4.0), 4.0

#: With the default of 30 s a server that fails again and again is asked so seldom that little would
#: be tried.
OPEN = "2"

#: Megabytes that a process may grow by after the first quarter.
GROWTH = 6.0


def suitable() -> list[Fault]:
    """Return the faults that one server behind a proxy can have, and that keep its data."""
    return [
        fault
        for fault in FAULTS
        if not (fault.forgets or fault.apart or fault.build is as_user or not fault.seconds)
        and (fault.build is proxied or fault.build.__qualname__.startswith(direct.__qualname__))
    ]


class Site:
    """One app under load, and the memory of its process after each calm.

    :param model: its kind of worker.
    """

    def __init__(self, model: str, url: str, stack: ExitStack) -> None:
        self.model = model
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))
        notes = Path(directory, "notes")
        notes.touch()
        self.app: GunicornApp = stack.enter_context(
            serve(model, url, notes, REDIS_GUARD_OPEN_SECONDS=OPEN)
        )
        self.features: list[Feature] = [kind(self.app.port) for kind in FEATURES]
        for feature in self.features:
            feature.prepare()
        self.before = held(self.app)
        #: Seconds since the beginning, and megabytes.
        self.memory: list[tuple[float, float]] = []

    def look(self, began: float) -> None:
        """Note how much memory it has now."""
        (now,) = held(self.app).values()
        self.memory.append((time.monotonic() - began, now["memory"]))

    def end(self, reader: Any) -> tuple[dict[str, Any], list[str]]:
        """Return what is left, and what must not be."""
        for feature in self.features:
            feature.close()
            feature.verify(reader)
        left = left_of(self.before, settled(self.app, self.before))
        found = [f"left: {left}"] if not is_clean(left) else []
        for feature in self.features:
            found += [f"{feature.name}: {what}: {n}" for what, n in feature.broken.items() if n]
            found += [
                f"{feature.name}: status {one.status} after {one.took:.1f} s {one.text[:60]}"
                for one in feature.answers
                if one.status not in SERVED | REFUSED
            ]
        if self.growth > GROWTH:
            found.append(f"{self.growth:.1f} MB more after the first quarter")
        if "Traceback" in self.app.log():
            found.append(f"traceback in the log: {self.app.log()[-3000:]}")
        return left, found

    @property
    def growth(self) -> float:
        """Megabytes by which the last quarter is above the second."""
        quarter = max(1, len(self.memory) // 4)
        sizes = [size for _, size in self.memory]
        second, last = sizes[quarter : 2 * quarter] or sizes, sizes[-quarter:]
        return sum(last) / len(last) - sum(second) / len(second)


def soak(seconds: float) -> int:
    """Let faults follow one another, and write what was found into the page.

    :returns: how much must not be.
    """
    dice, faults, made = random.Random(), suitable(), 0
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(options=DURABLE))
        proxy = stack.enter_context(Proxy(server.port))
        world = World(proxy.url, server.client, server, proxy)
        sites = [Site(model, world.url, stack) for model in MODELS]
        began = time.monotonic()
        with ExitStack() as loads:
            for site in sites:
                loads.enter_context(Load(site.features))
            while time.monotonic() < began + seconds:
                fault = dice.choice(faults)
                print(f"{time.monotonic() - began:.0f} s: {fault.name}", flush=True)
                _make(fault, world, dice.uniform(*FAULT))
                made += 1
                time.sleep(CALM)
                for site in sites:
                    site.look(began)
        took = time.monotonic() - began
        eventually(lambda: all(all_well(site.app) for site in sites), 40, "all is well again")
        ends = {site.model: site.end(server.client()) for site in sites}
        write_soak(_text(took, made, len(faults), sites, ends))
    findings = [f"{model}: {one}" for model, (_, found) in ends.items() for one in found]
    print("\n".join(findings) or "nothing is wrong")
    print(PAGE)
    return len(findings)


def _make(fault: Fault, world: World, seconds: float) -> None:
    ended = threading.Event()
    failed: list[BaseException] = []

    def act() -> None:
        try:
            fault.act(world, ended)
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=act)
    thread.start()
    ended.wait(seconds)
    ended.set()
    thread.join()
    if failed:
        raise failed[0]


def _text(
    seconds: float,
    made: int,
    kinds: int,
    sites: list[Site],
    ends: dict[str, tuple[dict[str, Any], list[str]]],
) -> str:
    lines = [
        f"\n`make soak`: {seconds:.0f} s, {made} faults of {kinds} kinds one after the other, each "
        f"for {FAULT[0]:g} to {FAULT[1]:g} s and {CALM:g} s of calm after it, all features under "
        "load, `REDIS_GUARD_OPEN_SECONDS` is 2. Memory is that of the process after each calm; "
        "growth is from the second quarter to the last. Gunicorn runs with `--keep-alive 30`: its "
        "worker for gevent [hangs up](deployment.md#gunicorn) on requests that "
        "it has not read within 2 s, the likely end of two requests of 127,000 that got no answer "
        "in a run before, on a busy machine.\n\n",
        "| workers | served | refused | other | memory, MB: least, most | growth, MB | "
        "threads, greenlets, sockets, places left | what must not be |\n",
        "|---|---|---|---|---|---|---|---|\n",
    ]
    for site in sites:
        left, found = ends[site.model]
        statuses = [answer.status for feature in site.features for answer in feature.answers]
        served = sum(status in SERVED for status in statuses)
        refused = sum(status in REFUSED for status in statuses)
        sizes = [size for _, size in site.memory]
        kept = [len(left["threads"]), *(left[n] for n in ("greenlets", "sockets", "places"))]
        lines.append(
            f"| {site.model} | {served} | {refused} | {len(statuses) - served - refused} | "
            f"{min(sizes):.1f}, {max(sizes):.1f} | {site.growth:+.1f} | "
            f"{', '.join(str(max(0, kind)) for kind in kept)} | {'; '.join(found) or 'nothing'} |\n"
        )
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(min(1, soak(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0)))
