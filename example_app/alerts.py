"""Writes what operators should hear into the log and into the laboratory's timeline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from flask import Flask

from example_app.laboratory import Laboratory
from flask_redis_guard import Alert, circuit_state_changed, rate_limit_exceeded, redis_recovered

logger = logging.getLogger("example_app.alerts")

#: Seconds in which one process tells of a limit once, however many requests it refuses.
FOLDED = 5.0
LEVELS = {
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class Narrator:
    """Listens to one app and tells the timeline.

    :param lab: keeps the timeline.
    :param forward: delivers alerts somewhere else as well.
    """

    def __init__(self, lab: Laboratory, forward: Callable[[Alert], None] | None = None) -> None:
        self._lab = lab
        self._forward = forward
        self._limits: dict[str, float] = {}

    def listen(self, app: Flask) -> None:
        """Subscribe to the app's signals."""
        circuit_state_changed.connect(self._changed, app)
        redis_recovered.connect(self._recovered, app)
        rate_limit_exceeded.connect(self._limited, app)

    def deliver(self, alert: Alert) -> None:
        """Take an alert: for ``REDIS_GUARD_ALERT_DELIVERY``."""
        logger.log(LEVELS[alert.severity], "%s", alert)
        mood = "good" if alert.kind == "recovered" else "bad"
        self._lab.tell("alert", alert.title, mood, severity=alert.severity)
        if self._forward is not None:
            self._forward(alert)

    def _changed(self, app: Flask, previous: Any, current: Any, **event: Any) -> None:
        mood = {"closed": "good", "open": "bad"}.get(str(current), "note")
        text = f"{previous} → {current} ({event['reason']})"
        self._lab.tell("breaker", text, mood, state=str(current))

    def _recovered(self, app: Flask, downtime: float) -> None:
        self._lab.tell("recovery", f"Served again after {downtime:.1f} s", "good")

    def _limited(self, app: Flask, decision: Any, endpoint: str | None, **event: Any) -> None:
        text = f"Limit of {decision.rate} reached on {endpoint}"
        now = time.monotonic()
        if now - self._limits.get(text, -FOLDED) >= FOLDED:
            self._limits[text] = now
            self._lab.tell("limit", text)
