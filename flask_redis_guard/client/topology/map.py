"""The map of a cluster: who serves which slot, asked of whichever node answers first."""

from __future__ import annotations

import logging
import random
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import redis
from redis import exceptions as redis_errors
from redis.cluster import ClusterNode, NodesManager, get_node_name

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import DeadlineLock, Operation, current
from flask_redis_guard.client.topology.nodes import NodePool
from flask_redis_guard.client.topology.shards import ClusterBreaker, Passage
from flask_redis_guard.client.transport.sockets import is_ready
from flask_redis_guard.core.breaker import CircuitState

logger = logging.getLogger("flask_redis_guard")

#: Nodes that are connected to at once when the map is asked for.
_RACERS: Final = 4
#: Seconds between two refreshes of a map that is only in doubt.
REFRESH_SECONDS: Final = 0.5
#: The same where something failed: less than it takes a node that hangs to do so again.
_AGAIN_SECONDS: Final = 0.1


class _Told(redis.Redis):
    """Hands redis-py the map that a node has told."""

    def __init__(self, slots: Any) -> None:
        super().__init__(connection_pool=redis.ConnectionPool())
        self._slots = slots

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args == ("INFO",):  # redis-py before 6
            return {"cluster_enabled": 1}
        if args != ("CLUSTER SLOTS",):
            raise RuntimeError(f"{args[0]} is not asked for a map")
        return self._slots


class Race:
    """Ask several nodes for the map: all are connected to at once, and the first answer counts.

    Where a node does not answer, the next one is asked as well. What was begun stays in the pools
    of the nodes, where the next operation goes on with it.

    :param operation: within whose time they are asked.
    :param pools: of the nodes, in the order in which they are asked.
    """

    def __init__(self, operation: Operation, pools: Iterator[NodePool]) -> None:
        self._operation = operation
        self._pools = pools
        self._running: dict[Any, NodePool] = {}
        self._asked: list[Any] = []
        self._next_at = 0.0
        self._failure: Exception = redis_errors.ConnectionError("no node is known")

    def run(self) -> tuple[NodePool, Any]:
        """Return who answered first, and its answer.

        :raises redis.RedisError: if nobody does in time.
        """
        try:
            self._next_at = self._operation.waited + self._operation.allowance / 3
            for _ in range(_RACERS):
                self._add()
            while self._running:
                found = self._step()
                if found is not None:
                    return found
                # What could be read, but not in time, does not end a wait for ever.
                is_over = self._operation.remaining() <= 0
                if self._running and (is_over or not self._operation.wait(self._is_due)):
                    raise redis_errors.TimeoutError("Timeout asking for the cluster's map")
            raise self._failure
        finally:
            for connection, pool in self._running.items():
                pool.give_back(connection)

    def _add(self) -> None:
        pool = next(self._pools, None)
        connection = None if pool is None else pool.begin(self._operation)
        if pool is not None and connection is not None:
            self._running[connection] = pool

    def _step(self) -> tuple[NodePool, Any] | None:
        ready = [each for each in list(self._running) if self._try(each, self._connect)]
        fresh = [each for each in ready if each not in self._asked and each in self._running]
        is_time = self._operation.waited >= self._next_at
        if fresh and (is_time or not any(each in self._running for each in self._asked)):
            self._asked.append(fresh[0])
            self._try(fresh[0], lambda c: c.send_command("CLUSTER", "SLOTS"))
        if is_time:
            self._next_at = self._operation.waited + self._operation.allowance / 3
            self._add()
        for connection in list(self._asked):
            if connection in self._running and is_ready(connection._sock, select.POLLIN, 0):
                slots = self._try(connection, lambda c: c.read_response())
                if slots:
                    return self._running[connection], slots
        return None

    def _try(self, connection: Any, call: Callable[[Any], Any]) -> Any:
        """Call something; a node that fails is out."""
        try:
            return call(connection)
        except (redis_errors.RedisError, OSError) as exc:
            self._failure = exc
            pool = self._running.pop(connection)
            connection.disconnect()
            pool.give_back(connection)
            self._add()
            return None

    def _connect(self, connection: Any) -> bool:
        """Go on connecting without waiting; true when it is connected."""
        if connection in self._asked:
            return True
        must_wait = connection.is_greeting and not connection.may_follow
        if must_wait and not is_ready(connection._sock, select.POLLIN, 0):
            return False
        operation = self._operation
        patience = operation.patience
        operation.patience = operation.waited - operation.allowance  # none is left
        try:
            connection.connect()
        except (redis_errors.TimeoutError, TimeoutError):
            return False
        finally:
            operation.patience = patience
        return True

    def _is_due(self, seconds: float) -> bool:
        """Wait until one of them can go on, or it is time to ask another one."""
        poller = select.poll()
        for connection in self._running:
            if connection._sock is not None:
                if connection in self._asked or connection.is_greeting:
                    poller.register(connection._sock, select.POLLIN)
            elif connection.awaited is not None:
                poller.register(*connection.awaited)
        pause = max(0.001, self._next_at - self._operation.waited)
        found = poller.poll(min(seconds, pause) * 1000)
        return bool(found) or pause <= seconds


