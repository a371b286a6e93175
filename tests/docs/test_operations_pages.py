"""The runbook and its neighbours name all that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from flask import Flask
from prometheus_client import Counter, Gauge, Histogram

from flask_redis_guard import CircuitState, RedisGuard, signals
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
    assert {state.value for state in CircuitState} <= first_cells("operations.md")
    sent = {name for name, value in vars(signals).items() if type(value).__name__ == "NamedSignal"}
    assert len(sent) >= 8
    assert sent <= first_cells("signals.md")


def test_every_metric_is_described() -> None:
    collectors = (m for m in vars(metrics).values() if isinstance(m, (Counter, Gauge, Histogram)))
    families = [family for collector in collectors for family in collector.describe()]
    names = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    assert names | {metrics.HOST_WORKERS} == first_cells("metrics.md")


def test_every_kind_of_alert_is_described() -> None:
    assert set(alerts._WORDS) <= first_cells("alerts.md")


def test_every_detail_of_health_is_described() -> None:
    app = Flask("tests.details")
    app.config.update(ENVIRONMENT="testing", REDIS_URL="memory://")
    RedisGuard(app)
    details = app.test_client().get("/api/v1/health/detailed").get_json()["details"]
    page = (DOCS / "health.md").read_text().partition("## Who sees more")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    described = {word for row in rows for word in re.findall(r"`([^`]+)`", row)}
    assert described == details.keys()


def log_lines() -> list[str]:
    """The texts that the package logs at WARNING and above."""
    found = []
    for path in sorted((DOCS.parent / "flask_redis_guard").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id="logger"),
                        attr="warning" | "error" | "exception" | "critical",
                    ),
                    args=[ast.Constant(value=str(text)), *_],
                ):
                    found.append(text)
    return found


def test_runbook_explains_every_line_of_the_log() -> None:
    page = re.sub(r"[*`]", "", (DOCS / "operations.md").read_text())
    lines = log_lines()
    assert len(lines) > 40
    for line in lines:
        # What stands in the line whatever it is about: its longest part, or as much as tells it.
        fixed = max(re.split(r"%[\d.]*\w", line), key=len).strip(" :(;")
        first = re.split(r"%[\d.]*\w", line)[0].strip(" :(;")
        assert any(len(part) > 8 and part[:25] in page for part in (first, fixed)), line
