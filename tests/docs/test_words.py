"""The project speaks plain technical English, so that grep and newcomers find things."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Each with what is written instead.
AVOIDED = {
    "shall": "must, will, or the present tense",
    "mend|mends|mended": "restore, fix",
    "mishap|mishaps": "error, exception",
    "whoever|whomever": "a caller, a client, an operator",
    "unannounced": "without an operation",
}
PLACES = ("docs/*.md", "*.md", "flask_redis_guard/**/*", "example_app/**/*", "benchmarks/**/*.py")
SUFFIXES = {".md", ".py", ".lua", ".html", ".js"}


@pytest.mark.parametrize("words", AVOIDED)
def test_words_that_are_avoided(words: str) -> None:
    pattern = re.compile(rf"\b({words})\b", re.IGNORECASE)
    files = {path for place in PLACES for path in ROOT.glob(place) if path.suffix in SUFFIXES}
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(files)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {AVOIDED[words]}: " + "; ".join(found)