class ClusterMap:
    """Who serves which slot: redis-py's map, refreshed inside operations by one caller at a time.

    :param gate: the client's gate.
    :param nodes: redis-py's map.
    :param seeds: host and port of the nodes to start from.
    """

    def __init__(self, gate: Gate, nodes: NodesManager, seeds: Sequence[tuple[str, int]]) -> None:
        self._gate = gate
        self._breaker = cast("ClusterBreaker", gate.breaker)
        self._nodes = nodes
        self._seeds = seeds
        self._refreshing = DeadlineLock(gate)
        self._initialize: Callable[[], None] = nodes.initialize
        # redis-py refreshes the map by this name, wherever it finds that it is wrong.
        nodes.initialize = self.refresh  # type: ignore[method-assign]
        #: Whether a node was asked at all in this process.
        self.known = False
        #: Whether it was wrong when it was last gone by, and could not be refreshed.
        self.stale = True
        self._asked_at = 0.0
        self._is_asking = False
        self._count = 0

    def ensure(self, operation: Operation) -> None:
        """Refresh it where that is due before an operation."""
        doubtful = self._breaker.moved or self._breaker.lets_users_probe
        due = self.age > REFRESH_SECONDS if doubtful else self.stale and self.age > _AGAIN_SECONDS
        if self.stale and self._is_asking:
            due = True  # what another operation asks for just now is waited for
        if not self.known or (due and not self._breaker.refusing):
            self.refresh()

    @property
    def age(self) -> float:
        """Seconds since nodes were last asked."""
        return time.monotonic() - self._asked_at

    def refresh(self, *_: Any, **__: Any) -> None:
        """Ask nodes for the map until one answers. If none does, a map that was known is kept.

        :raises redis.RedisError: if none does and there is no map yet.
        """
        operation = current(self._gate)
        if operation is None:
            self._gate.run("CLUSTER SLOTS", self.refresh)
            return
        permit = operation.permit
        if not isinstance(permit, Passage) or permit.asking or permit.refused:
            return
        self.stale = True  # until it is known better; a later operation will try again
        seen = self._count
        permit.ask(True)
        try:
            with self._refreshing.held():
                if self._count == seen:  # nobody else has, while we waited for our turn
                    self._ask(operation)
        except (redis_errors.RedisError, OSError) as exc:
            if not self.known:
                raise
            logger.debug("No node tells the cluster's map: %s", type(exc).__name__)
        finally:
            permit.ask(False)

    def _ask(self, operation: Operation) -> None:
        if operation.remaining() <= 0:
            raise redis_errors.TimeoutError("the operation's time is used up")
        self._asked_at = time.monotonic()
        self._is_asking = True
        try:
            with operation.sharing(1):
                if self.known:
                    operation.next_share()  # and the rest for what the operation is to do
                pool, slots = Race(operation, self._pools()).run()
            self._take_over(pool, slots)
        finally:
            self._is_asking = False

    def _take_over(self, pool: NodePool, slots: Any) -> None:
        node = ClusterNode(pool.host, pool.port, redis_connection=_Told(slots))
        self._nodes.startup_nodes = {node.name: node}
        self._initialize()
        self._count += 1
        self.known, self.stale = True, False
        slots_of: dict[str, list[int]] = {}
        for number, nodes in self._nodes.slots_cache.items():
            slots_of.setdefault(nodes[0].name, []).append(number)
        self._breaker.update(slots_of)
        self._breaker.moved = False
        self._choose_default()

    def _pools(self) -> Iterator[NodePool]:
        """Give the pools of the nodes to ask: those whose breaker is not closed come last."""
        known = [(node.host, node.port) for node in self._nodes.nodes_cache.values()]
        nodes = list(dict.fromkeys([*(known if self.known else ()), *self._seeds]))
        random.shuffle(nodes)  # not all processes the same one
        for host, port in sorted(nodes, key=lambda node: not self._serves(get_node_name(*node))):
            client = self._nodes.create_redis_node(host, port, **self._nodes.connection_kwargs)
            yield cast("NodePool", client.connection_pool)

    def _serves(self, node: str) -> bool:
        breaker = self._breaker.primaries.get(node)
        return breaker is None or breaker.state in (CircuitState.CLOSED, CircuitState.DISABLED)

    def _choose_default(self) -> None:
        """Have commands without a key sent to a primary that serves."""
        for node in self._nodes.get_nodes_by_server_type("primary"):
            if self._serves(node.name):
                self._nodes.default_node = node
                return
