"""Calls of server-side scripts whose errors always refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, Final

import redis
from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError

from flask_redis_guard.client.operation import Operation, current, innermost
from flask_redis_guard.client.outcomes import judge
from flask_redis_guard.client.replies import read_reply
from flask_redis_guard.errors import RedisTimeout, RedisUnavailable

#: Replies of scripts are bytes, whatever ``decode_responses`` and ``encoding`` say to the user.
_AS_BYTES: Final[dict[str, Any]] = {NEVER_DECODE: True}

# The last from foreign clients that decode replies.
_NO_ANSWER: Final = (redis.RedisError, OSError, UnicodeDecodeError)

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
        self._by_digest = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % self.digest
        self._by_text = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(self.text), self.text)

    def __call__(
        self, client: Any, keys: Sequence[bytes], args: Sequence[bytes], numbers: int
    ) -> list[int]:
        """Run it, and return the whole numbers that it answers.

        :param numbers: how many; the script gives them as one text with spaces between them.
        :raises RedisUnavailable: for every error reply and every answer of another shape.
        """
        return self.ask_numbers(client, self.pack(len(keys), (*keys, *args)), numbers)

    def ask_numbers(self, client: Any, packed: bytes, numbers: int) -> list[int]:
        """Make a call as :meth:`ask` does, and return the whole numbers that it answers."""
        return self.read_numbers(self.ask(client, packed), numbers)

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
            return self.read_numbers(reply, numbers)
        except RedisUnavailable as error:
            return error

    def read_numbers(self, reply: Any, numbers: int) -> list[int]:
        """Return the whole numbers that a reply holds.

        :raises RedisUnavailable: for a reply of another shape.
        """
        try:
            found = list(map(int, reply.split()))
            if len(found) == numbers:
                return found
        except (AttributeError, TypeError, ValueError):
            pass
        raise RedisUnavailable(self.operation, "rejected")

    def run(self, client: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run it: one round trip, two where the server did not know the script.

        :raises RedisUnavailable: for every error reply.
        """
        return self.ask(client, self.pack(len(keys), (*keys, *args)))

    def pack(self, keys: int, words: Iterable[bytes]) -> bytes:
        """Return a call as it is sent: a part of it that changes may be put in later.

        :param keys: how many of the words are keys.
        :param words: keys and arguments.
        """
        words = (b"%d" % keys, *words)
        packed = b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])
        return b"*%d\r\n%b%b" % (len(words) + 2, self._by_digest, packed)

    def ask(self, client: Any, packed: bytes) -> Any:
        """Make a call, and return its reply in bytes.

        With a guarded client it is one operation, below redis-py's layer of commands.

        :param packed: from :meth:`pack`.
        :raises RedisUnavailable: for every error reply.
        """
        gate = getattr(client, "gate", None)
        if gate is None:
            return guarded(self.operation, self._command, client, packed)
        channel = client.channel
        if (
            channel is None
            or gate.in_memory
            or gate.memory_only
            or (innermost.get() is not None and current(gate) is not None)
        ):
            return guarded(
                self.operation, gate.run, "EVALSHA", partial(self._command, client, packed)
            )
        operation = gate.begin("EVALSHA")
        try:
            if self.digest in channel.known:
                reply = channel.ask(operation, packed)
                if type(reply) is NoScriptError:  # a restart or SCRIPT FLUSH
                    reply = self._introduce(channel, operation, packed)
            else:
                reply = self._introduce(channel, operation, packed)
            if isinstance(reply, Exception):
                raise reply
        except BaseException as exc:
            error = _refusal(self.operation, gate.fail(operation, exc))
            if error is exc:
                raise
            raise error from exc
        gate.succeed(operation)
        return reply

    def _introduce(self, channel: Any, operation: Operation, packed: bytes) -> Any:
        """Send the script itself, which the server keeps for the next call."""
        reply = channel.ask(operation, packed.replace(self._by_digest, self._by_text, 1))
        channel.known.add(self.digest)
        return reply

    def _command(self, client: Any, packed: bytes) -> Any:
        """Make a call by way of redis-py."""
        _, _, keys, *words = read_reply(packed, 0)[0]
        try:
            return client.execute_command("EVALSHA", self.digest, int(keys), *words, **_AS_BYTES)
        except NoScriptError:
            return client.execute_command("EVAL", self.text, int(keys), *words, **_AS_BYTES)


def guarded(operation: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result of a call to Redis.

    :raises RedisUnavailable: whatever Redis or the client said instead of a result. The control
        that asked has no answer, and so it refuses.
    """
    try:
        return call(*args, **options)
    except _NO_ANSWER as error:
        refusal = _refusal(operation, error)
        if refusal is error:
            raise
        raise refusal from error


def _refusal(operation: str, error: BaseException) -> BaseException:
    """Return what the caller of a script is to see: no error reply may pass for an answer."""
    if isinstance(error, RedisUnavailable) or not isinstance(error, _NO_ANSWER):
        return error
    reason = judge(error).reason or "rejected"
    return (RedisTimeout if reason == "timeout" else RedisUnavailable)(operation, reason)
