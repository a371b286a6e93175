"""The alert subscriber: it logs what an operator should hear, and keeps the last of it, folded."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from flask import Flask

from flask_redis_guard import (
    circuit_state_changed,
    downtime_extended,
    failure_rate_high,
    rate_limit_exceeded,
    redis_recovered,
)

logger = logging.getLogger("example_app.alerts")

#: An event that equals one of so many latest ones is told together with it.
FOLDED = 3


class AlertLog:
    """Log alerts and remember the latest, for the page.

    :param app: the app whose signals it listens to.
    :param size: how many it remembers.
    """

    def __init__(self, app: Flask, size: int = 30) -> None:
        self._latest: deque[dict[str, Any]] = deque(maxlen=size)
        self._number = 0
        circuit_state_changed.connect(self._changed, app)
        redis_recovered.connect(self._recovered, app)
        failure_rate_high.connect(self._failing, app)
        downtime_extended.connect(self._down, app)
        rate_limit_exceeded.connect(self._limited, app)

    def latest(self) -> list[dict[str, Any]]:
        """Return the latest alerts, newest first."""
        return list(reversed(self._latest))

    def _tell(self, level: int, text: str) -> None:
        logger.log(level, text)
        self._number += 1
        told = {"number": self._number, "at": time.time(), "text": text, "times": 1}
        for before in list(self._latest)[-FOLDED:]:
            if before["text"] == text:  # a flood is one line that counts
                told["times"] = before["times"] + 1
                self._latest.remove(before)
        self._latest.append(told)

    def _changed(self, app: Flask, previous: str, current: str, **event: Any) -> None:
        self._tell(logging.WARNING, f"Breaker: {previous} → {current} ({event['reason']})")

    def _recovered(self, app: Flask, downtime: float) -> None:
        self._tell(logging.INFO, f"Redis serves again after {downtime:.1f} s")

    def _failing(self, app: Flask, failures: int, window_seconds: float) -> None:
        self._tell(logging.ERROR, f"{failures} failures within {window_seconds:g} s")

    def _down(self, app: Flask, downtime: float) -> None:
        self._tell(logging.ERROR, f"Redis has been down for {downtime:.0f} s")

    def _limited(self, app: Flask, decision: Any, endpoint: str | None, **event: Any) -> None:
        self._tell(logging.INFO, f"Limit of {decision.rate} reached on {endpoint}")
