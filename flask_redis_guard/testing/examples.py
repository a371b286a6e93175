"""What the audit calls: every route that it can call by itself, and examples of others."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from flask_redis_guard.errors import GuardError
from flask_redis_guard.runtime import EXTENSION

#: Words in a path or endpoint that make a ``POST`` a login, unless its example says otherwise.
_LOGIN_WORDS: Final = ("login", "log_in", "log-in", "signin", "sign_in", "sign-in")


@dataclass(frozen=True)
class Example:
    """A request that the audit makes.

    :param path: with a query string if there is one.
    :param method: the HTTP method.
    :param headers: of the request.
    :param json: sent as JSON.
    :param form: sent as a form.
    :param body: sent as it is.
    :param name: how other examples and the report call it; the method and the path if not given.
    :param after: the name of another example that the same client makes before, while Redis is
        healthy: a login. What that one comes after comes first.
    :param login: whether it logs in, so that nobody may be told that it worked while the session
        cannot be stored. If not given: a ``POST`` whose path or endpoint says so, where the
        app's sessions are in Redis.
    :param accept: verdicts that are known and accepted for this request, such as ``bypass`` where
        ``on_outage="allow"`` was chosen.
    """

    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, Any] | None = None
    body: str | bytes | None = None
    name: str = ""
    after: str = ""
    login: bool | None = None
    accept: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name, or the method and the path."""
        return self.name or f"{self.method} {self.path}"

    def arguments(self) -> dict[str, Any]:
        """Return what Flask's test client is called with."""
        given = {"json": self.json, "data": self.form if self.body is None else self.body}
        return {
            "path": self.path,
            "method": self.method,
            "headers": dict(self.headers),
            **{name: value for name, value in given.items() if value is not None},
        }


#: A file, a function or the examples themselves.
Examples = str | Path | Iterable["Example | Mapping[str, Any]"] | Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Skipped:
    """A route or example that was not judged."""

    title: str
    reason: str


def load(given: Examples | None) -> list[Example]:
    """Return the examples that a user gave.

    :param given: a JSON file with a list of objects, ``"module:function"``, a function that
        returns examples, or the examples; each an :class:`Example` or a mapping with its fields.
    :raises GuardError: for what cannot be read, an unknown field, two of one name, and what
        comes after nothing or itself.
    """
    found: Any = () if given is None else given
    if isinstance(found, str | Path):
        found = _read(str(found))
    if callable(found):
        found = found()
    examples = [_example(one) for one in found]
    by_name: dict[str, Example] = {}
    for one in examples:
        if by_name.setdefault(one.title, one) is not one:
            raise GuardError(f"There are two examples {one.title!r}: give each a name of its own")
    for one in examples:
        passed = [one.title]
        while one.after:
            if one.after not in by_name:
                raise GuardError(f"{one.title}: no example named {one.after!r} can come before it")
            if one.after in passed:
                raise GuardError(f"{one.title}: it would have to come before itself")
            passed.append(one.after)
            one = by_name[one.after]
    return examples


def _read(named: str) -> Any:
    module, colon, function = named.partition(":")
    try:
        if colon and not Path(named).exists():
            return getattr(importlib.import_module(module), function)
        return json.loads(Path(named).read_text())
    except (OSError, ValueError, ImportError, AttributeError) as exc:
        raise GuardError(f"Examples cannot be read from {named}: {exc}") from exc


def _example(given: Any) -> Example:
    if isinstance(given, Example):
        return given
    known = {one.name for one in fields(Example)}
    if not isinstance(given, Mapping) or not isinstance(given.get("path"), str):
        raise GuardError(f"An example is an object with a path, not {given!r}")
    if unknown := set(given) - known:
        names = ", ".join(sorted(map(repr, unknown)))
        raise GuardError(f"An example has no {names}; it has {', '.join(sorted(known))}")
    values = dict(given)
    values["method"] = str(values.get("method", "GET")).upper()
    values["accept"] = tuple(values.get("accept", ()))
    return Example(**values)


def plan(app: Flask, examples: list[Example]) -> tuple[list[Example], list[Skipped]]:
    """Return what is to be called, in the order of the app's routes, and what cannot be.

    :param app: the app.
    :param examples: those that the user gave.
    """
    covered = {_endpoint_of(app, one) for one in examples}
    found: list[Example] = []
    skipped: list[Skipped] = []
    for rule in app.url_map.iter_rules():
        if _is_ours(app, rule):
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            if (rule.endpoint, method) in covered:
                continue
            title, reason = f"{method} {rule.rule}", _needs(rule, method)
            if reason:
                skipped.append(Skipped(title, reason))
            else:
                found.append(Example(rule.rule, method))
    return found + examples, skipped


def is_login(app: Flask, example: Example) -> bool:
    """Return whether an example logs in, and the session it begins is kept in Redis."""
    if example.login is not None:
        return example.login
    interface = app.session_interface
    if example.method != "POST" or isinstance(interface, SecureCookieSessionInterface):
        return False
    kind = type(interface)
    if "redis" not in f"{kind.__module__}.{kind.__qualname__}".lower():
        return False
    endpoint = (_endpoint_of(app, example) or ("",))[0]
    return any(word in f"{example.path} {endpoint}".lower() for word in _LOGIN_WORDS)


def _is_ours(app: Flask, rule: Rule) -> bool:
    """Whether a rule serves files or the guard's own health routes."""
    guarded = app.extensions.get(EXTENSION)
    health = getattr(guarded, "health", None)
    name, _, last = rule.endpoint.rpartition(".")
    return last == "static" or (health is not None and name == health.name)


def _needs(rule: Rule, method: str) -> str:
    """Return why a rule cannot be called without an example; empty if it can."""
    if rule.websocket:
        return "a WebSocket"
    missing = sorted(rule.arguments - set(rule.defaults or {}))
    if missing:
        return f"needs an example: it takes {', '.join(missing)}"
    if method != "GET":
        return f"needs an example: {method} changes something"
    return ""


def _endpoint_of(app: Flask, example: Example) -> tuple[str, str] | None:
    path = example.path.partition("?")[0]
    try:
        endpoint, _ = app.url_map.bind("localhost").match(path, example.method)
    except HTTPException:
        return None
    return endpoint, example.method
