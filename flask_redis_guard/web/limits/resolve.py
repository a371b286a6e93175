"""The limits of a view: marks that decorators leave on functions, looked up once for each route.

A decorator marks its wrapper *and* the function that it was given, with all that this wraps. So the
order of decorators does not matter: whichever of these functions an app registers, its limits are
found. Where it cannot be told whether a function is a view's own, it is taken to be.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from flask import Blueprint, Flask
from flask.views import MethodView
from werkzeug.routing import Rule

from flask_redis_guard.errors import ConfigurationError
from flask_redis_guard.web.limits.declared import AppLimits, Limit
from flask_redis_guard.web.limits.subjects import Key

if TYPE_CHECKING:
    from flask.sansio.scaffold import Scaffold

MARK = "__redis_guard_limits__"

#: Functions looked at for one view.
_MOST = 50
_FUNCTIONS = (FunctionType, MethodType, functools.partial)


@dataclass(slots=True, eq=False)
class Marks:
    """What decorators left on one function.

    :param owner: the function; ``functools.wraps`` copies the marks to others.
    """

    owner: Any
    #: What a call of the function is checked against: its wrapper's, and those that it wraps.
    called: tuple[Any, ...] = ()
    #: What stands above the function, and so is not checked by calling it. True where it wraps the
    #: function for certain.
    above: dict[Any, bool] = field(default_factory=dict)
    #: Whether the function is a wrapper of ours.
    is_wrapper: bool = False


class Found(NamedTuple):
    """How a declaration belongs to a view."""

    #: Whether it is the view's for certain. Else it may be that of a function which the view calls,
    #: as often as it likes.
    own: bool
    #: Whether a wrapper that checks it is called when the view is.
    called: bool


def check_function(function: Any) -> None:
    """Check what a decorator was given.

    :raises ConfigurationError: for anything that decorating would leave without a limit.
    """
    if not callable(function) or inspect.isclass(function):
        raise ConfigurationError(
            "function",
            function,
            "a function. Stand below @sock.route, which returns none; a class-based view has "
            "`decorators` for it",
        )


def mark(function: Any, wrapper: Any, *declared: Any) -> None:
    """Record on a function, and on its wrapper, what a decorator declared.

    :param function: what the decorator was given.
    :param wrapper: what it returns, which checks the declarations at each call.
    :param declared: any objects, known by their identity.
    """
    marks = getattr(function, MARK, None)
    inner = () if marks is None else marks.called
    setattr(wrapper, MARK, Marks(wrapper, (*declared, *inner), is_wrapper=True))
    seen: list[Any] = []
    queue = deque([(function, True)])
    while queue and len(seen) < _MOST:
        function, certain = queue.popleft()
        if any(function is other for other in seen):
            continue
        seen.append(function)
        _mark_above(function, declared, certain)
        wrapped = list(_wrapped_by(function))
        queue.extend((inner, certain) for inner in wrapped)
        if not wrapped:
            queue.extend((inner, False) for inner in _inside(function) if _other(function, inner))


def _mark_above(function: Any, declared: Iterable[Any], certain: bool) -> None:
    target = getattr(function, "__func__", function)  # a bound method has no attributes of its own
    marks = getattr(target, MARK, None)
    if marks is None or marks.owner is not target:
        marks = Marks(target, () if marks is None else marks.called)
        with suppress(AttributeError, TypeError):  # an object without attributes
            setattr(target, MARK, marks)
    for one in declared:
        marks.above[one] = certain or marks.above.get(one, False)


def marks_of(view: Any) -> dict[Any, Found]:
    """Return what a view, or one of the functions that it wraps, was decorated with.

    A decorator without ``functools.wraps`` has the view in its closure or, being an object, in an
    attribute. Those are followed only into functions defined elsewhere, for a view may well close
    over a neighbour that has a limit of its own.

    :param view: a view function as it was registered.
    """
    found: dict[Any, Found] = {}
    seen: list[Any] = []
    queue = deque([(view, True, True)])
    while queue and len(seen) < _MOST:
        function, own, outermost = queue.popleft()
        if any(function is other for other in seen):
            continue
        seen.append(function)
        marks: Marks | None = getattr(function, MARK, None)
        if marks is not None:
            _collect(found, marks, own, outermost)
            # What stands above a wrapper of ours is noted on the wrapper too: what else is noted
            # below belongs to other uses of the inner function.
            outermost = outermost and not (marks.is_wrapper and _is_owner(marks, function))
        queue.extendleft((inner, own, outermost) for inner in _wrapped_by(function))
        queue.extend(
            (inner, False, outermost)
            for inner in _inside(function)
            if (hasattr(inner, MARK) or hasattr(inner, "__wrapped__")) and _other(function, inner)
        )
    return found


def _collect(found: dict[Any, Found], marks: Marks, own: bool, outermost: bool) -> None:
    for one in marks.called:
        before = found.get(one)
        found[one] = Found(own or (before is not None and before.own), called=True)
    for one in marks.above if outermost else ():
        found.setdefault(one, Found(own, called=False))


def _is_owner(marks: Marks, function: Any) -> bool:
    return marks.owner is getattr(function, "__func__", function)


def stands_above(function: Any) -> list[Any]:
    """Return what was declared above a function that an app has registered as it is.

    :param function: a hook or an error handler: only what wraps it for certain applies.
    """
    marks: Marks | None = getattr(function, MARK, None)
    if marks is None or not _is_owner(marks, function):
        return []
    return [one for one, certain in marks.above.items() if certain and one not in marks.called]


def below_limits(function: Any) -> Iterator[Any]:
    """Return a function and, if it is a wrapper of a limit, those that the limits stand on."""
    yield function
    marks: Marks | None = getattr(function, MARK, None)
    while marks is not None and marks.is_wrapper and _is_owner(marks, function):
        function = getattr(function, "__wrapped__", None)
        if function is None:
            return
        yield function
        marks = getattr(function, MARK, None)


def wrapped_chain(view: Any) -> list[Any]:
    """Return a view and the functions that it wraps for certain, outermost first."""
    chain: list[Any] = []
    queue = deque([view])
    while queue and len(chain) < _MOST:
        function = queue.popleft()
        if not any(function is other for other in chain):
            chain.append(function)
            queue.extend(_wrapped_by(function))
    return chain


def handler_of(view: Any, method: str) -> Any:
    """Return the method of a ``MethodView`` that answers an HTTP method; ``None`` if none does."""
    view_class = getattr(view, "view_class", None)
    if not (inspect.isclass(view_class) and issubclass(view_class, MethodView)):
        return None
    handler = getattr(view_class, method.lower(), None)
    return view_class.get if handler is None and method == "HEAD" else handler  # type: ignore[attr-defined]


def declared_for(app: Flask, endpoint: str, method: str) -> dict[Any, Found]:
    """Return what was declared for an endpoint and method.

    What a method of a ``MethodView`` was decorated with is no view's own: one class may serve
    several endpoints.
    """
    view = app.view_functions.get(endpoint)
    handler = handler_of(view, method)
    found = {} if handler is None else marks_of(handler)
    found = {one: Found(False, how.called) for one, how in found.items()}
    found.update(marks_of(view))
    return found


class Countable(Protocol):
    """What has counters in a scope."""

    def spaces(self, default_key: Key) -> set[Hashable]:
        """Return what its counters are named by beside the scope."""

    def clashes(self, default_key: Key) -> set[Hashable]:
        """Return the spaces of others that could name one of its counters."""


class Scopes:
    """Gives each limit of a view, blueprint or app a scope: a space of its own for its counters.

    Limits that would share a counter though nothing joins them (``scope=``) are told apart by a
    number, which depends on what stands before them alone.

    :param default_key: who is counted where a limit does not say it.
    """

    def __init__(self, default_key: Key = None) -> None:
        self._default_key = default_key
        self._taken: set[tuple[str, Hashable]] = set()

    def take(self, declared: Countable, scope: str) -> str:
        """Note that a declaration counts in a scope, and return the scope."""
        self._taken.update((scope, space) for space in declared.spaces(self._default_key))
        return scope

    def give(self, declared: Countable, scope: str) -> str:
        """Return the scope of a declaration, and note it.

        :param scope: what it would be counted in if it were the only one.
        """
        numbered, number = scope, 1
        clashes = declared.clashes(self._default_key)
        while any((numbered, space) in self._taken for space in clashes):
            number += 1
            numbered = f"{scope}#{number}"
        return self.take(declared, numbered)


@dataclass(slots=True, eq=False)
class Route:
    """What limits requests of one rule and method, looked up at the first of them.

    :param rule: the URL rule; ``None`` where no rule matched.
    :param view: the view function as it was registered when this was looked up.
    :param version: of the limits of apps and blueprints.
    """

    rule: Rule | None
    view: Any
    version: int
    #: Judged together, ahead of everything else in the request.
    ahead: tuple[tuple[Limit, str], ...] = ()
    #: Those of them that are exempted by the request itself where it is for a static file.
    of_app: int = 0
    #: Judged ahead for certain, and for the first call of a function that may be the view's.
    covered: frozenset[Limit] = frozenset()
    covered_once: frozenset[Limit] = frozenset()
    #: Declared above the route, so that no wrapper checks them.
    above: frozenset[Any] = frozenset()
    #: Those of them that are not judged ahead: checked right before the view.
    late: tuple[Any, ...] = ()
    #: The scopes of all declarations of the view.
    scopes: dict[Any, str] = field(default_factory=dict)
    #: Whose static files are exempt.
    static: Scaffold | None = None
    #: What :mod:`.enforce` prepares of the limits ahead, where no request changes them.
    prepared: Any = None
    #: Called after the limits that are judged ahead.
    checks: tuple[Callable[[], None], ...] = ()


class Routes:
    """The limits of one app's routes.

    :param limits: those of the app as a whole and of its blueprints.
    :param health: gives the blueprint of the health routes, which is exempt.
    :param prepare: prepares the limits of a route that are judged ahead, once it serves a request.
    """

    #: More than any app has: methods of a rule that accepts all of them are the client's choice.
    _MOST: Final = 10_000

    def __init__(
        self,
        limits: AppLimits,
        health: Callable[[], Blueprint | None],
        prepare: Callable[[Route], Any] = lambda route: None,
    ) -> None:
        self.limits = limits
        self._prepare = prepare
        self._app = limits.app
        self._health = health
        #: Those that served a request.
        self.kept: dict[tuple[int, str], Route] = {}
        #: Whether a limit of a route stands above it.
        self.any_late = False
        self._checks: list[tuple[Callable[[Rule], bool], Callable[[], None]]] = []

    def add_check(self, applies: Callable[[Rule], bool], check: Callable[[], None]) -> None:
        """Let a feature check requests too, right after the limits that are judged ahead.

        :param applies: tells for which rules.
        :param check: called in each of their requests; what it raises refuses the request.
        """
        self._checks.append((applies, check))

    def find(self, rule: Rule | None, key: tuple[int, str]) -> Route:
        """Look up what limits a request, and keep it for those that follow.

        It holds as long as its rule, its view and its version are those of the request.

        :param rule: the rule that matched.
        :param key: under which it is kept: the rule's identity and the HTTP method.
        """
        if len(self.kept) >= self._MOST:
            self.kept.clear()
        route = self.look_up(rule, key[1])
        route.prepared = self._prepare(route) if route.ahead else None
        self.any_late = self.any_late or bool(route.late)
        self.kept[key] = route
        return route

    def look_up(self, rule: Rule | None, method: str) -> Route:
        """Return what limits requests of a rule and method."""
        version, scopes = self.limits.declared.version, Scopes(self.limits.default_key)
        if rule is None:
            of_app = tuple((one, scopes.give(one, "app")) for one in self.limits.of_app())
            return Route(None, None, version, of_app, len(of_app))
        endpoint: str = rule.endpoint
        route = Route(rule, self._app.view_functions.get(endpoint), version)
        if method == "OPTIONS" and getattr(rule, "provide_automatic_options", False):
            return route  # Flask answers a pre-flight by itself: no view is called
        ahead = [(one, scopes.give(one, "app")) for one in self._limits_of_app(route, endpoint)]
        route.of_app = len(ahead)
        for name in blueprint_names(endpoint):
            limits = self.limits.of_blueprint(self._app.blueprints.get(name))
            ahead += [(one, scopes.give(one, f"blueprint:{name}")) for one in limits]
        found = declared_for(self._app, endpoint, method)
        for one, how in found.items():
            called = getattr(one, "function_scope", "")
            is_own = how.own or not called
            route.scopes[one] = scopes.give(one, f"endpoint:{endpoint}") if is_own else called
        own = {
            one: how.own or not one.function_scope
            for one, how in found.items()
            if isinstance(one, Limit) and not one.defer
        }
        for one in found:
            if isinstance(one, Limit) and one.defer and one.function_scope:
                route.scopes[one] = one.function_scope
        ahead += [(one, route.scopes[one]) for one in own]
        route.ahead = tuple((one, scope) for one, scope in ahead if one.counts(method))
        route.of_app = sum(one.counts(method) for one, _ in ahead[: route.of_app])
        route.covered = frozenset(one for one, is_own in own.items() if is_own)
        route.covered_once = frozenset(own) - route.covered
        route.above = frozenset(one for one, how in found.items() if not how.called)
        route.late = tuple(
            one
            for one in found
            if one in route.above and one not in own and hasattr(one, "function_scope")
        )
        route.checks = tuple(check for applies, check in self._checks if applies(rule))
        return route

    def _limits_of_app(self, route: Route, endpoint: str) -> list[Limit]:
        """Return the limits of every request, unless the route is exempt from them.

        Static files are exempt if they are there: with ``static_url_path=""`` every URL might be
        one.
        """
        assert route.rule is not None  # noqa: S101
        names = blueprint_names(endpoint)
        blueprints = [self._app.blueprints.get(name) for name in names]
        chain = [*wrapped_chain(route.view), getattr(route.view, "view_class", None), *blueprints]
        if self.limits.exempts(*(one for one in chain if one is not None)):
            return []
        owner: Any = self._app
        if blueprints and blueprints[0] is not None:
            owner = blueprints[0]
            if owner is self._health():
                return []
        prefix = "" if owner is self._app else f"{names[0]}."
        if endpoint == f"{prefix}static" and route.rule.arguments == {"filename"}:
            route.static = owner
        return self.limits.of_app()


def blueprint_names(endpoint: str) -> list[str]:
    """Return the names of the blueprints of an endpoint, the innermost first.

    An endpoint may have a dot and no blueprint of that name.
    """
    names, name = [], endpoint.rpartition(".")[0]
    while name:
        names.append(name)
        name = name.rpartition(".")[0]
    return names


#: The functions of one qualified name, as far as they were decorated. Two lambdas have one name.
_namesakes: dict[str, list[CodeType]] = {}


def function_scope(function: Any, declared: Countable) -> str:
    """Return the scope of a limit that is checked when its function is called.

    It is the same in every process that decorates its functions in the same order, and however
    often one definition is executed.

    :param function: a function, a partial one or an object that can be called.
    :param declared: the limit, which may not be the function's first.
    """
    scopes, marks = Scopes(), getattr(function, MARK, None)
    for one in () if marks is None else marks.called:
        scopes.take(one, getattr(one, "function_scope", ""))
    return scopes.give(declared, _name_of(function))


def _name_of(function: Any) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    scope = f"function:{named.__module__}.{named.__qualname__}"
    code = getattr(inspect.unwrap(inner), "__code__", None)
    if not isinstance(code, CodeType):
        return scope
    namesakes = _namesakes.setdefault(scope, [])
    if code not in namesakes:  # equal code of one line is one function that is defined again
        namesakes.append(code)
    number = namesakes.index(code)
    return scope if number == 0 else f"{scope}#{number + 1}"


def _wrapped_by(function: Any) -> Iterator[Any]:
    for inner in (
        getattr(function, "__wrapped__", None),
        function.func if isinstance(function, functools.partial) else None,
    ):
        if callable(inner):
            yield inner


def _inside(function: Any) -> Iterator[Any]:
    """Functions that a function closes over, or that an object has.

    Nothing is asked of other things in there: a proxy would go and load what it stands for.
    """
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            if type(cell.cell_contents) in _FUNCTIONS:
                yield cell.cell_contents
    if type(function) not in _FUNCTIONS and not inspect.isclass(function):
        for inner in list(getattr(function, "__dict__", {}).values()):
            if type(inner) in _FUNCTIONS:
                yield inner


def _other(function: Any, inner: Any) -> bool:
    """Tell whether a function looks like a decorator's, and what is inside like what it was given.

    Then they were defined in different places, or the decorator was applied twice.
    """
    code = getattr(function, "__code__", None)
    twice = code is not None and code is getattr(inner, "__code__", None)
    return twice or _home(function) != _home(inner)


def _home(function: Any) -> tuple[str, str]:
    """Where a function was defined; an object is at home in its class."""
    qualname = getattr(function, "__qualname__", None)
    parent = type(function).__qualname__ if qualname is None else qualname.rpartition(".")[0]
    return getattr(function, "__module__", None) or "", parent
