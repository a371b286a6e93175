"""Refusals as HTTP: the net that makes every one of them a 429 or 503 with ``Retry-After``.

Flask turns what is raised in a view into a response, but an exception raised by an
``after_request`` function or by a session interface becomes a 500, HTTP exception or not. An app's
own handler for 503, ``HTTPException`` or ``redis.ConnectionError`` is asked first in every case.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flask.globals
from flask import Flask, Request, Response, has_request_context, request, request_finished
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_set_header

from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import CircuitOpen, RateLimitExceeded, RedisTimeout, RedisUnavailable
from flask_redis_guard.events import Bus, RequestRefused

logger = logging.getLogger("flask_redis_guard")

REFUSALS = (RedisUnavailable, RateLimitExceeded)

#: Where Flask before 3.2 keeps the context of the request; later versions hand it on, and warn of
#: this name.
_CONTEXT = "request_ctx"

#: Where a request's WSGI environment remembers that its refusal was announced.
_ANNOUNCED = "flask_redis_guard.announced"


def install(app: Flask, bus: Bus) -> None:
    """Put the net under one app's error handling.

    Flask documents both methods as points to override in a subclass; here they are overridden on
    the one instance, so that no other app is touched.

    :param app: the app.
    :param bus: told of requests that are answered with 503.
    """
    handle_user_exception: Callable[..., Any] = app.handle_user_exception
    handle_exception: Callable[..., Response] = app.handle_exception
    finalize_request: Callable[..., Response] = app.finalize_request

    # The arguments are passed on as they come: their number differs between versions of Flask.
    def user_exception(*args: Any) -> Any:
        error = args[-1]
        if not isinstance(error, REFUSALS):
            return handle_user_exception(*args)
        try:
            answer = handle_user_exception(*args)
        except REFUSALS as again:
            if again is error:  # TRAP_HTTP_EXCEPTIONS
                raise
            answer = error  # the app's own handler needs Redis as well
        response = keep_retry_after(app.make_response(answer), error)
        announce(bus, error, response)
        return response

    def exception(*args: Any) -> Response:
        error = args[-1]
        if not isinstance(error, REFUSALS):
            return handle_exception(*args)
        try:
            answer = user_exception(*args)
        except REFUSALS:
            answer = keep_retry_after(app.make_response(error), error)
            announce(bus, error, answer)
        except Exception as other:  # noqa: BLE001 - whatever the app's own handler raises
            return handle_exception(*args[:-1], other)
        _without_session(app, *args[:-1])
        kept = getattr(error, "kept_headers", None)
        if kept is None:
            answer = finalize(app, partial(finalize_request, *args[:-1]), answer)
        else:  # every after_request function has run, on the response that this one replaces
            take_over(answer, kept)
            request_finished.send(app, _async_wrapper=app.ensure_sync, response=answer)
        return keep_retry_after(answer, error)

    vars(app).update(handle_user_exception=user_exception, handle_exception=exception)


class EarlyReplies:
    """Refusals of one route as responses, for requests that no view has seen yet.

    They are what raising them would come to: where an app may have a say in that, nothing is
    answered here.

    :param app: the app.
    :param bus: told of requests that are answered with 503.
    :param blueprints: the names of the route's blueprints.
    """

    def __init__(self, app: Flask, bus: Bus, blueprints: Sequence[str]) -> None:
        self._app = app
        self._bus = bus
        unchanged = (
            getattr(app.handle_user_exception, "__module__", None) == __name__
            and getattr(app.handle_http_exception, "__func__", None) is Flask.handle_http_exception
            and type(app).handle_user_exception is Flask.handle_user_exception
            and not app.config["TRAP_HTTP_EXCEPTIONS"]
        )
        names = (*blueprints, None)
        kinds = (RedisUnavailable, CircuitOpen, RedisTimeout)
        self._exceeded = unchanged and not _is_handled(app, RateLimitExceeded, names)
        self._unavailable = unchanged and not any(_is_handled(app, kind, names) for kind in kinds)
        self._bodies: dict[tuple[str, ...], str] = {}

    def exceeded(
        self, asked: Request, decision: Decision, names: tuple[str, ...]
    ) -> Response | None:
        """Return the answer to a request that is over a limit.

        :param names: the names of the policies that refuse.
        """
        if not self._exceeded or "text/html" in asked.environ.get("HTTP_ACCEPT", ""):
            return None
        body = self._bodies.get(names)
        if body is None:
            if len(self._bodies) > 100:
                self._bodies.clear()
            body = self._bodies[names] = RateLimitExceeded(decision, names).get_body()
        seconds = int(-(-decision.retry_after // 1))
        retry = ("Retry-After", f"{max(1, seconds)}")
        return self._app.response_class(body, 429, [*_STATIC, retry])

    def unavailable(self, asked: Request, error: RedisUnavailable) -> Response | None:
        """Return the answer to a request whose limits cannot be told."""
        if not self._unavailable or "text/html" in asked.environ.get("HTTP_ACCEPT", ""):
            return None
        key = (error.description or "",)
        body = self._bodies.get(key)
        if body is None:
            body = self._bodies[key] = error.get_body()
        retry = ("Retry-After", error.retry_after_header())
        response = self._app.response_class(body, 503, [*_STATIC, retry])
        announce(self._bus, error, response)
        return response


#: What every such refusal says. It is not stored, and so needs no ``Vary``.
_STATIC = (("Content-Type", "application/problem+json"), ("Cache-Control", "no-store"))


def _is_handled(app: Flask, kind: type[HTTPException], names: Sequence[str | None]) -> bool:
    """Tell whether an app has a handler for an error, as Flask looks for one."""
    spec = app.error_handler_spec
    return any(
        cls in spec.get(name, {}).get(code, {})
        for name in names
        for code in (kind.code, None)
        for cls in kind.__mro__
    )


def finalize(
    app: Flask, finalize_request: Callable[[Response], Response], answer: Response
) -> Response:
    """Let ``after_request`` functions and the session interface see a refusal; it stands.

    :param app: the app.
    :param finalize_request: Flask's own.
    :param answer: the refusal.
    """
    cookies = answer.headers.getlist("Set-Cookie")
    try:
        return finalize_request(answer)
    except REFUSALS as again:  # the same function or interface once more: nothing new
        logger.debug("Redis is still not there while a request is refused: %s", again)
    except Exception:
        # As Flask does while it handles an error.
        app.logger.exception("Request finalizing failed while refusing a request")
    # What could not be finished must not leave a cookie that claims it was.
    answer.headers.setlist("Set-Cookie", cookies)
    return answer


def _without_session(app: Flask, *contexts: Any) -> None:
    """Where no session could be opened, let none be saved, and hooks find an empty one.

    :param contexts: the context of the request, which Flask hands on from 3.2 on.
    """
    context = contexts[0] if contexts else getattr(flask.globals, _CONTEXT)
    name = "_session" if hasattr(context, "_session") else "session"  # before Flask 3.1.3
    if getattr(context, name) is None:
        setattr(context, name, app.session_interface.make_null_session(app))


def discard(response: Response, error: BaseException) -> None:
    """Close a complete response that must not be sent, because of an error to be raised then.

    What the answer is to take over is noted in the error: ``Vary``, and the CORS headers, without
    which a script in a browser could not even see the status.

    :param response: the response, streamed or not.
    :param error: what is about to be raised.
    """
    try:
        response.close()
    except Exception:
        logger.exception("Closing a response that is not sent failed")
    if isinstance(error, RedisUnavailable):
        error.kept_headers = Headers(
            (name, value)
            for name, value in response.headers
            if name.lower() == "vary" or name.lower().startswith("access-control-")
        )


def take_over(response: Response, kept: Headers) -> Response:
    """Add to an answer what :func:`discard` kept of the response that it replaces."""
    for name, value in kept:
        if name.lower() == "vary":
            response.vary.update(parse_set_header(value))
        elif name not in response.headers:
            response.headers.add(name, value)
    return response


def keep_retry_after(response: Response, error: RedisUnavailable | RateLimitExceeded) -> Response:
    """Add ``Retry-After`` where an app's own handler left it out of a 429 or 503."""
    if response.status_code in (429, 503):
        response.headers.setdefault("Retry-After", error.retry_after_header())
    return response


def announce(bus: Bus, error: RedisUnavailable | RateLimitExceeded, response: Response) -> None:
    """Emit :class:`RequestRefused`, once for a request that is answered with 503."""
    if not isinstance(error, RedisUnavailable) or response.status_code != 503:
        return
    if has_request_context():
        if request.environ.get(_ANNOUNCED):
            return
        request.environ[_ANNOUNCED] = True
    endpoint = request.endpoint if has_request_context() else None
    bus.emit(RequestRefused(error, endpoint))
