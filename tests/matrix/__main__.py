"""``make faults``: run all faults under all kinds of workers, and write the page of the docs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from tests.matrix.faults import Fault, command, possible
from tests.matrix.page import PAGE, rows, write
from tests.matrix.run import MODELS, Result, from_json


def start(fault: Fault, model: str) -> Result:
    """Make one run in a process of its own.

    :raises RuntimeError: with what it wrote, if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="matrix-") as directory:
        done = subprocess.run(
            command(fault, model, directory),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    if done.returncode:
        raise RuntimeError(f"{fault.name}, {model}:\n{done.stderr}")
    result = from_json(done.stdout)
    for finding in result.all_findings:
        print(f"  {finding}", flush=True)
    if result.findings:
        print(done.stderr[-4000:], file=sys.stderr)
    return result


def main(*wanted: str) -> int:
    """Run the named faults and models, or all; return how many cells did not hold.

    The page is written when all were run.
    """
    faults = [fault for fault in possible() if not wanted or fault.name in wanted]
    faults = faults or possible()
    models = [model for model in MODELS if model in wanted] or list(MODELS)
    began, results = time.monotonic(), []
    for fault in faults:
        for model in models:
            print(f"{fault.name}, {model}", flush=True)
            results.append(start(fault, model))
    seconds = time.monotonic() - began
    if not wanted:
        write(results, seconds)
        print(f"{PAGE} after {seconds:.0f} s")
    else:
        print(rows(results))
    return sum(len(result.all_findings) for result in results)


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))
