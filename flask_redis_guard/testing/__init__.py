"""Outages on demand, and the audit, for the tests of an application.

Each context manager makes Redis fail in one way while its block lasts. The fault is made on the
wire: redis-py connects to a relay that refuses, falls silent, is late, answers with errors or
breaks. Everything before it is real: the exceptions, the breaker, the signals, the 503s. No server
is needed; with one, or with the in-memory store, what does not fail goes on working. While a fault
lasts the app behaves as in production: no in-memory store stands in.

At the end of the block the breaker is as new, so that no test is in the way of the next one.
"""

from __future__ import annotations

from flask_redis_guard.testing.audit import audit
from flask_redis_guard.testing.examples import Example
from flask_redis_guard.testing.findings import AuditFinding, AuditReport
from flask_redis_guard.testing.outages import hang, outage, read_only, slow

__all__ = [
    "AuditFinding",
    "AuditReport",
    "Example",
    "audit",
    "hang",
    "outage",
    "read_only",
    "slow",
]
