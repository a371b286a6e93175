"""``make bench``: all benchmarks, against a server of their own."""

from __future__ import annotations

from benchmarks import breaker, limiter
from tests.support import RedisServer

breaker.main()
print()
with RedisServer() as server:
    limiter.main(server.url)
