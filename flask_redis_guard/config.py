"""Every setting, its default and its check; read once, in ``init_app``."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from inspect import iscoroutinefunction
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from flask_redis_guard.core.arguments import is_count, is_number
from flask_redis_guard.core.rates import Rate, parse_rates
from flask_redis_guard.errors import ConfigurationError

logger = logging.getLogger("flask_redis_guard")

#: The only environments in which the in-memory store may stand in for Redis.
DEVELOPMENT = frozenset({"development", "testing", "local"})
PREFIX = "REDIS_GUARD_"
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

#: A year, in seconds: beyond some such bound the timers of the standard library overflow.
YEAR = 365 * 86_400
#: Shown in place of what may be a secret.
HIDDEN = "***"


class Check(NamedTuple):
    """How a setting's value is read, and the words for what is accepted."""

    #: Returns the value to use; raises ValueError, TypeError or OverflowError for a bad one.
    read: Callable[[Any], Any]
    #: What is accepted, as an error says it.
    accepted: str
    #: The same as the documentation's table says it.
    range: str
    #: Which wrong text an error may show: none that could be a secret.
    shows: re.Pattern[str] = re.compile(r"(?!)")


#: A short number is no secret where a number belongs.
_SHORT_NUMBER = re.compile(r"[-+]?[0-9]{0,5}(\.[0-9]{0,4})?|nan|inf")
_RATE_LIKE = re.compile(r"[0-9]{1,9} ?(/|per) ?([0-9]{1,5} ?)?[A-Za-z]{1,9}")


def whole(minimum: int, maximum: int | None = None) -> Check:
    """Accept whole numbers, also as text."""

    def read(value: Any) -> int:
        number = int(value) if isinstance(value, str) else value  # int() would cut 5.9 off
        if not is_count(number, minimum, maximum):
            raise ValueError
        return number

    upper = "" if maximum is None else f" and at most {maximum}"
    short = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
    return Check(read, f"a whole number of at least {minimum}{upper}", short, _SHORT_NUMBER)


def number(above: float, at_most: float, unit: str = "seconds") -> Check:
    """Accept finite numbers above a bound, also as text."""

    def read(value: Any) -> float:
        figure = value if isinstance(value, bool) else float(value)
        if not is_number(figure, above, at_most):
            raise ValueError
        return figure

    accepted = f"{unit} above {above:g} and at most {at_most:.0f}"
    return Check(read, accepted, f"above {above:g}, at most {at_most:.0f}", _SHORT_NUMBER)


def seconds_or_off(at_most: float) -> Check:
    """Accept seconds above 0, or 0 for none."""
    above = number(0, at_most)

    def read(value: Any) -> float:
        off = not isinstance(value, bool) and float(value) == 0
        return 0.0 if off else float(above.read(value))

    off = ", or 0 to turn it off"
    return Check(read, above.accepted + off, f"0 to {at_most:.0f}", _SHORT_NUMBER)


def choice(*choices: str) -> Check:
    """Accept one of some words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return Check(read, "one of " + ", ".join(map(repr, choices)), ", ".join(choices))


def key_prefix() -> Check:
    """Accept what keys may begin with: on a cluster, a brace would change where they are kept."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[!-z|~]{1,64}", value):
            raise ValueError
        return value

    accepted = "up to 64 printable ASCII characters without spaces and braces"
    return Check(read, accepted, accepted)


