"""``make fuzz``: one test of :mod:`tests.fuzz` under atheris, or all, for some seconds each.

What was tried is kept, so that the next run goes on from there; an input that fails is shown, and
left as a file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Where inputs are kept.
CORPUS = Path(__file__).resolve().parents[2] / ".fuzz"


def tests() -> dict[str, Any]:
    """Return the tests by their name."""
    from tests.fuzz import test_parsers

    return {
        name.removeprefix("test_"): test
        for name, test in vars(test_parsers).items()
        if name.startswith("test_") and hasattr(test, "hypothesis")
    }


def look(name: str, seconds: str) -> None:
    """Look for inputs that fail; does not come back."""
    import atheris

    with atheris.instrument_imports(include=["flask_redis_guard"]):
        test = tests()[name]
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={corpus}-", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def main(seconds: str = "30", *names: str) -> int:
    """Run each test in a process of its own; return how many failed."""
    failed = []
    for name in names or tests():
        print(f"{name}, {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "look", name, seconds]
        if subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": "0"}, check=False
        ).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["look"]:
        look(*sys.argv[2:])
    else:
        sys.exit(min(1, main(*sys.argv[1:])))
