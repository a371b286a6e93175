"""The client handed to users: a ``redis.Redis`` each of whose operations passes the gate once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import redis
from redis.client import Monitor, Pipeline, PubSub
from redis.cluster import ClusterPipeline
from redis.commands.core import Script

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import current, innermost
from flask_redis_guard.client.outcomes import judge
from flask_redis_guard.client.transport.commands import PLAIN, is_plain
from flask_redis_guard.client.transport.connections import GuardedConnection
from flask_redis_guard.client.transport.foreign import adopt
from flask_redis_guard.client.transport.pool import GuardedPool, no_retries
from flask_redis_guard.errors import RedisUnavailable


def operation_name(args: tuple[Any, ...]) -> str:
    """Return what an operation is called: the command's name, never its arguments."""
    return str(args[0]).upper() if args else "COMMAND"


def _is_observed() -> bool:
    """Tell whether redis-py's own telemetry is switched on."""
    try:
        from redis.observability.providers import get_observability_instance
    except ImportError:  # redis-py before 7.2
        return False
    manager = get_observability_instance().get_provider_manager()
    return manager is not None and bool(manager.config.enabled_telemetry)


class GuardedScript(Script):
    """A registered script: loading it again after ``NOSCRIPT`` belongs to the same operation."""

    def __call__(self, keys: Any = (), args: Any = (), client: Any = None) -> Any:
        gate = getattr(client or self.registered_client, "gate", None)

        def call() -> Any:
            return Script.__call__(self, keys or (), args or (), client)

        queued = isinstance(client or self.registered_client, (Pipeline, ClusterPipeline))
        return call() if gate is None or queued else gate.run("EVALSHA", call)


