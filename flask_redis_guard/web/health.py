"""The health routes: is this process alive, shall it get traffic, and how is Redis."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, current_app

from flask_redis_guard.core.breaker import CircuitState

#: The media type of draft-inadarei-api-health-check, whose words for the status are used as well.
MEDIA_TYPE = "application/health+json"


def health_blueprint(url_prefix: str, report: Callable[[], dict[str, Any]]) -> Blueprint:
    """Return the blueprint of one app's health routes.

    :param url_prefix: where to mount them.
    :param report: gives the five fields of ``guard.health()``.
    """
    blueprint = Blueprint("redis_guard", __name__, url_prefix=url_prefix)

    @blueprint.get("/live")
    def live() -> Response:
        return _answer({"status": "pass"}, 200)

    @blueprint.get("/ready")
    def ready() -> Response:
        fine = is_ready(report())
        return _answer({"status": "pass" if fine else "fail"}, 200 if fine else 503)

    @blueprint.get("/detailed")
    def detailed() -> Response:
        redis = report()
        status = "fail" if not is_ready(redis) else "pass" if redis["healthy"] else "warn"
        body = {"status": status, "redis": redis, "process": os.getpid()}
        return _answer(body, 503 if status == "fail" else 200)

    return blueprint


def is_ready(redis: dict[str, Any]) -> bool:
    """Tell whether requests that need Redis would get through now."""
    refusing = (CircuitState.OPEN, CircuitState.FORCED_OPEN)
    return bool(redis["is_mock"]) or redis["circuit_state"] not in refusing


def _answer(body: dict[str, Any], status: int) -> Response:
    text = current_app.json.dumps(body) + "\n"
    return Response(text, status, {"Cache-Control": "no-store"}, mimetype=MEDIA_TYPE)
