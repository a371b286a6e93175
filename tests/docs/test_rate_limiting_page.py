"""The examples of the page about rate limits have the effect that it promises."""

from __future__ import annotations

from tests.docs.blocks import ROOT
from tests.docs.test_code_blocks import python_blocks, run_blocks
from tests.support import RedisServer

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
    found = python_blocks(page.read_text())
    export = next(n for n, block in enumerate(found) if "/export" in block.source)
    run_blocks(found[: export + 1], page, redis_server, CHECKS)
