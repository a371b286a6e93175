"""Every setting, its default and its check; read once, in ``init_app``."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from flask_redis_guard import checks
from flask_redis_guard.checks import Check, redact_url
from flask_redis_guard.core.rates import Rate
from flask_redis_guard.errors import ConfigurationError

logger = logging.getLogger("flask_redis_guard")

#: The only environments in which the in-memory store may stand in for Redis.
DEVELOPMENT = frozenset({"development", "testing", "local"})
PREFIX = "REDIS_GUARD_"


#: A year, in seconds: beyond some such bound the timers of the standard library overflow.
YEAR = 365 * 86_400


def _setting(default: Any, check: Check, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"check": check}, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked values of one app; the key of ``timeout`` is ``REDIS_GUARD_TIMEOUT``, and so on.

    ``docs/configuration.md`` describes each of them; a test keeps the two lists the same.
    """

    redis_url: str = _setting("redis://localhost:6379/0", checks.redis_url(), secret=True)
    failure_threshold: int = _setting(5, checks.whole(1))
    failure_rate: float = _setting(0.5, checks.number(0, 1, "a number"))
    minimum_calls: int = _setting(20, checks.whole(1))
    window_seconds: float = _setting(10.0, checks.number(0, YEAR))
    success_threshold: int = _setting(2, checks.whole(1))
    open_seconds: float = _setting(30.0, checks.number(0, YEAR))
    half_open_permits: int = _setting(1, checks.whole(1))
    health_check_interval: float = _setting(5.0, checks.seconds_or_off(YEAR))
    timeout: float = _setting(0.5, checks.number(0, 3600))
    max_connections: int = _setting(64, checks.whole(1, 65_536))
    downtime_alert_seconds: float = _setting(300.0, checks.number(0, YEAR))
    failure_alert_count: int = _setting(10, checks.whole(1, 100_000))
    processes: int = _setting(1, checks.whole(1))
    key_prefix: str = _setting("guard:", checks.key_prefix())
    health_url_prefix: str | None = _setting("/api/v1/health", checks.url_prefix())
    health_token: str | None = _setting(None, checks.token(), secret=True)
    health_authorize: Any = _setting(None, checks.function())
    metrics: bool = _setting(False, checks.flag())
    alert_delivery: Any = _setting(None, checks.function())
    alert_cooldown_seconds: float = _setting(300.0, checks.number(0, YEAR))
    alert_timeout: float = _setting(15.0, checks.number(0, YEAR))
    rate_limit_headers: str = _setting("draft", checks.choice("draft", "legacy", "both", "none"))
    default_limits: tuple[Rate, ...] = _setting((), checks.rates())
    ipv6_prefix: int = _setting(64, checks.whole(1, 128))
    denial_cache_size: int = _setting(10_000, checks.whole(0, 10_000_000))
    session_max_bytes: int = _setting(65_536, checks.whole(1))
    session_max_per_user: int = _setting(1000, checks.whole(1))
    client_options: Mapping[str, Any] | None = _setting(None, checks.mapping(), secret=True)
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
        if urlsplit(settings.redis_url).scheme == "memory" and not settings.development:
            raise ConfigurationError(
                "REDIS_URL",
                "memory://",
                f"a Redis server, since ENVIRONMENT is {environment!r}; the in-memory store is for "
                + ", ".join(sorted(DEVELOPMENT)),
            )
        return settings


def _key(name: str) -> str:
    return "REDIS_URL" if name == "redis_url" else PREFIX + name.upper()


def _reject_unknown(
    known: Mapping[str, Any], config: Mapping[str, Any], environ: Mapping[str, str]
) -> None:
    for key in config:
        if str(key).startswith(PREFIX) and key not in known:
            near = difflib.get_close_matches(key, known, 1) or sorted(known)
            shown = _shown(key, config[key], harmless=False)
            raise ConfigurationError(key, shown, "no such key; known: " + ", ".join(near))
    for key in environ:
        if key.startswith(PREFIX) and key not in known:
            logger.warning("Ignoring the unknown environment variable %s", key)


def _read(key: str, value: Any, option: Field[Any]) -> Any:
    check: Check = option.metadata["check"]
    try:
        return check.read(value)
    except (ValueError, TypeError, OverflowError):
        shown = _shown(key, value, harmless=option.repr)
        raise ConfigurationError(key, shown, check.accepted) from None


def _shown(key: str, value: Any, *, harmless: bool) -> object:
    """Return what an error may show of a value: no secret, however misplaced."""
    if value is None or (harmless and isinstance(value, (int, float))):
        return value
    if not isinstance(value, str):
        return f"<{type(value).__name__}>"
    if key == "REDIS_URL" or "://" in value:
        return redact_url(value)
    # Under a key that we do not know there can be anything, a password too.
    return value if harmless and len(value) <= 40 and "@" not in value else "***"


def _strictest(*sources: Any) -> str:
    """Return the strictest of the named environments; none at all is production."""
    named = [str(source).strip().lower() for source in sources if source is not None]
    strict = [name for name in named if name not in DEVELOPMENT]
    return (strict or named or ["production"])[0] or "production"
