"""Every Python block in README.md and docs/ runs, page by page, against a real server.

The blocks of a page share one namespace and one process. ``REDIS_URL`` names an empty server and
``ENVIRONMENT`` is unset, as in production. A block that cannot run says why, on the line before
it: ``<!-- skip: needs a mail server -->``.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import RedisServer, run_python

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("README.md"), *(ROOT / "docs").glob("[!_]*.md")])
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|:{3,})(?P<info>.*)$")
PYTHON = re.compile(r"^(python|py|\{code(-block)?\} *python)\b")
SKIP = re.compile(r"<!--\s*skip:\s*(?P<reason>.*?)\s*-->")

RUNNER = """
import json, os
namespace = {"__name__": "documentation"}
for line, source in json.loads(os.environ["BLOCKS"]):
    exec(compile("\\n" * line + source, os.environ["PAGE"], "exec"), namespace)
"""


@dataclass(frozen=True)
class Block:
    """A block of Python and the line its fence stands on, counted from one."""

    line: int
    source: str
    skipped: bool


def python_blocks(text: str) -> list[Block]:
    """The blocks of a page, outermost fences only.

    :raises ValueError: for a fence that never ends and a skip that gives no reason.
    """
    blocks = []
    lines = iter(enumerate(text.splitlines(), start=1))
    before = ""
    for number, line in lines:
        opened = FENCE.match(line)
        if opened:
            body = _body(lines, opened["ticks"], number)
            if PYTHON.match(opened["info"].strip()):
                skip = SKIP.search(before)
                if skip and not skip["reason"]:
                    raise ValueError(f"line {number}: a skipped block needs a reason")
                # Options of a directive, such as `:caption:`, become blank lines.
                kept = ["" if re.match(r" *:[\w-]+:", item) else item for item in body]
                source = textwrap.dedent("\n".join(kept))
                blocks.append(Block(number, source, skip is not None))
        before = line if line.strip() else before
    return blocks


def _body(lines: Iterator[tuple[int, str]], ticks: str, start: int) -> list[str]:
    body: list[str] = []
    for _, line in lines:
        if line.strip() == ticks:
            return body
        body.append(line)
    raise ValueError(f"line {start}: the block never ends")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_page_run(page: Path, redis_server: RedisServer) -> None:
    wanted = [block for block in python_blocks(page.read_text()) if not block.skipped]
    if wanted:
        run_python(
            RUNNER,
            timeout=60,
            env={
                "BLOCKS": json.dumps([(block.line, block.source) for block in wanted]),
                "PAGE": str(page),
                "REDIS_URL": redis_server.url,
            },
        )


def test_blocks_are_found_where_they_stand() -> None:
    page = "```python\na = 1\n```\n- x\n\n  ```py\n  b = 2\n  ```\n```console\n$ no\n```\n"
    assert [(block.line, block.source) for block in python_blocks(page)] == [
        (1, "a = 1"),
        (6, "b = 2"),
    ]


def test_skip_needs_a_reason() -> None:
    page = "<!-- skip: {} -->\n```python\nboom\n```\n"
    assert python_blocks(page.format("needs mail"))[0].skipped
    with pytest.raises(ValueError, match="reason"):
        python_blocks(page.format(""))


def test_failure_names_page_and_line() -> None:
    blocks = json.dumps([(6, "1 / 0")])
    with pytest.raises(AssertionError, match=r'page.md", line 7'):
        run_python(RUNNER, env={"BLOCKS": blocks, "PAGE": "page.md"})
