"""Blocks that are no Python say what exists: commands, options, targets, extras, syntax."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import click
import pytest
import yaml
from flask import Flask

from flask_redis_guard import RedisGuard
from tests.docs.blocks import PAGES, ROOT, Block, blocks, commands, name_of

#: Programs that are not ours. A command of the pages begins with one of these, or is checked below.
FOREIGN = {"apt", "cd", "curl", "docker", "git", "heroku", "kill", "kubectl", "nginx", "pre-commit"}
FOREIGN |= {"redis-cli", "sudo", "systemctl", "tox", "twine", "uwsgi", "gunicorn"}
FOREIGN |= {".", "pytest", "sleep"}


def setup() -> ConfigParser:
    """The project's metadata."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def check_pip(words: list[str]) -> None:
    """What is installed of ours has the extras that are named."""
    assert words[0] == "install", words
    extras = setup()["options.extras_require"]
    for word in words[1:]:
        if named := re.fullmatch(r"(flask-redis-guard|\.)\[(?P<extras>[\w,]+)\]", word):
            for extra in named["extras"].split(","):
                assert extra in extras, extra


def check_make(words: list[str]) -> None:
    """The targets exist."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    unknown = {word for word in words if "=" not in word and word not in targets}
    assert not unknown, unknown


def check_flask(words: list[str]) -> None:
    """The command of ``flask redis-guard`` takes these arguments."""
    if "redis-guard" not in words:
        assert {"run", "routes"} & {*words}, words  # Flask's own
        return
    app = Flask("shop")
    RedisGuard(app)
    group = app.cli.commands["redis-guard"]
    assert isinstance(group, click.Group)
    name, *arguments = words[words.index("redis-guard") + 1 :]
    command = group.get_command(click.Context(group), name)
    assert command is not None, name
    command.make_context(name, arguments)  # click's own error, if it cannot


def check_python(words: list[str]) -> None:
    """The module exists."""
    if words[0] != "-m":
        assert words[0] in {"-V", "-c"} or (ROOT / words[0]).exists(), words
        return
    if words[1] == "pip":
        check_pip(words[2:])
    assert importlib.util.find_spec(words[1]), words[1]


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "pip": check_pip,
    "make": check_make,
    "flask": check_flask,
    "python": check_python,
    "python3": check_python,
}


def check_command(command: str) -> None:
    """Whatever can be known of a command without running it.

    :raises AssertionError: for a program, a target, an extra or an option that there is not.
    """
    for part in re.split(r"\s(?:&&|\|)\s|;\s", re.sub(r"\s#\s.*", "", command)):
        words = shlex.split(part)
        while words and re.match(r"^[A-Z_]+=", words[0]):
            del words[0]
        if not words:
            continue
        program = words[0].removeprefix(".venv/bin/")
        if check := CHECKS.get(program):
            check(words[1:])
        else:
            assert program in FOREIGN or (ROOT / program).exists(), f"unknown program {program}"


def check_console(source: str) -> None:
    """Every command of the block."""
    found = list(commands(source))
    assert found, "a console block without a command"
    for command, _ in found:
        check_command(command)


def check_ini(source: str) -> None:
    """Sections and keys, as systemd and uWSGI write them; a key may stand twice."""
    for line in source.splitlines():
        assert re.match(r"^(\s*([#;].*)?|\[\w+\]|[\w-]+ *=.*)$", line), line


def check_dockerfile(source: str) -> None:
    """Lines begin with an instruction, the first one with FROM."""
    lines = [line for line in source.replace("\\\n", " ").splitlines() if line.strip(" ")]
    steps = [line.split()[0] for line in lines if not line.startswith("#")]
    known = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENV", "EXPOSE", "CMD", "HEALTHCHECK"}
    assert steps[0] == "FROM"
    assert set(steps) <= known, steps


def check_nginx(source: str) -> None:
    """Directives end with a semicolon or open a block, and all blocks are closed."""
    depth = 0
    for line in source.splitlines():
        code = line.partition("#")[0].strip()
        assert not code or code[-1] in ";{}", line
        depth += code.count("{") - code.count("}")
        assert depth >= 0, line
    assert depth == 0


LANGUAGES: dict[str, Callable[[str], object]] = {
    "console": check_console,
    "dockerfile": check_dockerfile,
    "ini": check_ini,
    "json": json.loads,
    "nginx": check_nginx,
    "python": lambda source: None,  # in a test of their own
    "text": lambda source: None,
    "yaml": lambda source: list(yaml.safe_load_all(source)),
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_exists(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language.startswith("{"):
            continue  # a directive, which Sphinx checks
        assert block.language in LANGUAGES, f"line {block.line}: which language is this?"
        try:
            LANGUAGES[block.language](block.source)
        except (AssertionError, ValueError, click.ClickException, yaml.YAMLError) as error:
            pytest.fail(f"{name_of(page)}, block of line {block.line}: {error}")


@pytest.mark.parametrize(
    "command",
    [
        "make tset",
        "pip install 'flask-redis-guard[devv]'",
        "flask --app shop redis-guard chek",
        "flask --app shop redis-guard show 192.0.2.7 --rout login",
        "python -m benchmarks.clint",
        "REDIS_URL=redis://h frobnicate",
    ],
)
def test_commands_that_do_not_exist_are_found(command: str) -> None:
    with pytest.raises((AssertionError, click.ClickException, ModuleNotFoundError)):
        check_command(command)


def test_config_that_does_not_parse_is_found() -> None:
    with pytest.raises(yaml.YAMLError):
        LANGUAGES["yaml"]("a: [1")
    with pytest.raises(AssertionError):
        check_nginx("location / {\n  proxy_pass http://a\n}")
    with pytest.raises(AssertionError):
        check_ini("[Service]\nExecStart /usr/bin/true")


def test_marks_belong_to_the_next_block_only() -> None:
    page = "<!-- needs: no_such -->\n\n```python\na\n```\ntext\n```python\nb\n```\n"
    assert [block.marks for block in blocks(page)] == [{"needs": "no_such"}, {}]
    assert isinstance(blocks(page)[0], Block)
