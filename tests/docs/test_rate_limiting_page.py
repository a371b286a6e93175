"""The examples of the page about rate limits have the effect that it promises."""

from __future__ import annotations

import json

from tests.docs.test_code_blocks import ROOT, RUNNER, python_blocks
from tests.support import RedisServer, run_python

CHECKS = """
app, client = namespace["app"], namespace["app"].test_client()

def codes(path, times, **options):
    return [client.post(path, **options).status_code for _ in range(times)]

premium = {"headers": {"X-Api-Key": "key-of-a-premium-customer"}}
assert codes("/export", 101, **premium) == [200] * 100 + [429]
forged = [{"headers": {"X-Api-Key": f"forged-{n}"}} for n in range(11)]
assert [codes("/export", 1, **options) for options in forged] == [[200]] * 10 + [[429]]
assert codes("/export", 30, environ_base={"REMOTE_ADDR": "192.0.2.10"}) == [200] * 30
assert codes("/export?pages=11", 1, environ_base={"REMOTE_ADDR": "192.0.2.11"}) == [429]
assert codes("/export?pages=10", 2, environ_base={"REMOTE_ADDR": "192.0.2.12"}) == [200, 429]
assert codes("/password", 9) == [200] * 9
"""


def test_plans_costs_exemptions_and_refunds(redis_server: RedisServer) -> None:
    page = ROOT / "docs" / "rate-limiting.md"
    sources = []
    for block in python_blocks(page.read_text()):
        sources.append((block.line, block.source))
        if "/export" in block.source:
            break
    environ = {"BLOCKS": json.dumps(sources), "PAGE": page.name, "REDIS_URL": redis_server.url}
    run_python(RUNNER + CHECKS, timeout=60, env=environ)
