"""Refusals as HTTP: the net that makes every one of them a 429 or 503 with ``Retry-After``.

Flask turns what is raised in a view into a response, but an exception raised by a function run
``after_request`` or by a session interface becomes a 500, HTTP exception or not. An app's own
handler for 503, ``HTTPException`` or ``redis.ConnectionError`` is asked first in every case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, Response, has_request_context, request
from flask.globals import request_ctx

from flask_redis_guard import signals
from flask_redis_guard.errors import RateLimitExceeded, RedisUnavailable

REFUSALS = (RedisUnavailable, RateLimitExceeded)

#: Where a request's WSGI environment remembers that its refusal was announced.
_ANNOUNCED = "flask_redis_guard.announced"


def install(app: Flask) -> None:
    """Put the net under one app's error handling.

    Flask documents both methods as points to override in a subclass; here they are overridden on
    the one instance, so that no other app is touched.

    :param app: the app.
    """
    handle_user_exception: Callable[..., Any] = app.handle_user_exception
    handle_exception: Callable[..., Response] = app.handle_exception
    finalize_request: Callable[..., Response] = app.finalize_request

    # The arguments are passed on as they come: their number differs between versions of Flask.
    def user_exception(*args: Any) -> Any:
        error = args[-1]
        if not isinstance(error, REFUSALS):
            return handle_user_exception(*args)
        response = keep_retry_after(app.make_response(handle_user_exception(*args)), error)
        announce(app, error, response)
        return response

    def exception(*args: Any) -> Response:
        error = args[-1]
        if not isinstance(error, REFUSALS):
            return handle_exception(*args)
        try:
            answer = user_exception(*args)
        except REFUSALS as again:  # the app's own handler needs Redis too, or there is to be none
            answer = keep_retry_after(app.make_response(again), again)
            announce(app, again, answer)
        except Exception as other:  # noqa: BLE001 - whatever the app's own handler raises
            return handle_exception(*args[:-1], other)
        _without_session(app)
        try:
            response = finalize_request(*args[:-1], answer)
        except REFUSALS:  # the same after_request function again; the answer stands
            response = answer
        except Exception:
            # As Flask does while it handles an error.
            app.logger.exception("Request finalizing failed while refusing a request")
            response = answer
        return keep_retry_after(response, error)

    vars(app).update(handle_user_exception=user_exception, handle_exception=exception)


def _without_session(app: Flask) -> None:
    """Where no session could be opened, let none be saved, and hooks find an empty one."""
    name = "_session" if hasattr(request_ctx, "_session") else "session"  # before Flask 3.1.3
    if getattr(request_ctx, name) is None:
        setattr(request_ctx, name, app.session_interface.make_null_session(app))


def keep_retry_after(response: Response, error: RedisUnavailable | RateLimitExceeded) -> Response:
    """Add ``Retry-After`` where an app's own handler left it out of a 429 or 503."""
    if response.status_code in (429, 503):
        response.headers.setdefault("Retry-After", str(error.retry_after))
    return response


def announce(app: Flask, error: RedisUnavailable | RateLimitExceeded, response: Response) -> None:
    """Send ``request_refused``, once for a request that is answered with 503."""
    if not isinstance(error, RedisUnavailable) or response.status_code != 503:
        return
    if has_request_context():
        if request.environ.get(_ANNOUNCED):
            return
        request.environ[_ANNOUNCED] = True
    endpoint = request.endpoint if has_request_context() else None
    signals.send(signals.request_refused, app, error=error, endpoint=endpoint)
