"""How single settings are read and checked, and what may be shown of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flask_redis_guard.core.rates import Rate, parse_rates

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
    "memory",
)


class Check(NamedTuple):
    """How a setting's value is read, and the words for what is accepted."""

    #: Returns the value to use; raises ValueError, TypeError or OverflowError for a bad one.
    read: Callable[[Any], Any]
    accepted: str


def whole(minimum: int, maximum: int | None = None) -> Check:
    """Accept whole numbers, also as text."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError  # not even 5.0: int() would cut 5.9 off
        number = int(value)
        if number < minimum or (maximum is not None and number > maximum):
            raise ValueError
        return number

    upper = "" if maximum is None else f" and at most {maximum}"
    return Check(read, f"a whole number of at least {minimum}{upper}")


def number(above: float, at_most: float | None = None, unit: str = "seconds") -> Check:
    """Accept finite numbers above a bound, also as text."""

    def read(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError
        figure = float(value)
        if not above < figure < float("inf") or (at_most is not None and figure > at_most):
            raise ValueError
        return figure

    upper = "" if at_most is None else f" and at most {at_most:.0f}"
    return Check(read, f"{unit} above {above:g}{upper}")


def seconds_or_off(at_most: float) -> Check:
    """Accept seconds above 0, or 0 for none."""

    def read(value: Any) -> float:
        if not isinstance(value, bool) and float(value) == 0:
            return 0.0
        return float(number(0, at_most).read(value))

    return Check(read, f"seconds above 0 and at most {at_most:.0f}, or 0 to turn it off")


def choice(*choices: str) -> Check:
    """Accept one of some words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return Check(read, "one of " + ", ".join(map(repr, choices)))


def key_prefix() -> Check:
    """Accept what keys may begin with: on a cluster, a brace would change where they are kept."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[!-z|~]{1,64}", value):
            raise ValueError
        return value

    return Check(read, "up to 64 printable ASCII characters without spaces and braces")


def token() -> Check:
    """Accept a secret that is too long to be guessed, or None for none."""

    def read(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or len(value) < 16 or not re.fullmatch(r"[!-~]+", value):
            raise ValueError
        return value

    return Check(read, "at least 16 printable ASCII characters without spaces, or None")


def function() -> Check:
    """Accept a callable, or None for none; the environment cannot name one.

    What an async function returns is true, whatever it would have said, and nobody would run it.
    """

    def read(value: Any) -> Any:
        if value is not None and (not callable(value) or iscoroutinefunction(value)):
            raise ValueError
        return value

    return Check(read, "a callable that is not async (in app.config), or None")


def flag() -> Check:
    """Accept true and false, also as text."""

    def read(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        words = {"1": True, "true": True, "yes": True, "on": True}
        words.update({"0": False, "false": False, "no": False, "off": False})
        word = words.get(str(value).strip().lower())
        if word is None:
            raise ValueError
        return word

    return Check(read, "true or false")


def url_prefix() -> Check:
    """Accept the path under which routes are mounted, or None for no routes."""

    def read(value: Any) -> str | None:
        if value is None or (isinstance(value, str) and value.lower() in ("", "none")):
            return None
        if not isinstance(value, str) or not re.fullmatch(r"(/[\w.~-]+)+", value):
            raise ValueError
        return value

    return Check(read, "a path such as '/health', or None for no such routes")


def mapping() -> Check:
    """Accept a mapping with text keys."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError
        return dict(value)

    return Check(read, "a mapping of names to values")


def rates() -> Check:
    """Accept rate limits as text or as objects; nothing, or an empty text, for none."""

    def read(value: Any) -> tuple[Rate, ...]:
        return () if value in (None, "", (), []) else parse_rates(value)

    return Check(read, "rates such as '1000/hour; 100/minute', or nothing")


def redis_url() -> Check:
    """Accept the URL of a server, of sentinels, of a cluster, or of the in-memory store."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError
        parts = urlsplit(value)
        if parts.scheme not in SCHEMES:
            raise ValueError
        if parts.scheme in ("redis", "rediss"):
            _ = parts.port  # raises ValueError for a port that is no number below 65536
            if not re.fullmatch(r"(/[0-9]*)?", parts.path):
                raise ValueError
        elif parts.scheme != "memory":
            place = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
            if not place:
                raise ValueError
        return value

    return Check(read, "a URL such as redis://HOST:PORT/DB; schemes: " + ", ".join(SCHEMES))


#: Host and port, several of them, and a path: all that is shown of a URL. No host is as long as
#: a token, no port is longer than five digits, and without a host a number may be a password.
_HOST = r"(?:[a-z0-9_.-]{1,80}|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
_ADDRESS = re.compile(rf"{_HOST}(,{_HOST})*(/[a-z0-9_.-]*)*", re.IGNORECASE)


def redact_url(url: object) -> str:
    """Return what may be shown of a URL: its scheme, and the host where one can be told.

    :param url: anything a user may have put there.
    """
    scheme, separator, rest = str(url).partition("://")
    if not separator or not re.fullmatch(r"[a-z]+(\+[a-z]+)?", scheme):
        return "***"
    address, _, query = rest.partition("?")
    if "@" in query:  # where the password ends, nobody knows
        return f"{scheme}://***"
    _, at, place = address.rpartition("@")
    shown = place if _ADDRESS.fullmatch(place) else "***"
    return f"{scheme}://***@{shown}" if at else f"{scheme}://{shown}"