def token() -> Check:
    """Accept a secret that is too long to be guessed, or None for none."""

    def read(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or len(value) < 16 or not re.fullmatch(r"[!-~]+", value):
            raise ValueError
        return value

    accepted = "at least 16 printable ASCII characters without spaces, or None"
    return Check(read, accepted, accepted)


#: A header's name is a token (RFC 9110, section 5.6.2); no other is ever found in a request.
NAMED_KEY = re.compile(r"address|user|session|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+")
KEYS = "'address', 'user', 'session', 'header:NAME' or a callable"


def subject_key() -> Check:
    """Accept who is counted: one of the named subjects, or a callable."""

    def read(value: Any) -> Any:
        named = isinstance(value, str) and NAMED_KEY.fullmatch(value)
        if not named and (not callable(value) or iscoroutinefunction(value)):
            raise ValueError
        return value

    return Check(read, KEYS, KEYS)


def function() -> Check:
    """Accept a callable, or None for none; the environment cannot name one.

    What an async function returns is true, whatever it would have said, and nobody would run it.
    """

    def read(value: Any) -> Any:
        if value is not None and (not callable(value) or iscoroutinefunction(value)):
            raise ValueError
        return value

    accepted = "a callable that is not async (in app.config), or None"
    return Check(read, accepted, "a callable that is not async, or None")


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

    return Check(read, "true or false", "true, false")


def url_prefix() -> Check:
    """Accept the path under which routes are mounted, or None for no routes."""

    def read(value: Any) -> str | None:
        if value is None or (isinstance(value, str) and value.lower() in ("", "none")):
            return None
        if not isinstance(value, str) or not re.fullmatch(r"(/[\w.~-]+)+", value):
            raise ValueError
        return value

    accepted = "a path such as '/health', or None for no such routes"
    return Check(read, accepted, "a path such as `/health`, or None")


def host_state() -> Check:
    """Accept where the workers of a host share what they know."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"auto|off|/[ -~]{1,4000}", value):
            raise ValueError
        return value

    accepted = "'auto', 'off' or the absolute path of a directory"
    return Check(read, accepted, "auto, off, or the path of a directory")


def mapping() -> Check:
    """Accept a mapping with text keys, or None for none; the environment cannot name one."""

    def read(value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError
        return dict(value)

    accepted = "a mapping of names to values (in app.config), or None"
    return Check(read, accepted, "a mapping of names to values, or None")


def rates() -> Check:
    """Accept rate limits as text or as objects; nothing, or an empty text, for none."""

    def read(value: Any) -> tuple[Rate, ...]:
        return () if value in (None, "", (), []) else parse_rates(value)

    accepted = "rates such as '1000/hour; 100/minute', or nothing"
    return Check(read, accepted, "rates, or nothing", _RATE_LIKE)


def split_url(url: str) -> SplitResult:
    """Split a URL that may name several hosts, with IPv6 addresses among them.

    :func:`urllib.parse.urlsplit` of newer Pythons refuses brackets that do not stand first.

    :raises ValueError: if it cannot be read.
    """
    scheme, _, rest = url.partition("://")
    if "+" not in scheme:
        return urlsplit(url)
    hosts = re.split("[/?#]", rest, maxsplit=1)[0]
    return urlsplit(f"{scheme}://{rest[len(hosts) :]}")._replace(netloc=hosts)


def redis_url() -> Check:
    """Accept the URL of a server, of sentinels, of a cluster, or of the in-memory store."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError
        parts = split_url(value)
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

    accepted = "a URL such as redis://HOST:PORT/DB; schemes: " + ", ".join(SCHEMES)
    return Check(read, accepted, "a URL")


def _setting(default: Any, check: Check, unit: str = "", *, secret: bool = False) -> Any:
    """Return a field; ``docs/configuration.md`` lists default, unit and range of each."""
    return field(default=default, metadata={"check": check, "unit": unit}, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked values of one app; the key of ``timeout`` is ``REDIS_GUARD_TIMEOUT``, and so on.

    ``docs/configuration.md`` describes each of them; a test keeps the two lists the same.
    """

    redis_url: str = _setting("redis://localhost:6379/0", redis_url(), secret=True)
    failure_threshold: int = _setting(5, whole(1), "failures")
    failure_rate: float = _setting(0.5, number(0, 1, "a number"), "part of the calls")
    minimum_calls: int = _setting(20, whole(1), "calls")
    window_seconds: float = _setting(10.0, number(0, YEAR), "s")
    success_threshold: int = _setting(2, whole(1), "probes")
    open_seconds: float = _setting(30.0, number(0, YEAR), "s")
    half_open_permits: int = _setting(1, whole(1), "probes")
    health_check_interval: float = _setting(5.0, seconds_or_off(YEAR), "s")
    recovery_interval: float = _setting(1.0, seconds_or_off(YEAR), "s")
    timeout: float = _setting(0.5, number(0, 3600), "s")
    sentinel_trust_seconds: float = _setting(15.0, number(0, YEAR), "s")
    max_connections: int = _setting(64, whole(1, 65_536), "connections")
    downtime_alert_seconds: float = _setting(300.0, number(0, YEAR), "s")
    failure_alert_count: int = _setting(10, whole(1, 100_000), "failures")
    host_state: str = _setting("auto", host_state())
    processes: int = _setting(1, whole(1), "processes")
    key_prefix: str = _setting("guard:", key_prefix())
    health_url_prefix: str | None = _setting("/api/v1/health", url_prefix())
    health_token: str | None = _setting(None, token(), secret=True)
    health_authorize: Any = _setting(None, function())
    ready: str = _setting("live", choice("live", "redis"))
    metrics: bool = _setting(False, flag())
    alert_delivery: Any = _setting(None, function())
    alert_cooldown_seconds: float = _setting(300.0, number(0, YEAR), "s")
    alert_timeout: float = _setting(15.0, number(0, YEAR), "s")
    rate_limit_headers: str = _setting("draft", choice("draft", "legacy", "both", "none"))
    default_limits: tuple[Rate, ...] = _setting((), rates())
    default_key: Any = _setting("address", subject_key())
    ipv6_prefix: int = _setting(64, whole(1, 128), "bits")
    denial_cache_size: int = _setting(10_000, whole(0, 10_000_000), "refusals")
    session_max_bytes: int = _setting(65_536, whole(1), "bytes")
    session_max_per_user: int = _setting(1000, whole(1), "sessions")
    client_options: Mapping[str, Any] | None = _setting(None, mapping(), secret=True)
    #: The strictest environment that any source names.
    environment: str = "production"

    @property
    def development(self) -> bool:
        """Whether the in-memory store may stand in for Redis."""
        return self.environment in DEVELOPMENT

    @classmethod
    def load(cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
        """Read and check all settings: ``config``, then the environment, then the default.

        :param config: the app's configuration.
        :param environ: the process environment.
        :raises ConfigurationError: for a bad value anywhere, and an unknown key in ``config``.
        """
        known = {_key(option.name): option for option in fields(cls) if option.metadata}
        _reject_unknown(known, config, environ)
        values: dict[str, Any] = {}
        for key, option in known.items():
            if key in config:
                values[option.name] = _read(key, config[key], option)
            elif key in environ:
                values[option.name] = _read(key, environ[key], option)
        environment = _strictest(config.get("ENVIRONMENT"), environ.get("ENVIRONMENT"))
        settings = cls(**values, environment=environment)
        if split_url(settings.redis_url).scheme == "memory" and not settings.development:
            raise ConfigurationError(
                "REDIS_URL",
                "memory://",
                "a Redis server; the in-memory store serves only where ENVIRONMENT is one of "
                + ", ".join(sorted(DEVELOPMENT)),
            )
        return settings


def warn_of_left_overs(config: Mapping[str, Any], *, limiter: bool, sessions: bool) -> None:
    """Warn of settings that other extensions read, where those are not there any more.

    :param config: the app's configuration.
    :param limiter: whether Flask-Limiter is installed in the app.
    :param sessions: whether Flask-Session is.
    """
    rates = sorted(str(key) for key in config if str(key).startswith("RATELIMIT_"))
    if rates and not limiter:
        logger.warning(
            "Settings of Flask-Limiter are not read and limit nothing: %s. See the page 'Migrating "
            "from Flask-Limiter'",
            ", ".join(rates),
        )
    if "SESSION_TYPE" in config and not sessions:
        logger.warning(
            "SESSION_TYPE is a setting of Flask-Session and is not read: for sessions in Redis set "
            "app.session_interface = GuardedSessionInterface(guard)"
        )


def _key(name: str) -> str:
    return "REDIS_URL" if name == "redis_url" else PREFIX + name.upper()


def _reject_unknown(
    known: Mapping[str, Any], config: Mapping[str, Any], environ: Mapping[str, str]
) -> None:
    for key in config:
        if str(key).startswith(PREFIX) and key not in known:
            near = difflib.get_close_matches(key, known, 1) or sorted(known)
            raise ConfigurationError(key, HIDDEN, "no such key; known: " + ", ".join(near))
    for key in environ:
        if key.startswith(PREFIX) and key not in known:
            logger.warning("Ignoring the unknown environment variable %s", key)


def _read(key: str, value: Any, option: Field[Any]) -> Any:
    check: Check = option.metadata["check"]
    try:
        return check.read(value)
    except (ValueError, TypeError, OverflowError):
        shown = redact_url(value) if key == "REDIS_URL" else _shown(value, check)
        raise ConfigurationError(key, shown, check.accepted) from None


def _shown(value: object, check: Check) -> object:
    """Return what an error may show of a value: nothing that could be a misplaced secret."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (str, int, float)) and check.shows.fullmatch(str(value)):
        return value
    return HIDDEN if isinstance(value, str) else f"<{type(value).__name__}>"


def _strictest(*sources: Any) -> str:
    """Return the strictest of the named environments; none at all is production."""
    named = [str(source).strip().lower() for source in sources if source is not None]
    strict = [name for name in named if name not in DEVELOPMENT]
    return (strict or named or ["production"])[0] or "production"


#: No host is as long as a token, no port is longer than five digits.
_HOST = re.compile(r"([a-z0-9_.-]{1,80}|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)
#: What is a host even where no ``@`` before it marks it as one.
_CLEARLY_HOST = re.compile(r"localhost|.*[.:].*", re.IGNORECASE)


def redact_url(url: object) -> str:
    """Return what may be shown of a URL: its scheme, and the host where one can be told.

    A path is shown where it is the number of a database, an option never.

    :param url: anything a user may have put there.
    """
    scheme, separator, rest = str(url).partition("://")
    if not separator or scheme not in SCHEMES:
        return HIDDEN
    address, _, query = rest.replace("#", "?").partition("?")
    _login, at, place = address.rpartition("@")
    hosts, slash, path = place.partition("/")
    plain = all(
        _HOST.fullmatch(host) and (at or _CLEARLY_HOST.fullmatch(host)) for host in hosts.split(",")
    )
    if not plain or "@" in query:  # where the password ends, nobody knows
        return f"{scheme}://{HIDDEN}"
    database = slash + (path if re.fullmatch(r"[0-9]{0,3}", path) else HIDDEN)
    return f"{scheme}://{f'{HIDDEN}@' if at else ''}{hosts}{database}"
