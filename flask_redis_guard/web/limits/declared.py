"""Limits as they are declared: by decorators, for whole apps, for blueprints."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypedDict, get_args
from weakref import WeakSet

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.local import LocalProxy

from flask_redis_guard.config import Settings
from flask_redis_guard.core.arguments import answer_of
from flask_redis_guard.core.rates import ALGORITHMS, AlgorithmName, Rate, parse_rates
from flask_redis_guard.errors import ConfigurationError, RedisUnavailable
from flask_redis_guard.limiting.keys import read_rates
from flask_redis_guard.limiting.plan import Charge
from flask_redis_guard.web.limits.subjects import Key, check_key, kind_of, subject_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Rates as text, as objects, or from a function that is asked at every request.
Rates = str | Rate | Iterable[str | Rate] | Callable[[], Any]

OnOutage = Literal["deny", "local", "allow"]
Algorithm = AlgorithmName

#: What a client is told, by HTTP or when its connection is closed.
UNAVAILABLE = "Rate limiting service temporarily unavailable"

logger = logging.getLogger("flask_redis_guard")


class Counted(NamedTuple):
    """One thing that is limited, as the command line shows it and finds its counters."""

    #: ``requests``, ``at once``, ``connections``, ``messages`` or ``message size``.
    kind: str
    #: The limit as text.
    limit: str
    key: Key
    #: What is counted; empty where nothing is.
    scope: str
    rates: tuple[Rate, ...] | Callable[[], Any] | None = None
    #: How many may be held at once, where that is limited.
    places: int | None = None
    #: What else was declared, as far as it is not the default.
    extras: Mapping[str, Any] = MappingProxyType({})

    def row(self) -> dict[str, Any]:
        """Return it for the command line."""
        key = "(callable)" if callable(self.key) else self.key or "default"
        extras = {k: None if (k, v) == ("on_outage", "deny") else v for k, v in self.extras.items()}
        return {"kind": self.kind, "limit": self.limit, "key": key, **extras}


class _Options(TypedDict, total=False):
    key: Key
    cost: int | Callable[[], int]
    exempt_when: Callable[[], bool] | None
    scope: str | None
    algorithm: Algorithm | None
    on_outage: OnOutage
    refund_when: Callable[[Response], bool] | None
    defer: bool
    shadow: bool


class LimitOptions(_Options, total=False):
    """What may stand beside the rates of a limit; see :func:`~flask_redis_guard.rate_limited`."""

    methods: Iterable[str] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Limit:
    """A declared limit; the arguments are those of ``rate_limited``.

    :raises ConfigurationError: naming the argument that cannot be honoured and what it accepts.
    """

    rates: tuple[Rate, ...] | Callable[[], Any]
    key: Key = None
    cost: int | Callable[[], int] = 1
    methods: frozenset[str] | None = None
    exempt_when: Callable[[], bool] | None = None
    scope: str | None = None
    algorithm: Algorithm | None = None
    on_outage: OnOutage = "deny"
    refund_when: Callable[[Response], bool] | None = None
    defer: bool = False
    shadow: bool = False
    #: The scope that a call of the decorated function is counted in.
    function_scope: str = ""
    #: What is counted, for the command line.
    kind: str = "requests"

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, (None, *ALGORITHMS))
        check_choice("on_outage", self.on_outage, get_args(OnOutage))
        check_key(self.key)
        for name in ("exempt_when", "refund_when"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigurationError(name, getattr(self, name), "a callable")
        for name in ("defer", "shadow"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(name, getattr(self, name), "a bool")
        check_scope(self.scope)
        cost = self.cost
        if not callable(cost) and (type(cost) is not int or cost < 1):
            raise ConfigurationError("cost", cost, "a whole number of at least 1, or a callable")
        for name in ("rates", "key", "cost", "exempt_when", "refund_when"):
            if inspect.iscoroutinefunction(getattr(self, name)):
                raise ConfigurationError(name, getattr(self, name), "a function that is not async")

    @classmethod
    def declare(
        cls, rates: Rates, methods: Iterable[str] | None = None, **options: Unpack[_Options]
    ) -> Limit:
        """Read the arguments as a user writes them, as far as that can be done before a request.

        :raises ConfigurationError: naming the argument and what it accepts.
        """
        algorithm = options.get("algorithm")
        check_choice("algorithm", algorithm, (None, *ALGORITHMS))
        return cls(
            rates=rates if callable(rates) else read_rates(rates, algorithm),
            methods=None if methods is None else read_methods(methods),
            **options,
        )

    def counts(self, method: str) -> bool:
        """Tell whether requests of an HTTP method count."""
        # Flask answers HEAD with the view for GET.
        known = (method, "GET") if method == "HEAD" else (method,)
        return self.methods is None or not self.methods.isdisjoint(known)

    def counted(self, scope: str) -> Iterator[Counted]:
        """Return what the command line shows.

        :param scope: what is counted where none was declared.
        """
        rates = "(callable)" if callable(self.rates) else "; ".join(map(str, self.rates))
        extras = {
            "methods": sorted(self.methods or ()),
            "algorithm": self.algorithm,
            "on_outage": self.on_outage,
            "defer": self.defer,
            "shadow": self.shadow,
        }
        yield Counted(self.kind, rates, self.key, self.scope_in(scope), self.rates, extras=extras)

    def scope_in(self, scope: str) -> str:
        """Return the scope that is counted in, where ``scope`` is what it would be."""
        return scope if self.scope is None else f"scope:{self.scope}"

    def spaces(self, default_key: Key) -> set[Hashable]:
        """Return what the counters are named by beside the scope: rates, and kinds of subjects.

        :param default_key: who is counted where the limit does not say it.
        """
        if self.scope is not None:
            return set()
        kind = kind_of(self.key or default_key)
        if callable(self.rates):
            return {(kind, "dynamic")}
        rates = {(r.limit, r.per_seconds, r.capacity, r.effective_algorithm) for r in self.rates}
        return {(kind, "static"), *((kind, rate) for rate in rates)}

    def clashes(self, default_key: Key) -> set[Hashable]:
        """Return the spaces of other limits that could name one of these counters."""
        if self.scope is not None:
            return set()
        kind = kind_of(self.key or default_key)
        if callable(self.rates):  # they may come to be any
            return {(kind, "dynamic"), (kind, "static")}
        return {(kind, "dynamic"), *self.spaces(default_key)} - {(kind, "static")}

    def applies(self) -> bool:
        """Tell whether the limit counts the current request."""
        if self.methods is not None and not self.counts(request.method):
            return False
        return self.exempt_when is None or not answer_of(self.exempt_when())

    def is_refunded(self, response: Response) -> bool:
        """Tell whether what was charged is to be given back after this response.

        :raises Exception: whatever ``refund_when`` raises; nothing is given back then.
        """
        return self.refund_when is not None and answer_of(self.refund_when(response))

    def charge(self, scope: str, settings: Settings) -> Charge:
        """Return what the limiter is asked in the current request.

        :raises Exception: whatever a function of the user raises, or ``ValueError`` for what it
            returned; the caller refuses then.
        """
        rates = self.rates
        return Charge(
            rates=parse_rates(rates(), algorithm=self.algorithm) if callable(rates) else rates,
            subject=subject_of(self.key, settings),
            cost=self.cost() if callable(self.cost) else self.cost,
            scope=self.scope_in(scope),
            refundable=self.refund_when is not None,
            shadow=self.shadow,
        )


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Check an argument that has a few values.

    :raises ConfigurationError: naming them.
    """
    if value not in choices:
        raise ConfigurationError(name, value, " or ".join(repr(c) for c in choices if c))


