"""Who is counted: the named subjects and the rules that leave nobody uncounted."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

from flask import Request, current_app, request, session

from flask_redis_guard.config import KEYS, NAMED_KEY, Settings
from flask_redis_guard.errors import ConfigurationError
from flask_redis_guard.sessions.ids import user_tag

logger = logging.getLogger("flask_redis_guard")

#: A named subject or a function of no arguments that returns one.
Key = str | Callable[[], Any] | None

#: What a key may return, and tuples of these: the same subject has the same text at every request.
SUBJECTS = (
    *(str, bytes, bytearray, int, float, Decimal, UUID, Enum),
    *(ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network),
)

#: Addresses that a translator made of IPv4 ones (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def kind_of(key: Key) -> str:
    """Return the space of subjects that a key gives, so that no header can pose as a user."""
    if key is None:
        return "address"
    if callable(key):
        return "key"
    return key.lower()


def check_key(key: Any) -> None:
    """Check a ``key`` argument.

    :raises ConfigurationError: for what is neither a named subject nor callable.
    """
    named = isinstance(key, str) and NAMED_KEY.fullmatch(key)
    if not (named or key is None or callable(key)):
        raise ConfigurationError("key", key, KEYS)


def subject_of(key: Key, settings: Settings) -> str:
    """Return who is counted in the current request.

    Each kind of subject is a space of its own. Where the key gives nothing, the address is counted,
    again in a space of its own.

    :param key: ``None`` is ``REDIS_GUARD_DEFAULT_KEY``: the client's address unless it says else.
    :param settings: of the app.
    """
    if key is None:
        key = settings.default_key
    if key == "address":
        return _named("address", client_address(settings.ipv6_prefix))
    space = kind_of(key)
    if callable(key):
        value = key()
    elif key == "user":
        value = _user()
    elif key == "session":
        value = _session()
    else:
        value = request.headers.get(key.partition(":")[2])
    return _finish(space, settings, value)


def reader_of(key: Key, settings: Settings) -> Callable[[], str]:
    """Return a function that returns what :func:`subject_of` does, for the same key each time."""
    if not callable(key):
        return partial(subject_of, key, settings)
    finish = partial(_finish, "key", settings)

    def read() -> str:
        value = key()
        return f"key\0str\0{value}" if type(value) is str and value else finish(value)

    return read


def _finish(space: str, settings: Settings, value: Any) -> str:
    """Return the subject that a value of a key stands for."""
    if type(value) is str and value:  # by far the most
        return f"{space}\0str\0{value}"
    if value is None or value == "" or value == b"":
        return _named(f"no {space}", client_address(settings.ipv6_prefix))
    _check_subject(value)
    # The type counts too: the user 1 is not the user "1" of another table.
    text = value.hex() if isinstance(value, (bytes, bytearray)) else str(value)
    return _named(space, type(value).__name__, text)


def _named(*parts: str) -> str:
    """Return one text; all parts but the last are names, without the character between them."""
    return "\0".join(parts)


def subjects_named(key: Key, name: str, settings: Settings) -> list[str]:
    """Return every subject that a name typed by an operator can mean under a key.

    :param key: a limit's key.
    :param name: an address, a user's id, a header's value, or the text of what a callable returned.
    :param settings: of the app.
    """
    key = key or settings.default_key
    address, space = counted_address(name, settings.ipv6_prefix), kind_of(key)
    if key == "address":
        return [_named("address", address)]
    # What gave no subject was counted by the address.
    found = [_named(f"no {space}", address)] if _is_address(name) else []
    found += [_named(space, kind, name) for kind in _kinds(name)]
    if key == "user" and name:  # whom a session names is counted by what stands for them there
        found.append(_named(space, "str", user_tag(name)))
    if callable(key):
        found += [_named(space, kind, name.encode().hex()) for kind in ("bytes", "bytearray")]
    return found


def _kinds(name: str) -> list[str]:
    """Return the types whose text a name may be."""
    kinds = ["str"]
    for kind, read in _READERS.items():
        try:
            if str(read(name)) == name:
                kinds.append(kind)
        except (ValueError, ArithmeticError):
            continue
    if name in ("True", "False"):
        kinds.append("bool")
    if name[:1] + name[-1:] in ("()", "[]"):
        kinds.append("tuple" if name[0] == "(" else "list")
    if "." in name:  # an enum's member; one of a text enum has the text alone
        kinds.append(name.partition(".")[0])
    return kinds


_READERS: dict[str, Callable[[str], Any]] = {
    kind.__name__: kind
    for kind in (
        int,
        float,
        Decimal,
        UUID,
        ipaddress.IPv4Address,
        ipaddress.IPv6Address,
        ipaddress.IPv4Network,
        ipaddress.IPv6Network,
    )
}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_subject(value: Any) -> None:
    """Refuse what has no lasting text: each request would be a subject of its own, without limit.

    :raises TypeError: for a coroutine, an object known by its place in memory, and the like.
    """
    if isinstance(value, (tuple, list)):
        for part in value:
            _check_subject(part)
    elif value is not None and not isinstance(value, SUBJECTS):
        raise TypeError(
            f"a key is text, bytes, a number, a UUID, an address or a tuple of these, not "
            f"{type(value).__name__}"
        )


def client_address(ipv6_prefix: int = 64) -> str:
    """Return what the client's address is counted as.

    An IPv4 address inside an IPv6 one is taken out first; an IPv6 address is counted by its
    network, since one customer has all of it.

    :param ipv6_prefix: the length of that network, in bits.
    """
    raw = request.remote_addr or ""
    if not raw:
        _warn_once(
            current_app.extensions["redis_guard"].warned,
            "no-address",
            "Requests arrive without a client address (REMOTE_ADDR is empty, as behind a unix "
            "socket): all of them share one limit. Use werkzeug's ProxyFix.",
        )
    return counted_address(raw, ipv6_prefix)


@lru_cache(4096)
def counted_address(raw: str, ipv6_prefix: int) -> str:
    """Return what an address is counted as; anything else as it is.

    :param raw: an address, perhaps with a zone, or with a port: some proxies write it into
        ``X-Forwarded-For``, and each connection has another.
    :param ipv6_prefix: the length of the network that an IPv6 address is counted by.
    """
    text = raw.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return raw
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if address in _NAT64:
            return str(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        return str(ipaddress.ip_network((address, ipv6_prefix), strict=False))
    return str(address)


def warn_of_untrusted_proxy(asked: Request, told: set[str]) -> None:
    """Warn once where a proxy names the client but nothing was told to believe it.

    :param asked: the request.
    :param told: what was warned of already.
    """
    environ = asked.environ
    forwarded = "HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ
    if forwarded and "werkzeug.proxy_fix.orig" not in environ:
        _warn_once(
            told,
            "proxy",
            "A request names its client in X-Forwarded-For or Forwarded, which is not trusted: if "
            "a proxy of yours sets it, all its clients share one limit; use werkzeug's ProxyFix.",
        )


def _user() -> Any:
    """Return the id of the user that is logged in with Flask-Login, or bound to the session."""
    manager = getattr(current_app, "login_manager", None)
    if manager is not None:
        from flask_login import current_user

        return current_user.get_id()
    return _identity("key='user' needs Flask-Login or a GuardedSessionInterface").user


def _session() -> Any:
    """Return the id of the server-side session that the request brought, if it is stored."""
    return _identity(
        "key='session' needs a GuardedSessionInterface: the cookie of Flask's own changes at will"
    ).session_id


def _identity(otherwise: str) -> Any:
    """Return whose session the request brought; it takes the round trip that opens the session.

    :raises LookupError: where sessions are not guarded.
    """
    if not hasattr(session, "identity"):
        raise LookupError(otherwise)
    return session.identity()


def _warn_once(told: set[str], what: str, message: str) -> None:
    if what not in told:
        told.add(what)
        logger.warning(message)
