"""What a feature may ask of the app it works in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from flask import Blueprint, Flask, current_app

from flask_redis_guard.config import Settings
from flask_redis_guard.errors import GuardError
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.limiting.places import PlaceKeeper
from flask_redis_guard.limiting.slots import ConcurrencyLimiter
from flask_redis_guard.web.limits.declared import Limit

#: Where everything that the extension keeps for an app lies in ``app.extensions``.
EXTENSION = "redis_guard"


class Host(Protocol):
    """Everything of one app that the features use."""

    app: Flask
    settings: Settings
    #: What was warned of already, once for each app.
    warned: set[str]
    #: The blueprint of the health routes, if there is one.
    health: Blueprint | None

    @property
    def limiter(self) -> RateLimiter:
        """The app's rate limiter."""

    @property
    def concurrency(self) -> ConcurrencyLimiter:
        """The app's concurrency limiter."""

    @property
    def places(self) -> PlaceKeeper:
        """Holds the places of connections that stay open."""

    @property
    def app_limits(self) -> Sequence[Limit]:
        """The limits of every request."""

    def blueprint_limits(self, blueprint: object) -> Sequence[Limit]:
        """Return the limits of a blueprint's requests."""

    def send(self, signal: Any, **event: Any) -> None:
        """Send a signal with the app as the sender."""


def current_host() -> Host:
    """Return what belongs to the current app.

    :raises GuardError: if ``init_app`` was not called for it.
    """
    host = current_app.extensions.get(EXTENSION)
    if host is None:
        raise GuardError(f"The app {current_app.name!r} has no guard: call guard.init_app(app)")
    return cast(Host, host)
