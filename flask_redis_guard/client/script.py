"""Calls of server-side scripts whose errors always refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, Final

import redis
from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError

from flask_redis_guard.client.outcomes import judge
from flask_redis_guard.errors import RedisTimeout, RedisUnavailable

#: Replies of scripts are bytes, whatever ``decode_responses`` and ``encoding`` say to the user.
_AS_BYTES: Final[dict[str, Any]] = {NEVER_DECODE: True}

#: A redis-py client, or what gives one for each operation.
ClientSource = Any


def is_cluster(client: object) -> bool:
    """Whether a client is one of a cluster, the guard's or any: keys of one call share a slot."""
    return isinstance(client, redis.RedisCluster)


def client_getter(source: ClientSource) -> Callable[[], Any]:
    """The same in both cases: a callable without arguments that gives a client."""
    if callable(source) and not hasattr(type(source), "execute_command"):
        return source  # type: ignore[no-any-return]
    return lambda: source


def read_lua(package: str, *names: str) -> str:
    """Return the text of files, joined in this order.

    :param package: where they are.
    """
    folder = files(package)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


class Script:
    """A script, called by its digest.

    :param operation: what an error says was tried.
    :param text: the script itself.
    """

    def __init__(self, operation: str, text: str) -> None:
        self.operation = operation
        #: As bytes, for a client with another encoding would send another text.
        self.text = text.encode()
        digest = hashlib.sha1(self.text, usedforsecurity=False)
        self.digest = digest.hexdigest().encode()  # as bytes, which redis-py sends as they are

    def __call__(
        self, client: Any, keys: Sequence[bytes], args: Sequence[bytes], numbers: int
    ) -> list[int]:
        """Run it, and return the whole numbers that it answers.

        :param numbers: how many; the script gives them as one text with spaces between them.
        :raises RedisUnavailable: for every error reply and every answer of another shape.
        """
        return self._read(self.run(client, keys, args), numbers)

    def many(
        self,
        client: Any,
        calls: Sequence[tuple[Sequence[bytes], Sequence[bytes]]],
        numbers: int,
    ) -> list[list[int] | RedisUnavailable]:
        """Run it several times in one round trip, two where the server did not know the script.

        :param calls: keys and arguments of each; the keys of all are on one server.
        :param numbers: as above.
        :returns: what each answered, or its error.
        :raises RedisUnavailable: if none was answered.
        """
        replies = guarded(self.operation, self._pipelined, client, calls, known=True)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = [calls[number] for number in unknown]
            answers = guarded(self.operation, self._pipelined, client, again, known=False)
            for number, reply in zip(unknown, answers, strict=True):
                replies[number] = reply
        return [self._read_or_error(reply, numbers) for reply in replies]

    def _pipelined(self, client: Any, calls: Sequence[Any], *, known: bool) -> list[Any]:
        with client.pipeline(transaction=False) as pipeline:
            for keys, args in calls:
                call = ("EVALSHA", self.digest) if known else ("EVAL", self.text)
                pipeline.execute_command(*call, len(keys), *keys, *args, **_AS_BYTES)
                known = True  # by those that follow
            return list(pipeline.execute(raise_on_error=False))

    def _read_or_error(self, reply: Any, numbers: int) -> list[int] | RedisUnavailable:
        try:
            return self._read(reply, numbers)
        except RedisUnavailable as error:
            return error

    def _read(self, reply: Any, numbers: int) -> list[int]:
        try:
            found = list(map(int, reply.split()))
        except (AttributeError, TypeError, ValueError):
            found = []
        if len(found) != numbers:
            raise RedisUnavailable(self.operation, "rejected")
        return found

    def run(self, client: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run it: one round trip, two where the server did not know the script.

        :raises RedisUnavailable: for every error reply.
        """
        gate = getattr(client, "gate", None)  # where it is guarded, a reload is the same operation
        if gate is None:
            return guarded(self.operation, self._run, client, keys, args)
        call = partial(self._run, client, keys, args)
        return guarded(self.operation, gate.run, "EVALSHA", call)

    def _run(self, client: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        exchange = getattr(client, "exchange", None)
        try:
            if exchange is not None and client.shares_round_trips:
                return exchange(pack(b"EVALSHA", self.digest, b"%d" % len(keys), *keys, *args))
            # What client.evalsha() does, without its two calls on the way.
            return client.execute_command(
                "EVALSHA", self.digest, len(keys), *keys, *args, **_AS_BYTES
            )
        except NoScriptError:  # a restart or SCRIPT FLUSH; EVAL keeps it for the next call
            if exchange is not None and client.shares_round_trips:
                return exchange(pack(b"EVAL", self.text, b"%d" % len(keys), *keys, *args))
            return client.execute_command("EVAL", self.text, len(keys), *keys, *args, **_AS_BYTES)


def pack(*words: bytes) -> bytes:
    """Return a command in RESP."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(w), w) for w in words])


def guarded(operation: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result of a call to Redis.

    :raises RedisUnavailable: whatever Redis or the client said instead of a result. The control
        that asked has no answer, and so it refuses.
    """
    try:
        return call(*args, **options)
    except RedisUnavailable:
        raise
    except (redis.RedisError, OSError, UnicodeDecodeError) as error:  # the last: foreign clients
        reason = judge(error).reason or "rejected"
        kind = RedisTimeout if reason == "timeout" else RedisUnavailable
        raise kind(operation, reason) from error
