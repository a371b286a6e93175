"""Metadata, tox and workflows say the same, and what runs elsewhere is pinned."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: The extras that add something to the package, for those who install it.
FOR_USERS = ("audit", "dev", "prometheus", "socketio", "websocket")
#: Where packages and images come from is everybody's own affair.
REGISTRIES = re.compile(r"\b(py" r"pi\.org|pythonhosted\.org|docker\.io|ghcr\.io|quay\.io)\b")


def read(name: str) -> ConfigParser:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / name)
    return config


def requirements(lines: str) -> dict[str, Requirement]:
    """The requirements of a value in ``setup.cfg``, by name."""
    texts = [line for line in lines.splitlines() if line.strip() and not line.startswith("#")]
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


def installed_by_users() -> dict[str, Requirement]:
    config = read("setup.cfg")
    found = requirements(config["options"]["install_requires"])
    for extra in FOR_USERS:
        found |= requirements(config["options.extras_require"][extra])
    return found


def test_all_is_what_users_can_install() -> None:
    (everything,) = requirements(read("setup.cfg")["options.extras_require"]["all"]).values()
    assert everything.name == "flask-redis-guard"
    assert everything.extras == {*FOR_USERS}


def test_lowest_is_what_the_metadata_promises() -> None:
    pinned = requirements(read("tox.ini")["testenv:lowest"]["deps"])
    promised = {name: found for name, found in installed_by_users().items() if found.specifier}
    assert pinned.keys() == promised.keys()
    for name, requirement in promised.items():
        (lowest,) = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        assert str(pinned[name].specifier) == f"=={lowest}", name


def test_every_classifier_of_a_python_is_tested() -> None:
    promised = {
        line.rpartition(" ")[2]
        for line in read("setup.cfg")["metadata"]["classifiers"].splitlines()
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    }
    tested = re.findall(r"^py3(\d+)-", read("tox.ini")["tox"]["envlist"], re.MULTILINE)
    assert {f"3.{minor}" for minor in tested} == promised


def test_changes_begin_with_the_version_of_the_metadata() -> None:
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGES.md").read_text(), re.MULTILINE)
    assert heading
    assert re.match(r"\[?[\d.]+", heading[1])
    assert heading[1].split()[0].strip("[]") == read("setup.cfg")["metadata"]["version"]


def uses(node: Any) -> list[str]:
    """Every action that a workflow uses."""
    if isinstance(node, list):
        return [found for item in node for found in uses(item)]
    if isinstance(node, dict):
        here = [node["uses"]] if isinstance(node.get("uses"), str) else []
        return here + [found for item in node.values() for found in uses(item)]
    return []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_rights_are_named(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    actions = uses(workflow)
    assert actions
    for action in actions:
        assert re.search(r"@[0-9a-f]{40}$", action), action
        assert re.search(re.escape(action) + r" # v\d+\.\d+\.\d+$", path.read_text(), re.MULTILINE)


def test_files_of_yaml_can_be_read() -> None:
    files = [*ROOT.glob(".*.yaml"), *(ROOT / ".github").rglob("*.yml")]
    assert len(files) >= 8
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path.name


def test_workflow_runs_the_matrix_of_tox() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    cells = workflow["jobs"]["matrix"]["strategy"]["matrix"]["include"]
    assert {cell["env"] for cell in cells} == set(read("tox.ini")["tox"]["envlist"].split())
    for cell in cells:
        major, minor = cell["python"].split(".")
        assert cell["env"].startswith((f"py{major}{minor}-", "lowest")), cell


def test_workflows_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        wanted = set(re.findall(r"run: make ([\w-]+)", path.read_text()))
        assert wanted <= targets, path.name


def test_no_file_names_a_registry() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout")
    found = []
    for name in done.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and REGISTRIES.search(path.read_text(errors="replace")):
            found.append(name)
    assert found == []
