"""A real Redis or Valkey server for a test, to be killed, stopped and started again."""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import redis

from tests.support.binary import server_binary
from tests.support.orphans import death_signal
from tests.support.ports import PortLease
from tests.support.waiting import eventually

Options = Mapping[str, str | int] | Mapping[str, str] | Mapping[str, str | int | Iterable[str]]

DEFAULT_OPTIONS: dict[str, str] = {"save": '""', "appendonly": "no"}
# The helper's own user on a server with an ACL file, so that a test may restrict every other.
HELPER_USER = "test-helper"
# What connecting and looking cost, which no test wants to count.
UNCOUNTED = frozenset({"hello", "auth", "client", "select", "info", "config", "acl", "command"})


class PortTakenError(RuntimeError):
    """Somebody else listens on the port."""


class RedisServer:
    """One server process with a port and a directory of its own.

    Used as a context manager it is ready inside the block and gone after it. Port and directory
    stay the same from the first start to :meth:`close`, however often it dies in between.

    :param password: of the default user.
    :param acl: lines of an ACL file (``"user bob on >secret ~* +get"``).
    :param unix_socket: listen on :attr:`socket_path` too.
    :param sentinel: run as a sentinel.
    :param options: configuration directives; an iterable value gives one line for each item.
        They override ``save ""`` and ``appendonly no``.
    :param environment: added to the environment of the process.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        acl: Iterable[str] | None = None,
        unix_socket: bool = False,
        sentinel: bool = False,
        options: Options | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.binary = server_binary()
        self.password = password
        self.sentinel = sentinel
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket_path = self.directory / "server.sock" if unix_socket else None
        self.process: subprocess.Popen[bytes] | None = None
        self._acl = None if acl is None else list(acl)
        self._helper_password = secrets.token_hex(8)
        self._environment = dict(environment or {})
        self._options: Options = {**DEFAULT_OPTIONS, **(options or {})}
        self._paused = False
        self._lease: PortLease | None = None
        self._configuration: dict[str, str] = {}

    # -- life ------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> RedisServer:
        """Start the process; on its first start it looks for a free port until it has one."""
        assert not self.alive, "the server runs already"
        first = self._lease is None
        for _ in range(20):
            if first:
                self._choose_port()
            self._spawn()
            if not wait:
                return self
            try:
                self.wait_ready()
            except PortTakenError:
                if not first:
                    raise
                continue
            return self
        raise PortTakenError(self.log())

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until this very process answers and has loaded its data."""
        eventually(self._answers, timeout, f"server on port {self.port} ready")

    def kill(self) -> None:
        """End the process with SIGKILL and wait until it is gone."""
        self._paused = False
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """End the process with SIGTERM, which lets it say goodbye, and wait until it is gone."""
        self.resume()
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: the kernel still accepts connections, nobody answers."""
        self._signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT, the end of :meth:`pause`."""
        self._signal(signal.SIGCONT)
        self._paused = False

    def restart(self, *, graceful: bool = False) -> None:
        """End the process, if it lives, and start it anew on the same port and directory."""
        if graceful:
            self.terminate()
        else:
            self.kill()
        self.start()

    def close(self) -> None:
        """Kill the process, remove the directory and give the port back; may be called twice."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lease is not None:
            self._lease.release()
        atexit.unregister(self.close)

    def __enter__(self) -> RedisServer:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- looking ---------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; there is one from the first start on."""
        assert self._lease is not None, "the server was never started"
        return self._lease.port

    @property
    def alive(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self.process is not None and self.process.poll() is None

    @property
    def answers(self) -> bool:
        """Whether the process is there and not paused."""
        return self.alive and not self._paused

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0, with the password if there is one."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """``unix://`` URL of database 0."""
        assert self.socket_path is not None, "started without unix_socket=True"
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"unix://{login}{self.socket_path}?db=0"

    def client(self, **options: Any) -> redis.Redis:
        """A plain, unguarded client for assertions, with the right to do everything.

        :param options: as of ``redis.Redis``.
        """
        login: dict[str, str | None] = {"password": self.password}
        if self._acl is not None:
            login = {"username": HELPER_USER, "password": self._helper_password}
        # No retries: redis-py's own would make a dead server cost seconds.
        defaults = {"socket_timeout": 5, "decode_responses": True, "retry": None, **login}
        return redis.Redis(host="127.0.0.1", port=self.port, **{**defaults, **options})

    def calls(self, command: str | None = None) -> int:
        """How often the server ran a command since its start or the last :meth:`reset`.

        A command inside a script counts too, beside its ``evalsha``.

        :param command: ``"get"``; its subcommands are included. ``None`` counts all but those
            that connecting and looking take (``HELLO``, ``CLIENT``, ``INFO``, …).
        """
        with self.client() as client:
            statistics = client.info("commandstats")
        total = 0
        for key, value in statistics.items():
            name = key.removeprefix("cmdstat_").partition("|")[0]
            if name == command.lower() if command else name not in UNCOUNTED:
                total += value["calls"]
        return total

    def connections(self) -> int:
        """How many connections the server accepted since its start or the last :meth:`reset`."""
        with self.client() as client:
            return int(client.info("stats")["total_connections_received"])

    def log(self) -> str:
        """All the process has written."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def reset(self) -> None:
        """As freshly started: data, scripts, users, configuration, connections, statistics."""
        with self.client() as client:
            client.flushall()
            client.script_flush()
            for user in set(client.acl_users()) - {"default", HELPER_USER}:
                client.acl_deluser(user)
            for name, value in client.config_get("*").items():
                if self._configuration.get(name, value) != value:
                    client.config_set(name, self._configuration[name])
            client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
            client.config_resetstat()

    # -- within ----------------------------------------------------------------------------

    def _choose_port(self) -> None:
        if self._lease is not None:
            self._lease.release()
        self._lease = PortLease(with_cluster_bus="cluster-enabled" in self._options)
        self._write_configuration()

    def configure(self, name: str, value: str | int) -> None:
        """Set a directive now and for all starts to come."""
        with self.client() as client:
            client.config_set(name, value)
        self._options = {**self._options, name: value}
        self._write_configuration()

    def _write_configuration(self) -> None:
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}"]
        options = dict(self._options)
        if self.sentinel:
            for name in DEFAULT_OPTIONS:
                del options[name]
        if self.socket_path is not None:
            lines.append(f"unixsocket {self.socket_path}")
        if self._acl is not None:
            lines.append(f"aclfile {self._write_acl()}")
        elif self.password is not None:
            lines.append(f'requirepass "{self.password}"')
        for name, value in options.items():
            values = [value] if isinstance(value, (str, int)) else value
            lines.extend(f"{name} {item}" for item in values)
        # A file, not arguments: a sentinel keeps its state there, and no password shows in ps.
        (self.directory / "server.conf").write_text("\n".join(lines) + "\n")

    def _write_acl(self) -> Path:
        assert self._acl is not None
        lines = list(self._acl)
        if self.password is not None:
            digest = hashlib.sha256(self.password.encode()).hexdigest()  # it may have spaces
            lines.append(f"user default on #{digest} ~* &* +@all")
        lines.append(f"user {HELPER_USER} on >{self._helper_password} ~* &* +@all")
        path = self.directory / "users.acl"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _spawn(self) -> None:
        command = [self.binary, str(self.directory / "server.conf")]
        if self.sentinel:
            command.append("--sentinel")
        with (self.directory / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,
                preexec_fn=death_signal(),  # atexit serves where there is none
            )
        atexit.unregister(self.close)
        atexit.register(self.close)

    def _answers(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            kind = PortTakenError if "Address already in use" in self.log() else RuntimeError
            raise kind(f"{self.binary} ended with {code}:\n{self.log()[-2000:]}")
        try:
            with self.client(socket_timeout=1) as client:
                server = client.info()
                if server["process_id"] != self.process.pid or server.get("loading"):
                    return False
                if not self.sentinel and not self._configuration:
                    self._configuration = client.config_get("*")
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        return True

    def _signal(self, number: int) -> None:
        if self.alive:
            assert self.process is not None
            self.process.send_signal(number)

    def _end(self, number: int) -> None:
        self._signal(number)
        if self.process is None:
            return
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
