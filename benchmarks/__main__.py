"""``make bench``: run all benchmarks, and write the page of the docs with plots of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.harness import RESULTS, Table, versions

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PLOTS = DOCS / "benchmarks.md", DOCS / "benchmarks"

#: Section, command, and which tables are drawn as well: a column by its name.
PARTS: list[tuple[str, list[str], dict[str, str]]] = [
    ("Function calls", ["calls"], {}),
    ("The guarded client", ["client"], {}),
    ("One decision", ["decision"], {"A decision, admitted, 1 rate": "ratio to INCR"}),
    ("Many at once", ["greenlets"], {"64 greenlets at once": "ratio to INCR"}),
    ("Many at once, threads", ["greenlets", "threads"], {}),
    ("A served app, gevent", ["served", "gevent"], {"Admitted requests": "ratio"}),
    ("A served app, gthread", ["served", "gthread"], {}),
    ("An outage", ["outage_picture"], {}),
    ("How cost grows", ["growth"], {"A decision by its number of rates": "ratio to one INCR"}),
    ("Fleets", ["fleet"], {"One server under": "p99 ms"}),
]

HEAD = """# Benchmarks

This page is written by `make bench` from one run. Everything goes through the public API: a served
app, `guard.limiter`, `guard.client`. Absolute times mean nothing beyond the machine; the ratios are
medians of contenders that took turns in one run, and the numbers of function calls are exact.

Measured with {versions}, on {cores} cores.
"""


def run(command: list[str]) -> list[Table]:
    """Run one benchmark in a process of its own and return its tables."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        path = Path(directory, "tables.json")
        env = {**os.environ, RESULTS: str(path)}
        script = [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:]]
        subprocess.run(script, env=env, check=True, stdout=sys.stderr)
        return [Table(**table) for table in json.loads(path.read_text())]


def draw(table: Table, column: str) -> str:
    """Draw one column of a table, and return the picture's file name."""
    at = table.head.index(column)
    labels = [str(row[0]) if len(row) > 1 else "" for row in table.rows]
    values = [float(row[at]) for row in table.rows]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(values) + 1.1))
    colours = ["#0a7" if "flask-redis-guard" in label else "#99a" for label in labels]
    axes.barh(range(len(values)), values, color=colours)
    axes.set_yticks(range(len(values)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(f"{table.title}: {column}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    name = "".join(c if c.isalnum() else "-" for c in table.title.lower())[:40].strip("-") + ".svg"
    figure.tight_layout()
    figure.savefig(PLOTS / name, metadata={"Date": None})
    plt.close(figure)
    return name


def main() -> None:
    """Run everything and write the page."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "flask-redis-guard"  # the same picture for the same figures
    PLOTS.mkdir(exist_ok=True)
    cores: Any = os.cpu_count()
    parts, started = [HEAD.format(versions=versions(), cores=cores)], time.monotonic()
    for title, command, drawn in PARTS:
        tables = run(command)
        parts.append(f"\n## {title}\n\n`python -m benchmarks.{' '.join(command)}`\n")
        for table in tables:
            parts.append("\n" + table.markdown())
            for beginning, column in drawn.items():
                if table.title.startswith(beginning):
                    parts.append(f"\n![{table.title}](benchmarks/{draw(table, column)})\n")
    PAGE.write_text("".join(parts))
    print(f"{PAGE} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
