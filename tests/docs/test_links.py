"""Every relative link of the pages leads to a file and a heading that are there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, name_of

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)[^)]*\)")
SOURCE = re.compile(r'(?:src|href|srcset)="(?P<target>[^"]+)"')
CODE = re.compile(r"^( *)(`{3,}|:{3,}).*?^\1\2$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx make them, and its own."""
    text = page.read_text()
    found = set(re.findall(r"^\((\S+)\)=$", text, re.MULTILINE))
    for heading in re.findall(r"^#+ +(.+)$", re.sub(CODE, _inline, text), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.strip().replace(" ", "-"))
    return found


def _inline(match: re.Match[str]) -> str:
    return match[0] if "\n" not in match[0] and not match[0].startswith("```") else ""


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    text = re.sub(CODE, "", page.read_text())
    found = []
    for match in [*LINK.finditer(text), *SOURCE.finditer(text)]:
        target = match["target"]
        if re.match(r"^[a-z]+:", target):
            continue  # somebody else's
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        if not goal.exists() or (anchor and goal.suffix == ".md" and anchor not in anchors(goal)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n\n[x](#a-b-c) [y](#a-c) [z](other.md) `[code](no.md)`\n")
    assert broken(page) == ["#a-c", "other.md"]
