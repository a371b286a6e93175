"""The way of alerts to people: a queue of their own, tried again, never waited for by a request."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from inspect import iscoroutine
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from flask_redis_guard.core.process import ProcessLock, Worker, watch_forks
from flask_redis_guard.host.telling import HostIncident, Telling

logger = logging.getLogger("flask_redis_guard")

#: Messages kept for a deliverer that does not work; beyond it the oldest go.
MOST_WAITING = 100
#: Seconds before the second try of a delivery, and the most between two tries.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Tries that hang and are waited for no more; while there are so many no other one is made.
MOST_HANGING = 4


@dataclass(frozen=True)
class Alert:
    """One message. It carries no key, no value, no URL and no password."""

    #: ``connection-failed``, ``breaker-open``, ``failure-rate-high``, ``downtime-extended`` or
    #: ``recovered``.
    kind: str
    #: ``info``, ``warning``, ``error`` or ``critical``.
    severity: str
    #: One line.
    title: str
    #: What happened, what is refused, what to do.
    text: str
    #: The name of the Flask app.
    app: str
    #: The machine and the process that noticed, of several one.
    host: str
    process: int
    #: When it happened, in seconds since the epoch.
    at: float
    #: The numbers behind the text.
    details: Mapping[str, Any] = field(default_factory=dict)
    #: The same for all alerts of one outage of this host, recovery included.
    incident: str = ""
    #: Another one for each alert, and the same for each try to deliver it.
    id: str = field(default_factory=lambda: uuid4().hex)

    def __str__(self) -> str:
        where = f"{self.app}, process {self.process} on {self.host}"
        return f"[{self.severity}] {self.title} ({where}): {self.text}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as what JSON can say."""
        return {**vars(self), "details": dict(self.details)}

    def as_cloudevent(self) -> dict[str, Any]:
        """Return the alert as a CloudEvent (version 1.0, JSON event format).

        ``subject`` is the incident; ``source`` names host, app and process; what the alert says
        is in ``data``.
        """
        at = datetime.fromtimestamp(self.at, timezone.utc)
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": f"//{quote(self.host)}/{quote(self.app, safe='')}/{self.process}",
            "type": f"flask-redis-guard.{self.kind}",
            "subject": self.incident,
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": self.as_dict(),
        }


Deliver = Callable[[Alert], object]


class DeliveryQueue:
    """Deliver one message after the other, each until it is delivered.

    :param deliver: see :class:`Alerts`.
    :param timeout: seconds to wait for one try.
    :param telling: which of the workers of this host delivers; ``None``: each its own.
    """

    def __init__(self, deliver: Deliver, timeout: float, telling: Telling | None = None) -> None:
        self._telling = telling
        self._incidents: dict[str, HostIncident] = {}  # by the alert's id
        self._deliver = deliver
        self._timeout = timeout
        self._waiting: deque[Alert] = deque()
        self._lock = ProcessLock()
        self._worker = Worker("redis-guard-alerts", self._turn, "The delivery of alerts")
        self._pause = FIRST_PAUSE
        self._not_before = 0.0
        #: Tries that are waited for no more and have not ended.
        self.hanging = 0
        watch_forks(self)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, alert: Alert, incident: HostIncident | None = None) -> None:
        """Queue a message; returns at once.

        :param incident: the host's outage that it belongs to.
        """
        if incident is not None and self._telling is not None:
            self._incidents[alert.id] = incident
            self._telling.note(incident, alert.kind, alert.at, dict(alert.details))
        with self._lock:
            lost = self._waiting.popleft() if len(self._waiting) >= MOST_WAITING else None
            self._waiting.append(alert)
        if lost is not None:
            self._incidents.pop(lost.id, None)
            logger.error("Too many undelivered alerts: %s of %d is lost", lost.kind, lost.at)
        self._worker.wake()  # without a thread it waits for the next one

    def after_fork(self) -> None:
        """Leave to the parent process what it has queued."""
        self._waiting.clear()
        self._incidents.clear()
        self.hanging = 0

    def _turn(self) -> float | None:
        """Deliver all that waits; return the seconds until the next try of what failed."""
        now = time.monotonic()
        if self._waiting and now < self._not_before:
            return self._not_before - now
        while self._waiting:
            alert = self._waiting[0]
            wait = self._ask_others(alert)
            if wait:
                return wait
            if wait is None:
                self._drop(alert)
                continue
            if self.hanging >= MOST_HANGING or not self._try(alert):
                pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
                self._not_before = time.monotonic() + pause
                return pause
            self._pause, self._not_before = FIRST_PAUSE, 0.0
            self._delivered(alert)
            self._drop(alert)
        return None

    def _ask_others(self, alert: Alert) -> float | None:
        """Return 0 if this worker delivers it, seconds to wait, or ``None`` if another one has."""
        incident = self._incidents.get(alert.id)
        if incident is None or self._telling is None:
            return 0.0
        return self._telling.turn(incident, alert.kind)

    def _delivered(self, alert: Alert) -> None:
        incident = self._incidents.get(alert.id)
        if incident is not None and self._telling is not None:
            self._telling.told(incident, alert.kind)

    def _drop(self, alert: Alert) -> None:
        with self._lock:
            self._incidents.pop(alert.id, None)
            if self._waiting and self._waiting[0] is alert:
                self._waiting.popleft()

    def _final(self, alert: Alert) -> Alert:
        """Return an alert with the outage's name, which all workers agree on by now."""
        incident = self._incidents.get(alert.id)
        if incident is None or self._telling is None:
            return alert
        return replace(alert, incident=self._telling.name(incident))

    def _try(self, alert: Alert) -> bool:
        """Try once, in a thread that is waited for no longer than the patience allows."""
        done = threading.Event()
        failures: list[str | None] = []
        abandoned = False
        final = self._final(alert)

        def attempt() -> None:
            failure: str | None = "it was interrupted"
            try:
                result = self._deliver(final)
                if iscoroutine(result):
                    result.close()
                    raise TypeError("a deliverer may not be async")
                failure = "it returned False" if result is False else None
            except Exception as exc:  # noqa: BLE001 - whatever a user's function may raise
                # Not the exception's text: a webhook's URL in it is a secret.
                failure = type(exc).__name__
            finally:
                with self._lock:
                    failures.append(failure)
                    if abandoned:
                        self._outlasted(alert, delivered=failure is None)
                done.set()

        try:
            threading.Thread(target=attempt, name="redis-guard-alert", daemon=True).start()
        except RuntimeError as exc:  # out of threads or memory
            logger.error("Delivering the alert %s failed: %s", alert.kind, exc)
            return False
        done.wait(self._timeout)
        with self._lock:
            if not failures:
                abandoned = True
                self.hanging += 1
        failure = failures[0] if not abandoned else f"not done in {self._timeout:g} s"
        if failure is not None:
            logger.error("Delivering the alert %s failed: %s", alert.kind, failure)
        return failure is None

    def _outlasted(self, alert: Alert, *, delivered: bool) -> None:
        """A try that was waited for no more has ended."""
        self.hanging -= 1
        if delivered and self._waiting and self._waiting[0] is alert:
            self._delivered(alert)
            self._incidents.pop(alert.id, None)
            self._waiting.popleft()  # late, but it need not be tried again
