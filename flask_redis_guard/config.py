"""Every setting, its default and its check; read once, in ``init_app``."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from flask_redis_guard import checks
from flask_redis_guard.checks import Check, redact_url
from flask_redis_guard.errors import ConfigurationError

logger = logging.getLogger("flask_redis_guard")

#: The only environments in which the in-memory store may stand in for Redis.
DEVELOPMENT = frozenset({"development", "testing", "local"})
PREFIX = "REDIS_GUARD_"


def _setting(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked values of one app; the key of ``timeout`` is ``REDIS_GUARD_TIMEOUT``, and so on.

    ``docs/configuration.md`` describes each of them; a test keeps the two lists the same.
    """

    redis_url: str = _setting("redis://localhost:6379/0", checks.redis_url())
    failure_threshold: int = _setting(5, checks.whole(1))
    failure_rate: float = _setting(0.5, checks.number(0, 1, "a number"))
    minimum_calls: int = _setting(20, checks.whole(1))
    window_seconds: float = _setting(10.0, checks.number(0))
    success_threshold: int = _setting(2, checks.whole(1))
    open_seconds: float = _setting(30.0, checks.number(0))
    half_open_permits: int = _setting(1, checks.whole(1))
    health_check_interval: float = _setting(5.0, checks.seconds_or_off())
    timeout: float = _setting(0.5, checks.number(0))
    max_connections: int = _setting(64, checks.whole(1))
    downtime_alert_seconds: float = _setting(300.0, checks.number(0))
    failure_alert_count: int = _setting(10, checks.whole(1))
    processes: int = _setting(1, checks.whole(1))
    key_prefix: str = _setting("guard:", checks.text())
    health_url_prefix: str | None = _setting("/api/v1/health", checks.url_prefix())
    health_token: str | None = _setting(None, checks.token())
    health_authorize: Any = _setting(None, checks.function())
    metrics: bool = _setting(False, checks.flag())
    alert_delivery: Any = _setting(None, checks.function())
    alert_cooldown_seconds: float = _setting(300.0, checks.number(0))
    alert_timeout: float = _setting(15.0, checks.number(0))
    rate_limit_headers: str = _setting("draft", checks.choice("draft", "legacy", "both", "none"))
    client_options: Mapping[str, Any] | None = _setting(None, checks.mapping())
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
                values[option.name] = _read(key, config[key], option.metadata["check"])
            elif key in environ:
                values[option.name] = _read(key, environ[key], option.metadata["check"])
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
        if isinstance(key, str) and key.startswith(PREFIX) and key not in known:
            near = difflib.get_close_matches(key, known, 1) or sorted(known)
            raise ConfigurationError(
                key, _shown(key, config[key]), "no such key; known: " + ", ".join(near)
            )
    for key in environ:
        if key.startswith(PREFIX) and key not in known:
            logger.warning("Ignoring the unknown environment variable %s", key)


def _read(key: str, value: Any, check: Check) -> Any:
    try:
        return check.read(value)
    except (ValueError, TypeError, OverflowError):
        raise ConfigurationError(key, _shown(key, value), check.accepted) from None


def _shown(key: str, value: Any) -> object:
    """Return what an error may show of a value: no secret, however misplaced."""
    if "://" in str(value) or key == "REDIS_URL":
        return redact_url(value)
    return "***" if re.search("PASS|SECRET|TOKEN|OPTIONS", key) else value


def _strictest(*sources: Any) -> str:
    """Return the strictest of the named environments; none at all is production."""
    named = [str(source).strip().lower() for source in sources if source is not None]
    strict = [name for name in named if name not in DEVELOPMENT]
    return (strict or named or ["production"])[0] or "production"
