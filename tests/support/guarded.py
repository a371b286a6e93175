"""Apps with a guard, and what its gate saw."""

from __future__ import annotations

from typing import Any

from flask import Flask

from flask_redis_guard import RedisGuard, RedisUnavailable
from flask_redis_guard.client.transport.connections import knows_pushes
from flask_redis_guard.events import CallFinished

#: The versions of the protocol that the guard accepts with this parser.
PROTOCOLS = (2, 3) if knows_pushes() else (2,)

#: A breaker that follows but never opens, where a test looks at single operations.
NEVER_OPENS = {
    "REDIS_GUARD_FAILURE_THRESHOLD": 10_000,
    "REDIS_GUARD_MINIMUM_CALLS": 10_000,
    "REDIS_GUARD_FAILURE_ALERT_COUNT": 10_000,
}


class Guarded:
    """An app's guard without background checks, and the operations that it finished.

    :param url: of the servers.
    :param settings: more of ``REDIS_GUARD_*``.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = Flask("guarded")
        self.app.config.update(
            {"REDIS_URL": url, "REDIS_GUARD_HEALTH_CHECK_INTERVAL": 0, **settings}
        )
        self.guard = RedisGuard(self.app)
        client: Any = self.guard.client_for(self.app)
        self.client = client
        self.gate: Any = self.client.gate
        #: Name, outcome and reason of each finished operation.
        self.finished: list[tuple[str, str, str | None]] = []
        self.gate.bus.subscribe(CallFinished, self._note)

    def _note(self, call: CallFinished) -> None:
        reason = call.error.reason if isinstance(call.error, RedisUnavailable) else None
        self.finished.append((call.operation, call.outcome.value, reason))

    def close(self) -> None:
        """Close its connections."""
        pool = getattr(self.client, "connection_pool", self.client)
        pool.close() if hasattr(pool, "close") else pool.disconnect()