def check_scope(scope: object) -> None:
    """Check a ``scope`` argument.

    :raises ConfigurationError: for anything but text or ``None``.
    """
    if not isinstance(scope, (str, type(None))):
        raise ConfigurationError("scope", scope, "text")


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
        self.exempted: list[Any] = []
        #: Grows with each declaration.
        self.version = 0
        self._claimed = False

    @classmethod
    def any_idle(cls) -> bool:
        """Tell whether limits were declared on a guard that has no app: they apply nowhere."""
        return len(cls._idle) > 0

    def claim(self) -> None:
        """Note that the guard has an app."""
        self._claimed = True
        self._idle.discard(self)

    def limit_app(self, app: Any, rates: Rates, options: LimitOptions) -> None:
        """Declare a limit of an app, or of all.

        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        if isinstance(app, LocalProxy):
            app = app._get_current_object()
        if not isinstance(app, (Flask, type(None))):
            raise ConfigurationError("app", app, "a Flask app, or None for all of the guard's")
        self.apps.append((app, self._declare(rates, options)))
        self.version += 1

    def limit_blueprint(self, blueprint: Any, rates: Rates, options: LimitOptions) -> None:
        """Declare a limit of a blueprint.

        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        if not isinstance(blueprint, Blueprint):
            raise ConfigurationError("blueprint", blueprint, "the Blueprint itself")
        self.blueprints.append((blueprint, self._declare(rates, options)))
        self.version += 1

    def exempt(self, target: Any) -> None:
        """Exempt a view, a class of views or a blueprint from the limits of whole apps.

        :raises ConfigurationError: for anything else.
        """
        if not callable(target) and not isinstance(target, Blueprint):
            raise ConfigurationError("target", target, "a view, a view class or a Blueprint")
        self.exempted.append(target)
        self.version += 1

    def _declare(self, rates: Rates, options: LimitOptions) -> Limit:
        if options.get("defer"):
            raise ConfigurationError("defer", True, "False; it needs a decorated view")
        for name in options:
            if name not in LimitOptions.__annotations__:
                near = difflib.get_close_matches(name, LimitOptions.__annotations__, 1)
                known = near or sorted(LimitOptions.__annotations__)
                raise ConfigurationError(name, "...", "no such option; known: " + ", ".join(known))
        limit = Limit.declare(rates, **options)
        if not self._claimed:
            self._idle.add(self)
        return limit


class AppLimits:
    """The limits of one app as a whole and of its blueprints.

    :param app: the app.
    :param settings: with the default limits and the default key.
    :param declared: what was declared on the app's guard, before or after this.
    """

    def __init__(self, app: Flask, settings: Settings, declared: DeclaredLimits) -> None:
        default = settings.default_limits
        self.app = app
        self.default_key: Key = settings.default_key
        self._default = [Limit(rates=default)] if default else []
        self.declared = declared

    def of_app(self) -> list[Limit]:
        """Return the limits of every request."""
        declared = self.declared.apps
        return self._default + [limit for app, limit in declared if app in (None, self.app)]

    def of_blueprint(self, blueprint: object) -> list[Limit]:
        """Return the limits of a blueprint's requests."""
        return [limit for other, limit in self.declared.blueprints if other is blueprint]

    def exempts(self, *targets: object) -> bool:
        """Tell whether one of these is exempt from the limits of every request."""
        exempted = self.declared.exempted
        return any(one is target for one in exempted for target in targets)


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
