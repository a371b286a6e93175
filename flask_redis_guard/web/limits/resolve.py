"""Functions and what they were decorated with: found under other decorators, and above routes.

``@rate_limited`` above ``@app.route`` comes too late: the route registered the function that it was
given, and what the decorator returns is called by nobody. Such a function is recognised while it is
defined, and its route gets the decorator all the same.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from flask import Flask
from flask.views import MethodView

from flask_redis_guard.errors import ConfigurationError

logger = logging.getLogger("flask_redis_guard")

MARK = "__redis_guard_limits__"
#: Left on a function whose routes get decorators that stand above them.
ABOVE = "__redis_guard_above__"
#: Left on a function that was limited when others may have known it as it is.
ELSEWHERE = "__redis_guard_elsewhere__"

#: Functions looked at for one view.
_MOST = 50
_FUNCTIONS = (FunctionType, MethodType, functools.partial)


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


def function_scope(function: Any) -> str:
    """Return the scope of a limit that is checked when its function is called.

    :param function: a function, a partial one or an object that can be called.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"function:{named.__module__}.{named.__qualname__}"


def marks_of(view: Any, mark: str = MARK) -> dict[Any, bool]:
    """Return what a view, or one of the functions that it wraps, was decorated with.

    ``functools.wraps`` hands the mark on. A decorator that does without has the view in its closure
    or, being an object, in an attribute. Those are followed only into functions defined elsewhere,
    for a view may well close over a neighbour that has a limit of its own.

    :param view: a view function as it was registered.
    :param mark: the attribute that a decorator leaves.
    :returns: the marks; true for those that are the view's for certain. The others may be those of
        a function that the view calls, as often as it likes.
    """
    found: dict[Any, bool] = {}
    seen: list[Any] = []
    queue = deque([(view, True)])
    while queue and len(seen) < _MOST:
        function, own = queue.popleft()
        if any(function is other for other in seen):
            continue
        seen.append(function)
        for one in getattr(function, mark, ()):
            found[one] = own or found.get(one, False)
        queue.extendleft((inner, own) for inner in _wrapped_by(function))
        home = _home(function)
        queue.extend(
            (inner, False)
            for inner in _inside(function)
            if (hasattr(inner, mark) or hasattr(inner, "__wrapped__")) and _home(inner) != home
        )
    return found


def handler_of(view: Any, method: str) -> Any:
    """Return the method of a ``MethodView`` that answers an HTTP method; ``None`` if none does."""
    view_class = getattr(view, "view_class", None)
    if not (inspect.isclass(view_class) and issubclass(view_class, MethodView)):
        return None
    handler = getattr(view_class, method.lower(), None)
    return view_class.get if handler is None and method == "HEAD" else handler  # type: ignore[attr-defined]


def note_above(function: Any, decorate: Callable[[Any], Any]) -> None:
    """Note a decorator for the routes of a function that stand below it.

    While the statement that defines a function runs, nothing but the decorators below knows it. So
    whichever app comes to have it as a view, it has it from one of them.

    :param function: what the decorator was given.
    :param decorate: the decorator.
    """
    if not _note(function, decorate, sys._getframe(2), []):
        with suppress(AttributeError, TypeError):  # as below
            setattr(function, ELSEWHERE, True)


def view_of(app: Flask, endpoint: str) -> Any:
    """Return an endpoint's view, under the decorators that stand above its route.

    :param app: the app.
    :param endpoint: the endpoint; ``None`` is returned for an unknown one.
    """
    view: Any = app.view_functions.get(endpoint)
    if getattr(view, ABOVE, ()):
        # Threads that do this at once put equal views there.
        view = app.view_functions[endpoint] = _placed(view)
    return view


def is_limited_elsewhere_only(view: Any) -> bool:
    """Tell whether a view is registered as it is, though another function limits it."""
    return ELSEWHERE in getattr(view, "__dict__", ()) and not marks_of(view)


def place_hooks(app: Flask) -> None:
    """Put ``before_request`` functions and error handlers under the decorators above them.

    :param app: the app.
    """
    for hooks in app.before_request_funcs.values():
        hooks[:] = map(_placed, hooks)
    for codes in app.error_handler_spec.values():
        for handlers in codes.values():
            handlers.update({kind: _placed(handler) for kind, handler in handlers.items()})


def _placed(function: Any) -> Any:
    above = getattr(function, ABOVE, ())
    if not above:
        return function
    for decorate in above:
        function = decorate(function)
    setattr(function, ABOVE, ())
    logger.warning(
        "A limit of %s stands above its route, which does not see it. It is applied all the same; "
        "put it below.",
        function_scope(function),
    )
    return function


def _note(
    function: Any, decorate: Callable[[Any], Any], frame: FrameType | None, seen: list[Any]
) -> bool:
    """Note it on a function that is being defined, and on all that wrap it by now."""
    if len(seen) >= _MOST or any(function is other for other in seen):
        return False
    seen.append(function)
    inner = [*_wrapped_by(function), *_inside(function)]
    noted = [_note(one, decorate, frame, seen) for one in inner]
    if not any(noted) and not _is_being_defined(function, frame):
        return False
    with suppress(AttributeError, TypeError):  # an object without attributes
        setattr(function, ABOVE, (*vars(function).get(ABOVE, ()), decorate))
    return True


def _is_being_defined(function: Any, frame: FrameType | None) -> bool:
    """Tell whether a frame on the stack is at the decorators of a function."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return False
    last = max((line for _, _, line in code.co_lines() if line is not None), default=0)
    while frame is not None:
        here = frame.f_code
        at_decorators = code.co_firstlineno <= frame.f_lineno <= last
        if at_decorators and here is not code and here.co_filename == code.co_filename:
            return True
        frame = frame.f_back
    return False


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


def _home(function: Any) -> tuple[str, str]:
    """Where a function was defined; an object is at home in its class."""
    qualname = getattr(function, "__qualname__", None)
    parent = type(function).__qualname__ if qualname is None else qualname.rpartition(".")[0]
    return getattr(function, "__module__", None) or "", parent
