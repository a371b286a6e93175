"""One run: all features under load, through one fault and after it, under one kind of worker."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.matrix.faults import Fault, World, named_fault
from tests.matrix.features import FEATURES, REFUSED, SERVED, SOCKETS, Answer, Feature, Load, ask
from tests.matrix.site import NOTES
from tests.support import GunicornApp, eventually

APP = "from tests.matrix.site import make_app\napp = make_app()\n"

#: Kinds of workers, with processes and threads.
MODELS: dict[str, tuple[int, int | None]] = {
    "gthread": (1, 32),
    "gevent": (1, None),
    "sync": (4, None),
}


@dataclass(frozen=True)
class Measure:
    """How long a run lasts, and what it is measured by; all in seconds.

    :param before: load ahead of the fault.
    :param after: load after its end.
    :param slack: by which a busy machine may exceed what operations may wait.
    :param recovery: within which requests are served again.
    """

    before: float = 1.5
    after: float = 3.0
    slack: float = 0.3
    recovery: float = 1.5


USUAL = Measure()

#: Seconds in which a refusal is one that waited for nothing.
AT_ONCE = 0.05

#: Megabytes that a process may have grown by: what it uses once is kept for the next time.
GROWTH = 20.0

#: Names of threads that a process keeps, one of each.
KEPT = frozenset(
    {"redis-guard-monitor", "redis-guard-alerts", "redis-guard-places", "redis-guard-engine"}
)


@dataclass
class Cell:
    """What was found of one feature in one run.

    :param statuses: of all its answers.
    :param longest: the longest wait, in seconds.
    :param refusing: seconds from the fault to the first refusal that waited for nothing.
    :param recovered: seconds from the end of the fault to the last answer that was no service.
    :param findings: what must not be.
    """

    statuses: dict[str, int]
    longest: float
    refusing: float | None
    recovered: float
    findings: list[str] = field(default_factory=list)


@dataclass
class Result:
    """What was found in one run.

    :param cells: by feature.
    :param alerts: how many of each kind.
    :param openings: how often a breaker opened.
    :param left: what processes hold afterwards that they did not hold before.
    :param findings: what must not be, of the run as a whole.
    :param took: seconds of the whole run, with its servers' start and end.
    """

    fault: str
    model: str
    seconds: float
    cells: dict[str, Cell]
    alerts: dict[str, int]
    openings: int
    left: dict[str, Any]
    findings: list[str] = field(default_factory=list)
    took: float = 0.0

    @property
    def all_findings(self) -> list[str]:
        """Those of the cells too."""
        of_cells = [f"{name}: {each}" for name, c in self.cells.items() for each in c.findings]
        return self.findings + of_cells


def run(fault: Fault, model: str, measure: Measure = USUAL) -> Result:
    """Make one run."""
    with ExitStack() as stack:
        world = fault.build(stack)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="matrix-"))
        notes = Path(directory, "notes")
        notes.touch()
        app = stack.enter_context(serve(model, world.url, notes))
        wanted = [kind for kind in FEATURES if model != "sync" or kind not in SOCKETS]
        features = [kind(app.port) for kind in wanted]
        for feature in features:
            feature.prepare()
        before = held(app)
        down, up = _through(fault, world, features, measure)
        # What was acknowledged can be asked for only then; when that is was measured already.
        eventually(lambda: all_well(app), 40, "the app serves again")
        with world.reader() as reader:
            for feature in features:
                feature.close()
                feature.verify(reader)
        after = settled(app, before)
        left = left_of(before, after)
        result = _result(fault, model, measure, features, notes, (down, up), left)
        if "Traceback" in app.log():
            result.findings.append("traceback in the log")
        if result.all_findings:
            print(app.log()[-6000:], file=sys.stderr)
        return result


def serve(model: str, url: str, notes: Path, **env: str) -> GunicornApp:
    """Return the app under a kind of worker, as a context.

    :param env: settings that are not the defaults.
    """
    workers, threads = MODELS[model]
    # With the default of 2 s its worker for gevent hangs up without an answer on whoever's request
    # it has not read within them: it, or the client, may not run for so long on a busy machine.
    patient = ("--keep-alive", "30")
    return GunicornApp(
        APP,
        worker_class=model,
        workers=workers,
        threads=threads,
        arguments=patient,
        env={"REDIS_URL": url, NOTES: str(notes), **env},
    )


def _through(
    fault: Fault, world: World, features: list[Feature], measure: Measure
) -> tuple[float, float]:
    """Load all features through the fault; return when it began and when it had ended."""
    ended = threading.Event()
    failed: list[BaseException] = []

    def act() -> None:
        try:
            fault.act(world, ended)
        except BaseException as exc:
            failed.append(exc)

    with Load(features):
        time.sleep(measure.before)
        down = time.monotonic()
        acting = threading.Thread(target=act)
        acting.start()
        ended.wait(fault.seconds)
        ended.set()
        acting.join()
        up = time.monotonic()
        time.sleep(measure.after)
    if failed:
        raise failed[0]
    return down, up


def all_well(app: GunicornApp) -> bool:
    """Whether Redis is asked again, by every process that this happens to reach."""
    return all(ask(app.port, "GET", "/client/after").status == 200 for _ in range(8))


# -- what a process holds -------------------------------------------------------------------------


def held(app: GunicornApp) -> dict[int, dict[str, Any]]:
    """Return what each process of an app holds, by its number."""
    found: dict[int, dict[str, Any]] = {}

    def asked() -> bool:
        answer = ask(app.port, "GET", "/held")
        if answer.status == 200:
            told = json.loads(answer.text)
            found[told["process"]] = told
        return len(found) == app.workers

    eventually(asked, 20, "each worker has told what it holds", interval=0.005)
    return found


def left_of(before: dict[int, dict[str, Any]], after: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what is left, the worst process of each kind."""
    pairs = [(before[process], after[process]) for process in after if process in before]
    threads = [
        name
        for old, new in pairs
        for name in (Counter(new["threads"]) - Counter([*old["threads"], *KEPT])).elements()
    ]
    left: dict[str, Any] = {"threads": threads, "workers": len(before) - len(pairs)}
    # The places that this very question takes are the same each time.
    for name in ("greenlets", "sockets", "out", "places"):
        left[name] = max((new[name] - old[name] for old, new in pairs), default=0)
    left["memory"] = round(max((new["memory"] - old["memory"] for old, new in pairs), default=0), 1)
    left["connections"] = max(new["connections"] for new in after.values())
    return left


