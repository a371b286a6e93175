"""The recipes for Sentry and OpenTelemetry have the effect that the page promises."""

from __future__ import annotations

import pytest

from tests.docs.blocks import ROOT
from tests.docs.test_code_blocks import python_blocks, run_blocks
from tests.support import RedisServer

PAGE = ROOT / "docs" / "cookbook.md"

SENTRY = """
import os, signal
envelopes = []
sentry_sdk.get_client().transport.capture_envelope = envelopes.append
client = namespace["app"].test_client()
assert client.post("/search").status_code == 200
os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
assert {client.post("/search").status_code for _ in range(20)} == {503}
events = [envelope.get_event() for envelope in envelopes]
assert [event["level"] for event in events] == ["error", "error"], events
assert "connection failed" in events[0]["logentry"]["message"]
assert "opening" in events[1]["logentry"]["message"]
"""

TRACES = """
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
client = namespace["app"].test_client()
assert [client.get("/visits").status_code for _ in range(6)] == [200] * 5 + [429]
kinds = [span.kind.name for span in spans.get_finished_spans()]
assert kinds == ["CLIENT", "SERVER"] * 5 + ["SERVER"], kinds
served = [span for span in spans.get_finished_spans() if span.kind.name == "SERVER"]
assert served[0].name == "GET /visits"
codes = [dict(span.attributes) for span in served]
assert 429 in codes[-1].values(), codes[-1]
"""


def run_until(
    text: str, checks: str, server: RedisServer, environ: dict[str, str] | None = None
) -> None:
    """Run the page's first blocks and those up to the one with the text, and then the checks."""
    found = python_blocks(PAGE.read_text())
    ending = next(n for n, block in enumerate(found) if text in block.source)
    names = "globals().update(namespace)\n"
    run_blocks([found[0], found[ending]], PAGE, server, names + checks, environ)


def test_an_outage_is_two_events_in_sentry(own_server: RedisServer) -> None:
    pytest.importorskip("sentry_sdk")
    assert own_server.process
    environ = {"SENTRY_DSN": "http://key@127.0.0.1:1/1", "SERVER": str(own_server.process.pid)}
    run_until("sentry_sdk.init(", "import sentry_sdk\n" + SENTRY, own_server, environ)


def test_every_request_is_a_span(redis_server: RedisServer) -> None:
    pytest.importorskip("opentelemetry.instrumentation.redis")
    run_until("OpenTelemetryMiddleware(", TRACES, redis_server)
