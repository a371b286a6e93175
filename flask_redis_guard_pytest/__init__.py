"""The pytest plugin: outages and the audit as fixtures.

It is found by itself where the package is installed. The fixtures need a fixture ``app`` that
gives the Flask app, as Flask's own tutorial has it.

This module stands outside the package, and imports it only for a fixture that is used: pytest
imports it at its very start, ahead of a ``conftest.py`` that has gevent patch the standard
library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from flask_redis_guard.core.breaker import CircuitBreaker
    from flask_redis_guard.testing.examples import Examples
    from flask_redis_guard.testing.findings import AuditReport


@pytest.fixture
def redis_outage(app: Flask, request: pytest.FixtureRequest) -> Iterator[CircuitBreaker]:
    """Redis fails during the test; gives the app's breaker.

    It cannot be connected to, unless the test says otherwise:
    ``@pytest.mark.parametrize("redis_outage", ["hang", "read-only"], indirect=True)``.
    """
    from flask_redis_guard.testing.outages import outage

    with outage(app, getattr(request, "param", "refused")) as breaker:
        yield breaker


@pytest.fixture
def redis_hang(app: Flask) -> Iterator[CircuitBreaker]:
    """Redis does not answer during the test; gives the app's breaker."""
    from flask_redis_guard.testing.outages import outage

    with outage(app, "hang") as breaker:
        yield breaker


@pytest.fixture
def redis_read_only(app: Flask) -> Iterator[CircuitBreaker]:
    """Redis takes no writes during the test; gives the app's breaker."""
    from flask_redis_guard.testing.outages import outage

    with outage(app, "read-only") as breaker:
        yield breaker


class AuditOfApp(Protocol):
    """Audits the app of the test."""

    def __call__(
        self,
        requests: Examples | None = None,
        *,
        fail_on: Iterable[str] = ...,
        **options: Any,
    ) -> AuditReport:
        """Audit the app, and fail the test if something fails.

        :param requests: as of :func:`flask_redis_guard.testing.audit`, and so are the options.
        :param fail_on: the verdicts that fail.
        """


@pytest.fixture
def redis_audit(app: Flask) -> AuditOfApp:
    """Audits the app when it is called: ``redis_audit(requests="audit.json")``."""
    from flask_redis_guard.testing.audit import audit
    from flask_redis_guard.testing.findings import BAD
    from flask_redis_guard.testing.rendering import as_table

    def run(
        requests: Examples | None = None,
        *,
        fail_on: Iterable[str] = BAD,
        **options: Any,
    ) -> AuditReport:
        report, verdicts = audit(app, requests, **options), tuple(fail_on)
        if report.bad(verdicts) or not report.findings:
            pytest.fail(as_table(report, verdicts), pytrace=False)
        return report

    return run
