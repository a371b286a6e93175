"""A running app's health route, asked over HTTP for the command line."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import click

#: Seconds to wait for a running app, all of its answer together, and the most bytes to take.
PATIENCE = 5.0
MOST_BYTES = 1_000_000

Answer = dict[str, Any]

#: What of an answer is relied on, and its type.
_FIELDS: dict[str, Any] = {
    "healthy": bool,
    "latency_ms": (int, float, type(None)),
    "circuit_state": str,
    "failure_count": int,
    "is_mock": bool,
}


def fetch(address: str, health_path: str, token: str | None) -> Answer:
    """Ask a running app's ``/detailed``.

    :param address: of the app, or of its health routes.
    :param health_path: what to add to an address that has no path.
    :param token: sent as a bearer token, to this address only.
    :returns: its answer; ``{"status": "unreachable", "error": ...}`` where there was none.
    :raises click.BadParameter: for what is no address, or no token.
    """
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked
        _target(address, health_path), headers=_headers(token)
    )
    answers: list[Answer] = []
    # A socket's timeout bounds one read only. Nothing but a thread bounds all of them, and the
    # look-up of the name too.
    asking = threading.Thread(target=lambda: answers.append(_ask(request)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answers[0] if answers else _unreachable(request, f"no answer in {PATIENCE:g} s")


def _target(address: str, health_path: str) -> str:
    try:
        parts = urlsplit(address)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https") or not _is_plain(address):
        raise click.BadParameter("expected http://HOST or https://HOST", param_hint="--url")
    if "@" in parts.netloc:
        raise click.BadParameter("no user or password, please: see --token", param_hint="--url")
    base = address.rstrip("/") + ("" if parts.path.strip("/") else health_path)
    return base if base.endswith("/detailed") else base + "/detailed"


def _headers(token: str | None) -> dict[str, str]:
    headers = {"Accept": "application/health+json"}
    if token is not None:
        # The HTTP client would quote a token that it cannot send in its error.
        if not _is_plain(token):
            raise click.BadParameter("expected ASCII without spaces", param_hint="--token")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _ask(request: urllib.request.Request) -> Answer:
    try:
        try:
            with _opener().open(request, timeout=PATIENCE) as response:
                return _read(request, response)
        except urllib.error.HTTPError as error:
            with error:
                return _read(request, error)
    except OSError as error:
        return _unreachable(request, str(getattr(error, "reason", error)))
    except (HTTPException, ValueError) as error:  # no HTTP, or no host name
        return _unreachable(request, type(error).__name__)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow none: the token is for the address that was given."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def _read(request: urllib.request.Request, response: Any) -> Answer:
    try:
        answer = json.loads(response.read(MOST_BYTES))
    except (ValueError, RecursionError):
        answer = None
    if not _is_answer(answer):
        return _unreachable(
            request, f"it answered {response.status}, and not as a health route does"
        )
    return dict(answer)


def _is_answer(answer: Any) -> bool:
    """Tell whether an answer has what the commands show of it."""
    return (
        isinstance(answer, dict)
        and answer.get("status") in ("pass", "warn", "fail")
        and isinstance(answer.get("process", 0), int)
        and isinstance(answer.get("details", {}), dict)
        and isinstance(redis := answer.get("redis"), dict)
        and all(isinstance(redis.get(name, ...), kind) for name, kind in _FIELDS.items())
    )


def _unreachable(request: urllib.request.Request, why: str) -> Answer:
    return {"status": "unreachable", "error": f"{request.full_url}: {why}"}
