"""A Sentinel set-up and a cluster, both of real servers."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import redis

from tests.support.servers import RedisServer
from tests.support.waiting import eventually

SLOTS = 16_384
#: The user, and its password, as whom replicas and sentinels log in at data servers.
PEERS = "peers"
#: The node timeout of a cluster that is being set up.
PATIENT_MS = 15_000
# A replica does not wait for others to join its first synchronisation.
REPLICATION = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}


class _Topology:
    """Servers that are closed together."""

    servers: list[RedisServer]

    def __enter__(self: Any) -> Any:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every server."""
        with contextlib.ExitStack() as stack:
            for server in self.servers:
                stack.callback(server.close)

    def by_port(self, port: int) -> RedisServer:
        """The server that listens on a port."""
        return next(server for server in self.servers if server.port == port)


class SentinelSetup(_Topology):
    """One primary, its replicas and three sentinels that fail over within about two seconds.

    Replicas and sentinels log in as a user of their own, so that :meth:`isolate` can cut a primary
    off from them while clients still reach it.

    :param name: what the sentinels call the primary.
    :param password: of the data servers.
    :param sentinel_password: of the sentinels.
    :param replicas: how many.
    :param options: more for the configuration of the data servers.
    """

    def __init__(
        self,
        name: str = "mymaster",
        *,
        password: str | None = None,
        sentinel_password: str | None = None,
        down_after_ms: int = 500,
        replicas: int = 1,
        options: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.replicas = replicas
        self.options = options or {}
        self.password = password
        self.sentinel_password = sentinel_password
        self.down_after_ms = down_after_ms
        self.data_servers: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []

    @property
    def servers(self) -> list[RedisServer]:  # type: ignore[override]
        """All of them, sentinels first."""
        return self.sentinels + self.data_servers

    def start(self) -> None:
        """Start all; wait until the replicas are in sync and every sentinel knows all others."""
        login = {"masteruser": PEERS, "masterauth": PEERS}
        primary = self._add_data_server({**REPLICATION, **login, **self.options})
        replica = {"replicaof": f"127.0.0.1 {primary.port}"}
        for _ in range(self.replicas):
            self._add_data_server({**REPLICATION, **login, **self.options, **replica})
        for _ in range(3):
            self._add_sentinel(primary.port)
        self.let_sentinels_talk(every_ms=100)
        eventually(self._complete, 20, "the sentinels know one another and the replicas in sync")
        self.let_sentinels_talk()

    def let_sentinels_talk(self, every_ms: int = 2000) -> None:
        """Set how often sentinels tell one another of themselves and of the primary.

        They leave a replaced primary four of these periods before they make a replica of it.

        :param every_ms: milliseconds; Sentinel's own 2000 when left out. Servers are asked what
            they are after five times as long.
        """
        periods = ("PUBLISH-PERIOD", every_ms, "INFO-PERIOD", 5 * every_ms)
        for sentinel in self.sentinels:
            with sentinel.client() as client, contextlib.suppress(redis.ResponseError):
                # Redis before 7 has no such command, and takes its time.
                client.execute_command("SENTINEL", "DEBUG", *periods)

    def primary(self) -> RedisServer:
        """Whom the sentinels that live agree on as the primary."""

        def agreed() -> RedisServer | None:
            alive = [sentinel for sentinel in self.sentinels if sentinel.alive]
            ports = {int(self._master(sentinel)["port"]) for sentinel in alive}
            return self.by_port(ports.pop()) if len(ports) == 1 else None

        server = eventually(agreed, 10, "the sentinels agree on a primary")
        assert server is not None
        return server

    def replace_primary(self) -> None:
        """Have the sentinels promote a replica although the primary is well, as an operator does.

        Comes back before they have done so.
        """
        with self.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", self.name)

    def isolate(self, server: RedisServer, *, ended: bool = False) -> None:
        """Cut a primary off from its replicas and the sentinels; clients still reach it.

        :param ended: end that.
        """
        assert self.password, "without one everybody may come in as the default user"
        with server.client() as client:
            client.acl_setuser(PEERS, enabled=ended)
            if not ended:
                for kind in ("replica", "normal", "pubsub"):
                    client.execute_command("CLIENT KILL", "TYPE", kind, "USER", PEERS)

    @property
    def url(self) -> str:
        """``redis+sentinel://`` URL of database 0."""
        login = f":{self.password}@" if self.password else ""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{login}{hosts}/{self.name}/0"

    def _add_data_server(self, options: dict[str, str]) -> RedisServer:
        access = "~* &* +@all"
        users = [f"user {PEERS} on >{PEERS} {access}"]
        if self.password is None:
            users.append(f"user default on nopass {access}")
        server = RedisServer(password=self.password, options=options, acl=users)
        self.data_servers.append(server)
        return server.start()

    def _add_sentinel(self, port: int) -> None:
        lines = [
            f"monitor {self.name} 127.0.0.1 {port} 2",
            f"down-after-milliseconds {self.name} {self.down_after_ms}",
            f"failover-timeout {self.name} 3000",
            f"auth-user {self.name} {PEERS}",
            f"auth-pass {self.name} {PEERS}",
        ]
        if self.sentinel_password:
            # What the sentinels use among themselves.
            lines.append(f'sentinel-pass "{self.sentinel_password}"')
        server = RedisServer(
            sentinel=True, password=self.sentinel_password, options={"sentinel": lines}
        )
        self.sentinels.append(server)
        server.start()

    def _master(self, sentinel: RedisServer) -> dict[str, Any]:
        with sentinel.client() as client:
            return dict(client.sentinel_masters()[self.name])  # redis-py 6.4 cannot ask for one

    def _complete(self) -> bool:
        for replica in self.data_servers[1:]:
            with replica.client() as client:
                if client.info("replication")["master_link_status"] != "up":
                    return False
        views = [self._master(sentinel) for sentinel in self.sentinels]
        return all(
            view["num-slaves"] == self.replicas
            and view["num-other-sentinels"] == 2
            and view["is_master"]
            for view in views
        )


class ClusterSetup(_Topology):
    """A cluster of primaries with one replica each; a dead primary is replaced in seconds.

    The nodes are patient until all is set up: on a busy machine one that gets no turn for longer
    than ``node_timeout_ms`` would be forgotten in the middle of its handshake, for good.

    :param primaries: how many; at least three, or no majority can vote after a death.
    :param password: of every node.
    :param options: more for the configuration of the nodes.
    """

    def __init__(
        self,
        primaries: int = 3,
        *,
        password: str | None = None,
        node_timeout_ms: int = 1000,
        options: dict[str, str] | None = None,
    ) -> None:
        self.password = password
        configuration: dict[str, str | int] = {
            **REPLICATION,
            **(options or {}),
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": PATIENT_MS,
            **({"masterauth": f'"{password}"'} if password else {}),
        }
        self.primary_count = primaries
        self.node_timeout_ms = node_timeout_ms
        self.servers = [
            RedisServer(password=password, options=configuration) for _ in range(2 * primaries)
        ]

    def start(self) -> None:
        """Start the nodes, deal out the slots, and wait until every node calls it well."""
        for server in self.servers:
            server.start()
        primaries = self.servers[: self.primary_count]
        for index, server in enumerate(primaries):
            first = SLOTS * index // self.primary_count
            end = SLOTS * (index + 1) // self.primary_count
            # ADDSLOTSRANGE would be shorter, but Redis 6 lacks it.
            self._ask(server, "ADDSLOTS", *range(first, end))
        for epoch, server in enumerate(self.servers, start=1):
            self._ask(server, "SET-CONFIG-EPOCH", epoch)
        for server in self.servers[1:]:
            self._ask(server, "MEET", "127.0.0.1", self.servers[0].port)
        eventually(self._all_know, 60, "every node knows all others")
        replicas = self.servers[self.primary_count :]
        for primary, replica in zip(primaries, replicas, strict=True):
            self._ask(replica, "REPLICATE", self._ask(primary, "MYID"))
        eventually(self.settled, 60, "cluster_state:ok and the replicas in sync")
        for server in self.servers:
            server.configure("cluster-node-timeout", self.node_timeout_ms)

    @property
    def url(self) -> str:
        """``redis+cluster://`` URL naming every node."""
        login = f":{self.password}@" if self.password else ""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+cluster://{login}{hosts}"

    def client(self, **options: Any) -> redis.RedisCluster:
        """A plain, unguarded cluster client for assertions."""
        alive = next(server for server in self.servers if server.alive)
        defaults = {"socket_timeout": 5, "decode_responses": True, "password": self.password}
        return redis.RedisCluster(host="127.0.0.1", port=alive.port, **{**defaults, **options})

    def primary_of(self, key: str) -> RedisServer:
        """The living server that now answers for a key."""
        for server in self.servers:
            if server.alive:
                with server.client() as client:
                    try:
                        client.exists(key)
                    except redis.ResponseError:
                        continue
                    if client.role()[0] in ("master", b"master"):
                        return server
        raise AssertionError(f"no living primary for {key!r}")

    def serves(self) -> bool:
        """Whether every node that answers calls the cluster well, and all slots are on such."""
        nodes = [server for server in self.servers if server.answers]
        return bool(nodes) and all(self._all_slots_on(nodes, server) for server in nodes)

    def _all_slots_on(self, nodes: list[RedisServer], server: RedisServer) -> bool:
        if "cluster_state:ok" not in self._ask(server, "INFO"):
            return False
        ports = {node.port for node in nodes}
        count = 0
        for line in self._ask(server, "NODES").splitlines():
            _, address, flags, _, _, _, _, _, *slots = line.split()
            if "master" in flags and slots:
                if int(address.partition("@")[0].rpartition(":")[2]) not in ports:
                    return False
                count += 1
        return count >= self.primary_count

    def settled(self) -> bool:
        """Whether every living node calls the cluster well and every replica is in sync."""
        return all(self._well(server) for server in self.servers if server.alive)

    def _well(self, server: RedisServer) -> bool:
        with server.client() as client:
            replication = client.info("replication")
        in_sync = replication.get("master_link_status", "up") == "up"
        if not in_sync or "cluster_state:ok" not in self._ask(server, "INFO"):
            return False
        roles = [line.split()[2] for line in self._ask(server, "NODES").splitlines()]
        replicas = sum("slave" in flags for flags in roles if "fail" not in flags)
        primaries = sum("master" in flags for flags in roles if "fail" not in flags)
        alive = sum(node.alive for node in self.servers)
        return primaries == self.primary_count and replicas == alive - primaries

    def _all_know(self) -> bool:
        """Whether every node knows all others by name: one in its handshake has none yet."""
        for server in self.servers:
            nodes = self._ask(server, "NODES").splitlines()
            if len(nodes) != len(self.servers) or any("handshake" in node for node in nodes):
                return False
        return True

    def _ask(self, server: RedisServer, *words: str | int) -> str:
        with server.client() as client:
            # Split off, so that redis-py hands on the text instead of parsing it.
            return str(client.execute_command("CLUSTER", *words))
