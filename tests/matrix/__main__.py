"""``make faults``: run all faults under all kinds of workers, and write the page of the docs.

What each run has found is kept in ``build/``. So single runs can be made anew:
``python -m tests.matrix page "Sentinel: failover" sync`` makes one and writes the page again, with
what is known of the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.matrix.faults import FAULTS, Fault, command, named_fault, possible
from tests.matrix.page import PAGE, rows, write
from tests.matrix.run import MODELS, Result, from_json

#: Where what runs have found is kept, a file for each.
KEPT = Path(__file__).resolve().parents[2] / "build" / "fault-matrix"

#: Seconds that one run may take.
LONGEST = 180


class RunFailed(Exception):
    """A run came to no result."""


def start(fault: Fault, model: str) -> Result:
    """Make one run in a process of its own, and keep what it has found.

    :raises RunFailed: with what it wrote.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="matrix-") as directory:
        try:
            done = subprocess.run(
                command(fault, model, directory),
                capture_output=True,
                text=True,
                check=False,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired as exc:
            raise RunFailed(f"not done in {LONGEST} s") from exc
    if done.returncode:
        raise RunFailed(done.stderr[-6000:])
    result = from_json(done.stdout)
    result.took = round(time.monotonic() - began, 1)
    for finding in unexplained(result):
        print(f"  {finding}", flush=True)
    if result.findings:
        print(done.stderr[-4000:], file=sys.stderr)
    keep(result)
    return result


def keep(result: Result) -> None:
    """Keep what a run has found, in place of what the last one of its kind did."""
    KEPT.mkdir(parents=True, exist_ok=True)
    number = [fault.name for fault in FAULTS].index(result.fault)
    (KEPT / f"{number}-{result.model}.json").write_text(json.dumps(asdict(result)))


def kept() -> list[Result]:
    """Return what the last runs have found, in the order of the faults."""
    paths = [KEPT / f"{number}-{model}.json" for number in range(len(FAULTS)) for model in MODELS]
    return [from_json(path.read_text()) for path in paths if path.exists()]


def unexplained(result: Result) -> list[str]:
    """Return what was found in a run that should not be."""
    reason = named_fault(result.fault).reason
    found = [finding for finding in result.findings if not reason(finding)]
    for name, cell in result.cells.items():
        found += [f"{name}: {finding}" for finding in cell.findings if not reason(finding)]
    return found


def main(*wanted: str) -> int:
    """Run the named faults and models, or all.

    :param wanted: faults and kinds of workers; ``page`` to write the page though not all is run.
    :returns: how much was found that should not be, and how many runs came to no result.
    """
    faults = [fault for fault in possible() if fault.name in wanted] or possible()
    models = [model for model in MODELS if model in wanted] or list(MODELS)
    if not wanted:
        for path in KEPT.glob("*.json"):
            path.unlink()
    results, failed = list[Result](), 0
    for fault in faults:
        for model in models:
            print(f"{fault.name}, {model}", flush=True)
            try:
                results.append(start(fault, model))
            except RunFailed as exc:
                failed += 1
                print(f"  no result: {exc}", flush=True)
    if not wanted or "page" in wanted:
        write(kept())
        print(PAGE)
    else:
        print(rows(results))
    return failed + sum(len(unexplained(result)) for result in results)


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))
