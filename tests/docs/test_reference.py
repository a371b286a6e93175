"""The reference renders every public name, and every one of them says what it is."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flask_redis_guard
from flask_redis_guard import testing
from flask_redis_guard.contrib import socketio

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
MODULES: tuple[ModuleType, ...] = (flask_redis_guard, socketio, testing)
DIRECTIVE = re.compile(
    r"^\.\. (auto|py:)(?P<kind>class|function|exception|data):: (?P<path>[\w.]+)$", re.MULTILINE
)

PUBLIC = {f"{module.__name__}.{name}" for module in MODULES for name in module.__all__}


def resolve(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_reference_has_every_public_name_once() -> None:
    found = [match["path"] for match in DIRECTIVE.finditer(PAGE.read_text())]
    assert len(PUBLIC) > 30
    assert len(found) == len(set(found)), "a name stands twice"
    assert set(found) == PUBLIC


def test_reference_renders_each_name_as_what_it_is() -> None:
    for match in DIRECTIVE.finditer(PAGE.read_text()):
        value = resolve(match["path"])
        if isinstance(value, type):
            kind = "exception" if issubclass(value, Exception) else "class"
        else:
            kind = "function" if inspect.isfunction(value) else "data"
        assert match["kind"] == kind, match["path"]


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_every_public_function_describes_its_parameters(path: str) -> None:
    value = resolve(path)
    if inspect.isfunction(value):
        described = [value]
    elif isinstance(value, type):
        members = vars(value).values()
        described = [m for m in members if inspect.isfunction(m) and not m.__name__.startswith("_")]
        assert value.__doc__, path
    else:
        return  # a signal or the session: the page shows the text beside it
    for function in described:
        text = inspect.getdoc(function) or ""
        if path == "flask_redis_guard.GuardedSessionInterface" and not text:
            continue  # Flask's own hooks
        assert text, f"{path}.{function.__name__}"