def is_clean(left: dict[str, Any]) -> bool:
    """Whether nothing is left that should not be."""
    kinds = ("threads", "workers", "greenlets", "sockets", "out", "places")
    return not any(left[name] and left[name] != 0 and _positive(left[name]) for name in kinds)


def _positive(value: Any) -> bool:
    return bool(value) if isinstance(value, list) else value > 0


def settled(app: GunicornApp, before: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return what processes hold, once nothing is left, or after some seconds."""
    deadline = time.monotonic() + 5
    while True:
        after = held(app)
        if is_clean(left_of(before, after)) or time.monotonic() > deadline:
            return after
        time.sleep(0.2)


# -- what was found -------------------------------------------------------------------------------


def _result(
    fault: Fault,
    model: str,
    measure: Measure,
    features: list[Feature],
    notes: Path,
    times: tuple[float, float],
    left: dict[str, Any],
) -> Result:
    told = [json.loads(line) for line in notes.read_text().splitlines()]
    alerts = [each for each in told if "alert" in each]
    down, up = times
    result = Result(
        fault.name,
        model,
        round(up - down, 1),
        {feature.name: _cell(fault, feature, measure, down, up) for feature in features},
        dict(Counter(each["alert"] for each in alerts)),
        sum(each.get("state") == "open" for each in told),
        left,
    )
    once = Counter((each["process"], each["alert"], each["incident"]) for each in alerts)
    if once and max(once.values()) > 1:
        result.findings.append("an alert was sent twice")
    if not is_clean(left):
        result.findings.append(f"left: {left}")
    if left["memory"] > GROWTH:
        result.findings.append(f"{left['memory']} MB more")
    return result


def _cell(fault: Fault, feature: Feature, measure: Measure, down: float, up: float) -> Cell:
    answers = sorted(feature.answers, key=lambda answer: answer.at)
    bad = [answer for answer in answers if answer.status not in SERVED]
    fast = [a for a in answers if a.status in REFUSED and a.at >= down and a.took < AT_ONCE]
    late = [answer for answer in bad if answer.at >= up]
    cell = Cell(
        statuses={str(k): n for k, n in sorted(Counter(a.status for a in answers).items())},
        longest=round(max((answer.took for answer in answers), default=0.0), 2),
        refusing=round(min(a.ended for a in fast) - down, 2) if fast else None,
        recovered=round(max((answer.at - up for answer in late), default=0.0), 2),
    )
    cell.findings += [f"{what}: {count}" for what, count in feature.broken.items() if count]
    cell.findings += _of_answers(fault, answers, down)
    if cell.longest > feature.budget + measure.slack:
        cell.findings.append(f"waited {cell.longest:.2f} s")
    if cell.recovered > measure.recovery:
        cell.findings.append(f"served again after {cell.recovered} s")
    return cell


def _of_answers(fault: Fault, answers: list[Answer], down: float) -> list[str]:
    found = []
    odd = Counter(a.status for a in answers if a.status not in SERVED | REFUSED)
    found += [f"status {status}: {count}" for status, count in odd.items()]
    early = sum(answer.status not in SERVED and answer.ended < down - 0.1 for answer in answers)
    if early:
        found.append(f"refused before the fault: {early}")
    refused = sum(answer.status in REFUSED for answer in answers)
    if fault.served and refused:
        found.append(f"refused although Redis answered: {refused}")
    return found


def from_json(text: str) -> Result:
    """Return what :func:`main` printed."""
    told = json.loads(text)
    told["cells"] = {name: Cell(**cell) for name, cell in told["cells"].items()}
    return Result(**told)


def main(fault: str, model: str) -> None:
    """Make one run and print what was found."""
    print(json.dumps(asdict(run(named_fault(fault), model))))


if __name__ == "__main__":
    main(*sys.argv[1:])
