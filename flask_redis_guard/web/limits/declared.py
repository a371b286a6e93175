"""One limit as it was declared, and the search for those that a view was given."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakSet

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.local import LocalProxy

from flask_redis_guard.core.arguments import answer_of
from flask_redis_guard.core.rates import ALGORITHMS, Rate, parse_rates
from flask_redis_guard.errors import ConfigurationError, RedisUnavailable
from flask_redis_guard.limiting.keys import read_rates
from flask_redis_guard.limiting.plan import Charge
from flask_redis_guard.web.limits.subjects import Key, check_key, subject_of

#: Rates as text, as objects, or from a function that is asked at every request.
Rates = str | Rate | Iterable[str | Rate] | Callable[[], Any]

ON_OUTAGE = ("deny", "local", "allow")
#: What a client is told, by HTTP or when its connection is closed.
UNAVAILABLE = "Rate limiting service temporarily unavailable"

logger = logging.getLogger("flask_redis_guard")


@dataclass(frozen=True, eq=False)
class Limit:
    """A declared limit; the arguments are those of ``rate_limited``."""

    rates: tuple[Rate, ...] | Callable[[], Any]
    key: Key = None
    cost: int | Callable[[], int] = 1
    methods: frozenset[str] | None = None
    exempt_when: Callable[[], bool] | None = None
    scope: str | None = None
    algorithm: str | None = None
    on_outage: str = "deny"
    refund_when: Callable[[Response], bool] | None = None
    defer: bool = False
    shadow: bool = False
    #: The scope that a call of the decorated function is counted in.
    function_scope: str = ""

    @classmethod
    def declare(cls, rates: Rates, methods: Iterable[str] | None = None, **options: Any) -> Limit:
        """Check the arguments as far as they can be checked before a request.

        :raises ConfigurationError: naming the argument and what it accepts.
        """
        algorithm = options.get("algorithm")
        if algorithm is not None and algorithm not in ALGORITHMS:
            raise ConfigurationError("algorithm", algorithm, " or ".join(map(repr, ALGORITHMS)))
        if options.get("on_outage", "deny") not in ON_OUTAGE:
            raise ConfigurationError(
                "on_outage", options["on_outage"], " or ".join(map(repr, ON_OUTAGE))
            )
        for name in ("exempt_when", "refund_when"):
            if options.get(name) is not None and not callable(options[name]):
                raise ConfigurationError(name, options[name], "a callable")
        for name, kind in (("defer", bool), ("shadow", bool), ("scope", (str, type(None)))):
            if name in options and not isinstance(options[name], kind):
                raise ConfigurationError(
                    name, options[name], "text" if name == "scope" else "a bool"
                )
        cost = options.get("cost", 1)
        if not callable(cost) and (type(cost) is not int or cost < 1):
            raise ConfigurationError("cost", cost, "a whole number of at least 1, or a callable")
        for name, function in (("rates", rates), *options.items()):
            if inspect.iscoroutinefunction(function):
                raise ConfigurationError(name, function, "a function that is not async")
        methods = None if methods is None else read_methods(methods)
        check_key(options.get("key"))
        return cls(
            rates=rates if callable(rates) else read_rates(rates, algorithm),
            methods=methods,
            **options,
        )

    def applies(self) -> bool:
        """Tell whether the limit counts the current request."""
        if self.methods is not None:
            # Flask answers HEAD with the view for GET.
            method = "GET" if request.method == "HEAD" else request.method
            if method not in self.methods and request.method not in self.methods:
                return False
        return self.exempt_when is None or not answer_of(self.exempt_when())

    def is_refunded(self, response: Response) -> bool:
        """Tell whether what was charged is to be given back after this response.

        :raises Exception: whatever ``refund_when`` raises; nothing is given back then.
        """
        return self.refund_when is not None and answer_of(self.refund_when(response))

    def charge(self, scope: str, ipv6_prefix: int) -> Charge:
        """Return what the limiter is asked in the current request.

        :raises Exception: whatever a function of the user raises, or ``ValueError`` for what it
            returned; the caller refuses then.
        """
        rates = self.rates
        return Charge(
            rates=parse_rates(rates(), algorithm=self.algorithm) if callable(rates) else rates,
            subject=subject_of(self.key, ipv6_prefix),
            cost=self.cost() if callable(self.cost) else self.cost,
            scope=scope if self.scope is None else f"scope:{self.scope}",
            refundable=self.refund_when is not None,
            shadow=self.shadow,
        )


def read_methods(methods: Iterable[object]) -> frozenset[str]:
    """Read the ``methods`` argument.

    :raises ConfigurationError: for text, and for no methods at all, which would be no limit.
    """
    given = [] if isinstance(methods, str) else list(methods)
    names = [name.upper() for name in given if isinstance(name, str) and name]
    if not names or len(names) < len(given):
        raise ConfigurationError("methods", methods, "a list such as ['POST']")
    return frozenset(names)


class DeclaredLimits:
    """The limits of whole apps and blueprints, as declared on one guard."""

    #: Those of guards that have limits but no app.
    _idle: ClassVar[WeakSet[DeclaredLimits]] = WeakSet()

    def __init__(self) -> None:
        self.apps: list[tuple[Flask | None, Limit]] = []
        self.blueprints: list[tuple[Blueprint, Limit]] = []
        self._claimed = False

    @classmethod
    def any_idle(cls) -> bool:
        """Tell whether limits were declared on a guard that has no app: they apply nowhere."""
        return len(cls._idle) > 0

    def claim(self) -> None:
        """Note that the guard has an app."""
        self._claimed = True
        self._idle.discard(self)

    def limit_app(self, app: Any, rates: Rates, options: dict[str, Any]) -> None:
        """Declare a limit of an app, or of all.

        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        if isinstance(app, LocalProxy):
            app = app._get_current_object()
        if not isinstance(app, (Flask, type(None))):
            raise ConfigurationError("app", app, "a Flask app, or None for all of the guard's")
        self.apps.append((app, self._declare(rates, options)))

    def limit_blueprint(self, blueprint: Any, rates: Rates, options: dict[str, Any]) -> None:
        """Declare a limit of a blueprint.

        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        if not isinstance(blueprint, Blueprint):
            raise ConfigurationError("blueprint", blueprint, "the Blueprint itself")
        self.blueprints.append((blueprint, self._declare(rates, options)))

    def _declare(self, rates: Rates, options: dict[str, Any]) -> Limit:
        if options.get("defer"):
            raise ConfigurationError("defer", True, "False; it needs a decorated view")
        limit = Limit.declare(rates, **options)
        if not self._claimed:
            self._idle.add(self)
        return limit


class AppLimits:
    """The limits of one app as a whole and of its blueprints.

    :param app: the app.
    :param default: the rates of ``REDIS_GUARD_DEFAULT_LIMITS``.
    :param declared: what was declared on the app's guard, before or after this.
    """

    def __init__(self, app: Flask, default: tuple[Rate, ...], declared: DeclaredLimits) -> None:
        self._app = app
        self._default = [Limit(default)] if default else []
        self._declared = declared

    def of_app(self) -> list[Limit]:
        """Return the limits of every request."""
        declared = self._declared.apps
        return self._default + [limit for app, limit in declared if app in (None, self._app)]

    def of_blueprint(self, blueprint: object) -> list[Limit]:
        """Return the limits of a blueprint's requests."""
        return [limit for other, limit in self._declared.blueprints if other is blueprint]


@contextmanager
def refusing_errors() -> Iterator[None]:
    """Work a limit out with functions of the user: what they raise is a 503, never a free pass."""
    try:
        yield
    except (RedisUnavailable, HTTPException):
        raise
    except Exception as exc:
        logger.exception("A limit could not be worked out: the request is refused")
        raise unavailable(RedisUnavailable("rate limit", "limit-failed")) from exc


def unavailable(error: RedisUnavailable) -> RedisUnavailable:
    """Let the answer to the client name what it is that cannot be asked."""
    error.description = UNAVAILABLE
    return error
