"""A client whose server's scripts are told the time by a test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from flask_redis_guard.client.script import read_lua

_CLOCK = read_lua("flask_redis_guard.limiting", "clock.lua")
_TIME = _CLOCK[_CLOCK.index("local time, grace") :].encode()
# The last argument, which the rest of the script does not see.
_TOLD = b"local now, grace = tonumber(table.remove(ARGV)), 3600000\n"


class Clocked:
    """A redis-py client, but for the limiter's scripts: they ask a test's clock, not the server's.

    :param client: the client.
    :param clock: microseconds since the Unix epoch.
    """

    def __init__(self, client: Any, clock: Callable[[], int]) -> None:
        self._client = client
        self._clock = clock
        self._digests: dict[bytes, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def execute_command(self, name: str, script: Any, *args: Any, **options: Any) -> Any:
        """Run a script; nothing else comes this way. It is known once it was given as a text."""
        if name == "EVAL":
            return self._eval(script, *args, **options)
        assert name == "EVALSHA"
        if script not in self._digests:
            raise NoScriptError("NOSCRIPT")
        told = self._digests[script]
        return self._client.execute_command("EVALSHA", told, *args, self._clock(), **options)

    def _eval(self, text: bytes, *args: Any, **options: Any) -> Any:
        assert text.count(_TIME) == 1
        told = self._client.script_load(text.replace(_TIME, _TOLD))
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        self._digests[digest] = told
        return self.execute_command("EVALSHA", digest, *args, **options)

    def pipeline(self, transaction: bool) -> Queue:
        """Return a queue of scripts, which are run one after the other."""
        assert not transaction
        return Queue(self)


class Queue:
    """What a clocked client has for a pipeline."""

    def __init__(self, client: Clocked) -> None:
        self._client = client
        self._calls: list[Callable[[], Any]] = []

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute_command(self, *args: Any, **options: Any) -> None:
        """Queue a script."""
        self._calls.append(partial(self._client.execute_command, *args, **options))

    def execute(self, raise_on_error: bool) -> list[Any]:
        """Run them, with errors among the replies."""
        assert not raise_on_error
        replies: list[Any] = []
        for call in self._calls:
            try:
                replies.append(call())
            except ResponseError as error:
                replies.append(error)
        return replies
