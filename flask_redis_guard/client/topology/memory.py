"""The in-memory store of development environments, on ``fakeredis``."""

from __future__ import annotations

from typing import Any


def memory_pool(**options: Any) -> Any:
    """Return a connection pool of a store of its own, or ``None`` without ``fakeredis``.

    :param options: ``db`` and ``decode_responses``, as the real client has them.
    """
    try:
        import fakeredis
    except ImportError:
        return None
    client = fakeredis.FakeRedis(server=fakeredis.FakeServer(), **options)
    client.auto_close_connection_pool = False  # the pool outlives this client
    return client.connection_pool
