"""Every Python block of the documentation runs, page by page, against a real server.

The blocks of a page share one namespace and one process. ``REDIS_URL`` names an empty server and
``ENVIRONMENT`` is unset, as in production. :mod:`tests.docs.blocks` has the comments that change
this. The tutorial's blocks run in the test of their own, as files.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.docs.blocks import FILES, PAGES, ROOT, Block, blocks, name_of
from tests.support import RedisServer, run_python

RUNNER = """
import json, os
namespace = {"__name__": "documentation"}
for line, source in json.loads(os.environ["BLOCKS"]):
    exec(compile("\\n" * line + source, os.environ["PAGE"], "exec"), namespace)
"""


def python_blocks(text: str) -> list[Block]:
    """The blocks of Python of a page."""
    return [block for block in blocks(text) if block.language == "python"]


def missing(block: Block) -> str:
    """The module that the block needs and that is not here."""
    needed = block.marks.get("needs", "")
    try:
        return "" if not needed or importlib.util.find_spec(needed) else needed
    except ModuleNotFoundError:  # not even the package that it is in
        return needed


def run_blocks(
    wanted: list[Block],
    page: Path,
    server: RedisServer,
    checks: str = "",
    environ: dict[str, str] | None = None,
) -> None:
    """Run blocks in an interpreter of their own, and then what else the test wants to see."""
    run_python(
        RUNNER + checks,
        timeout=60,
        env={
            "BLOCKS": json.dumps([(block.line, block.source) for block in wanted]),
            "PAGE": str(page),
            "REDIS_URL": server.url,
            **(environ or {}),
        },
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_of_page_run(page: Path, redis_server: RedisServer) -> None:
    found = python_blocks(page.read_text())
    found = [block for block in found if not FILES & block.marks.keys()]
    for block in found:
        compile(block.source, f"{name_of(page)}:{block.line}", "exec")
    wanted = [block for block in found if not block.skipped and not missing(block)]
    if wanted:
        run_blocks(wanted, page, redis_server)
    if absent := {missing(block) for block in found} - {""}:
        pytest.skip(f"without {', '.join(sorted(absent))}, in the extra `recipes`")


def test_blocks_are_found_where_they_stand() -> None:
    page = "```python\na = 1\n```\n- x\n\n  ```py\n  b = 2\n  ```\n```console\n$ no\n```\n"
    assert [(block.line, block.source) for block in python_blocks(page)] == [
        (1, "a = 1"),
        (6, "b = 2"),
    ]


def test_skip_needs_a_reason() -> None:
    page = "<!-- skip: {} -->\n```python\nboom\n```\n```python\nnext\n```\n"
    assert [block.skipped for block in python_blocks(page.format("mail"))] == [True, False]
    with pytest.raises(ValueError, match="reason"):
        python_blocks(page.format(""))


def test_failure_names_page_and_line() -> None:
    lines = json.dumps([(6, "1 / 0")])
    with pytest.raises(AssertionError, match=r'page.md", line 7'):
        run_python(RUNNER, env={"BLOCKS": lines, "PAGE": str(ROOT / "page.md")})
