"""The fenced blocks of the Markdown pages, and what the comment before each says of it.

``<!-- skip: reason -->``
    The block is compiled and not run.
``<!-- needs: module -->``
    The block runs where the module can be imported.
``<!-- file: NAME -->``, ``append``, ``below``, ``replace``, ``serve``, ``redis``
    Read by the test of the tutorial only, which says what they mean.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Every page that a reader may open: those at the top, and those of the site.
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("docs/[!_]*.md")])
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|:{3,})(?P<info>.*)$")
#: Marks of blocks that are parts of files.
FILES = {"file", "append", "below", "replace"}
NAMES = "|".join(["skip", "needs", "serve", "redis", *sorted(FILES)])
MARK = re.compile(rf"<!--\s*(?P<name>{NAMES})(: ?(?P<text>.*?))?\s*-->")


@dataclass(frozen=True)
class Block:
    """A block and the line its fence stands on, counted from one."""

    line: int
    language: str
    source: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        """Whether it must not run."""
        return "skip" in self.marks


def name_of(page: Path) -> str:
    """The page's path within the project."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[Block]:
    """The blocks of a page, outermost fences only.

    :raises ValueError: for a fence that never ends and a mark that says nothing.
    """
    found = []
    lines = iter(enumerate(text.splitlines(), start=1))
    marks: dict[str, str] = {}
    for number, line in lines:
        if opened := FENCE.match(line):
            body = _body(lines, opened["ticks"], number)
            # Options of a directive, such as `:caption:`, become blank lines.
            directive = opened["info"].startswith("{")
            kept = ["" if directive and re.match(r" *:[\w-]+:", item) else item for item in body]
            source = textwrap.dedent("\n".join(kept))
            found.append(Block(number, _language(opened["info"]), source, marks))
            marks = {}
        elif mark := MARK.search(line):
            if mark["name"] != "serve" and not mark["text"]:
                raise ValueError(f"line {number}: {mark['name']} needs a reason or a name")
            marks = {**marks, mark["name"]: mark["text"] or ""}
        elif line.strip():
            marks = {}
    return found


def _language(info: str) -> str:
    """The language of a fence; of a directive that is no code its name in braces."""
    code = re.fullmatch(r"\{code(-block)?\}\s+(?P<language>\w+)", info.strip())
    language = code["language"] if code else (info.split() or [""])[0]
    return {"py": "python", "yml": "yaml", "sh": "console"}.get(language, language)


def _body(lines: Iterator[tuple[int, str]], ticks: str, start: int) -> list[str]:
    body: list[str] = []
    for _, line in lines:
        if line.strip() == ticks:
            return body
        body.append(line)
    raise ValueError(f"line {start}: the block never ends")


def commands(source: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown below it."""
    command = ""
    output: list[str] = []
    for line in source.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            if command:
                yield command, "\n".join(output)
            command, output = line[2:], []
        else:
            output.append(line)
    if command:
        yield command, "\n".join(output)
