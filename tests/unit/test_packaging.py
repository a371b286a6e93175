"""The metadata and the Makefile keep their word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Stands for pytest: notes which half it was asked for, and ends as the test wants.
FAKE = """#!/bin/sh
echo "$@" >> "$ASKED"
case "$*" in *"-m timing"*) exit "$SECOND" ;; *) exit "$FIRST" ;; esac
"""


@pytest.mark.parametrize("extra", ["dev", "websocket", "prometheus", "demo", "test", "docs"])
def test_an_extra_names_each_distribution_once(extra: str) -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.extras_require"][extra].split("\n")
    names = [re.split(r"[^\w.-]", line.lower())[0] for line in lines if line]
    assert len(names) == len(set(names)), names


def test_the_pytest_plugin_is_a_module_that_there_is() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    (line,) = config["options.entry_points"]["pytest11"].strip().splitlines()
    name = line.partition("=")[2].strip()
    assert (ROOT / name / "__init__.py").exists()
    assert fnmatch(name, config["options.packages.find"]["include"])


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("first", "second", "fails"),
    [(0, 0, False), (1, 0, True), (0, 1, True), (2, 5, True), (5, 0, False), (5, 5, True)],
)
def test_make_test_runs_both_halves_and_fails_at_the_end(
    tmp_path: Path, first: int, second: int, fails: bool
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(FAKE)
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    asked = tmp_path / "asked"
    done = subprocess.run(
        ["make", "test", f"VENV={tmp_path}"],
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
            "ASKED": str(asked),
            "FIRST": str(first),
            "SECOND": str(second),
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    halves = asked.read_text().splitlines()
    assert len(halves) == 2, done.stdout + done.stderr
    assert "-m not timing" in halves[0]
    assert "-m timing" in halves[1]
    assert (done.returncode != 0) == fails
