"""The page on the architecture lists the files that there are."""

from __future__ import annotations

import ast
import re
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "flask_redis_guard"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ENTRY = re.compile(r"^(?P<indent>[│ ├└─]*)(?P<name>[\w/]+(\.py|/))(?= |$)", re.MULTILINE)


def listed() -> set[str]:
    """The modules in the tree at the top of the page, relative to the package."""
    tree = PAGE.partition("```text\n")[2].partition("```")[0].partition("\n")[2]
    found: set[str] = set()
    folders: list[str] = []
    for match in ENTRY.finditer(tree):
        depth = len(match["indent"]) // 4 - 1
        folders = [*folders[:depth], match["name"].rstrip("/")]
        if match["name"].endswith(".py"):
            path = "/".join(folders)
            assert path not in found, f"{path} stands twice"
            found.add(path)
    return found


def test_every_module_is_listed() -> None:
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    folders = {name for name in modules if name.endswith("/__init__.py")}
    assert listed() == modules - folders


def test_floors_are_those_of_the_contract() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:floors"]["layers"].strip().splitlines()
    contract = [{name.strip(" ()") for name in re.split(r"[|:]", line)} for line in layers]
    floors = PAGE.partition("## The floors")[2].partition("```text\n")[2].partition("```")[0]
    page = [set(re.split(r",\s*", line)) for line in floors.strip().splitlines()]
    assert page == contract


def test_files_to_change_exist() -> None:
    table = PAGE.partition("## Where to change what")[2]
    named = set(re.findall(r"`([\w/-]+\.(?:py|js|md))`", table))
    named -= {"limiting/algorithms/leaky_bucket.py"}
    assert len(named) >= 36
    places = {name: ROOT if name.startswith(("tests/", "docs/")) else PACKAGE for name in named}
    missing = {name for name, place in places.items() if not (place / name).exists()}
    assert missing == set()


def test_no_two_classes_of_the_package_have_one_name() -> None:
    names = [
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(name for name, count in Counter(names).items() if count > 1) == []