class GuardedRedis(redis.Redis):
    """A ``redis.Redis`` behind a circuit breaker.

    :param connection_pool: a pool, of redis-py's too: a guarded one then stands for it.
    :param options: for ``redis.Redis``.
    """

    #: Of the app that has a class of its own, and where its pool leads: a library may build
    #: another client of the class of the one that it was handed.
    app_gate: ClassVar[Gate | None] = None
    place: ClassVar[dict[str, Any] | None] = None

    def __init__(self, *args: Any, connection_pool: Any = None, **options: Any) -> None:
        if connection_pool is None:
            connection_pool = redis.Redis(*args, **options).connection_pool
        pool = adopt(connection_pool, self.app_gate, self.place)
        self.gate: Gate = pool.gate
        self.connection_pool: Any
        self.connection: Any
        if options.get("single_connection_client"):
            self.gate.run("CONNECTION", lambda: self._init(pool, options))
        else:
            self._init(pool, options)

    def _init(self, pool: GuardedPool, options: dict[str, Any]) -> None:
        super().__init__(connection_pool=pool, **options)
        #: What its scripts share round trips by, if anything.
        self.channel = None if self.connection else pool.channel
        #: Whether it has a connection of its own, or redis-py is to measure each command.
        self._is_special = self.connection is not None or _is_observed()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, as one operation."""
        gate = self.gate
        if (
            not args
            or args[0] not in PLAIN
            or gate.in_memory
            or gate.memory_only
            or self._is_special
            or innermost.get() is not None
        ):
            return self._execute_otherwise(args, options)
        # What follows is Gate.run() around redis-py's own execute_command(), without the detours:
        # the connection is bound to the operation, and there is nothing to be tried again.
        operation = gate.begin(args[0])
        try:
            try:
                operation.entered = True
                innermost.set(operation)
                pool = self.connection_pool
                connection = pool.take(operation)
                try:
                    connection.ask(operation, args)
                    result = self.parse_response(connection, args[0], **options)
                finally:
                    pool.give_back(connection)
            finally:
                operation.entered = False
                innermost.set(None)
        except BaseException as exc:
            error = gate.fail(operation, exc)
            if error is exc:
                raise
            raise error from exc
        gate.succeed(operation, result)
        return result

    def _execute_otherwise(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        call = super().execute_command
        is_plain(args)  # if it is one, the next of its name goes the short way
        if self.connection is None:
            return self.gate.run(operation_name(args), lambda: call(*args, **options))

        def on_held() -> Any:
            self._renew()
            return call(*args, **options)

        return self.gate.run(operation_name(args), on_held)

    def _renew(self) -> None:
        """Have the one connection be one to where this operation is served."""
        operation, held = current(self.gate), self.connection
        if (
            operation is not None
            and self.gate.memory is not None
            and operation.in_memory is isinstance(held, GuardedConnection)
        ):
            self.connection = self.connection_pool.get_connection("_")
            self.connection_pool.release(held)
        if isinstance(self.connection, GuardedConnection):
            self.connection.renew()

    def set_retry(self, retry: Any) -> None:
        """Refuse: one operation is one try, and nothing is sent a second time.

        :raises ConfigurationError: always.
        """
        raise no_retries(retry)

    def register_script(self, script: Any) -> GuardedScript:
        """Return a callable for a Lua script."""
        return GuardedScript(self, script)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> GuardedPipeline:
        """Return a pipeline whose ``execute`` is one operation."""
        return GuardedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )

    def pubsub(self, **options: Any) -> GuardedPubSub:
        """Return a subscriber; subscribing is an operation, waiting for messages is not."""
        return GuardedPubSub(self.connection_pool, **options)

    def monitor(self) -> GuardedMonitor:
        """Return a listener to all commands; waiting for one is not an operation."""
        return GuardedMonitor(self.connection_pool)


class GuardedPipeline(Pipeline):
    """A pipeline: ``execute`` is one operation, and so is each command sent while watching."""

    def __init__(self, connection_pool: GuardedPool, *args: Any, **options: Any) -> None:
        self.gate: Gate = connection_pool.gate
        super().__init__(connection_pool, *args, **options)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all queued commands, as one operation."""
        queued, scripts, explicit = self.command_stack, self.scripts, self.explicit_transaction
        call = super().execute

        def again() -> list[Any]:
            # Every try starts from the same queue: reset() has emptied it after a first one.
            self.command_stack, self.scripts = queued, scripts
            self.explicit_transaction = explicit
            return call(raise_on_error)

        if not queued and not self.watching:
            return []
        return self.gate.run("PIPELINE", again)

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command now, as one operation."""
        call = super().immediate_execute_command
        return self.gate.run(operation_name(args), lambda: call(*args, **options))

    def reset(self) -> None:  # type: ignore[override]
        """Forget what is queued and give the connection back; never waits for a dead server."""
        if getattr(self, "watching", False) and self.connection is not None:
            self.connection.disconnect()  # takes the watches along without a round trip
            self.watching = False
        super().reset()


class GuardedPubSub(PubSub):
    """A subscriber whose commands and reconnects pass the gate."""

    @property
    def gate(self) -> Gate:
        """The client's gate."""
        gate: Gate = self.connection_pool.gate
        return gate

    def execute_command(self, *args: Any) -> Any:
        """Send a (p|s)(un)subscribe command, as one operation; the answer is a message."""
        call = super().execute_command
        self.gate.run(operation_name(args), lambda: call(*args), answered=False)

    def parse_response(self, block: bool = True, timeout: float = 0) -> Any:
        """Wait for a message.

        :raises RedisUnavailable: if the connection was lost; redis-py has then tried to
            reconnect once, through the gate.
        """
        try:
            return super().parse_response(block=block, timeout=timeout)
        except RedisUnavailable:
            raise
        except (redis.ConnectionError, redis.TimeoutError, OSError) as exc:
            reason = judge(exc).reason or "connection"
            raise RedisUnavailable("PUBSUB", reason) from exc


class GuardedMonitor(Monitor):
    """A listener to all commands of the server."""

    def __init__(self, connection_pool: GuardedPool) -> None:
        self.gate: Gate = connection_pool.gate
        start: Callable[[Any], None] = super().__init__
        self.gate.run("MONITOR", lambda: start(connection_pool))

    def __enter__(self) -> Any:
        self.gate.run("MONITOR", super().__enter__)
        if isinstance(self.connection, GuardedConnection):
            self.connection._sock.settimeout(None)  # from here on it waits for others' commands
        return self
