"""The runbook and its neighbours name all that there is."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from flask_redis_guard import CircuitState, signals
from flask_redis_guard.client.outcomes import TABLE
from flask_redis_guard.web import metrics
from flask_redis_guard.web.alerts import story as alerts

DOCS = Path(__file__).resolve().parents[2] / "docs"


def first_cells(page: str) -> set[str]:
    """The words in code style in the first column of the page's tables."""
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / page).read_text(), re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def test_runbook_explains_every_reason() -> None:
    reasons = {row.verdict.reason for row in TABLE if row.verdict.reason}
    assert reasons | {"circuit-open", "rejected", "limit-failed", "session-ended"} <= first_cells(
        "operations.md"
    )


def test_runbook_explains_every_state_and_signal() -> None:
    known = first_cells("operations.md")
    assert {state.value for state in CircuitState} <= known
    sent = {name for name, value in vars(signals).items() if type(value).__name__ == "NamedSignal"}
    assert len(sent) >= 8
    assert sent <= known


def test_every_metric_is_described() -> None:
    collectors = (m for m in vars(metrics).values() if isinstance(m, (Counter, Gauge, Histogram)))
    families = [family for collector in collectors for family in collector.describe()]
    names = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    assert names == first_cells("metrics.md")


def test_every_kind_of_alert_is_described() -> None:
    assert set(alerts._WORDS) <= first_cells("alerts.md")


def test_runbook_explains_the_lines_of_an_outage() -> None:
    page = (DOCS / "operations.md").read_text()
    source = (DOCS.parent / "flask_redis_guard" / "observe" / "outage.py").read_text()
    lines = re.findall(r'logger\.\w+\(\s*"([^"]+)"', source)
    assert len(lines) >= 6
    for line in lines:
        assert re.split(r"%[\d.]*\w", line)[0].strip() in page, line
