"""The faults: each on real servers, made for as long as it is told to last."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.support import ClusterSetup, Proxy, RedisServer, SentinelSetup, eventually
from tests.support.distance import FAR, Distance, can_be_apart

#: Lets the server lose nothing that it acknowledged when it is killed.
DURABLE = {"appendonly": "yes", "appendfsync": "always"}
#: The app's own user, so that the helper's can do everything meanwhile.
USERS = ["user default on nopass ~* &* +@all", "user app on >secret ~* &* +@all"]


@dataclass
class World:
    """Where Redis is in one run.

    :param url: what the app is told.
    :param reader: gives a plain client for what is checked afterwards.
    :param server: the one server, or the first.
    :param proxy: before it.
    :param topology: sentinels, or a cluster.
    :param distance: the link on which packets can be lost.
    :param names: the file that says what addresses names have.
    """

    url: str
    reader: Callable[[], Any]
    server: RedisServer
    proxy: Proxy | None = None
    topology: Any = None
    distance: Distance | None = None
    names: Path | None = None

    @property
    def between(self) -> Proxy:
        """The proxy."""
        assert self.proxy is not None
        return self.proxy


Act = Callable[[World, threading.Event], object]
Build = Callable[[ExitStack], World]


@dataclass(frozen=True)
class Fault:
    """One row of the matrix.

    :param name: what is wrong.
    :param build: makes the servers.
    :param act: makes the fault; after the event it ends it, and comes back when it has ended.
    :param seconds: how long it lasts; 0 where it ends by itself.
    :param served: whether requests are to be served all through it.
    :param forgets: whether Redis itself loses data, so that neither counts nor sessions last.
    :param apart: needs a network namespace.
    :param cannot: what cannot hold, by the first words of a finding, and why; for the page.
    """

    name: str
    build: Build
    act: Act
    seconds: float = 3.0
    served: bool = False
    forgets: bool = False
    apart: bool = False
    cannot: Mapping[str, str] = field(default_factory=dict)

    def reason(self, finding: str) -> str:
        """Return why something cannot hold; empty if it should."""
        return next((why for what, why in self.cannot.items() if finding.startswith(what)), "")


# -- servers --------------------------------------------------------------------------------------


def direct(**options: Any) -> Build:
    """Build one server that the app reaches itself."""

    def build(stack: ExitStack) -> World:
        server = stack.enter_context(RedisServer(**options))
        return World(server.url, server.client, server)

    return build


def as_user(stack: ExitStack) -> World:
    """Build one server at which the app logs in as a user of its own."""
    server = stack.enter_context(RedisServer(acl=USERS))
    return World(f"redis://app:secret@127.0.0.1:{server.port}/0", server.client, server)


def proxied(stack: ExitStack) -> World:
    """Build one server, and a proxy before it."""
    server = stack.enter_context(RedisServer())
    proxy = stack.enter_context(Proxy(server.port))
    return World(proxy.url, server.client, server, proxy)


def sentinels(stack: ExitStack) -> World:
    """Build a primary, a replica and three sentinels."""
    setup: SentinelSetup = stack.enter_context(
        SentinelSetup(options={"min-replicas-to-write": "0"})
    )

    def reader() -> Any:
        return setup.primary().client()

    return World(setup.url, reader, setup.primary(), topology=setup)


def cluster(stack: ExitStack) -> World:
    """Build three primaries with a replica each."""
    setup: ClusterSetup = stack.enter_context(ClusterSetup())
    return World(setup.url, setup.client, setup.servers[0], topology=setup)


def lossy(stack: ExitStack) -> World:
    """Build one server at the end of a link that can lose packets."""
    distance = Distance(0.001)
    server = stack.enter_context(RedisServer(options={"bind": "0.0.0.0", "protected-mode": "no"}))
    url = f"redis://{FAR}:{server.port}/0"
    return World(url, server.client, server, distance=distance)


def named(stack: ExitStack) -> World:
    """Build one server that has a name, which only a file of ours knows, and a silent resolver."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    silent.bind(("127.0.0.1", 53))
    server = stack.enter_context(RedisServer())
    names = Path("/etc/hosts")
    names.write_text("127.0.0.1 localhost redis.example\n")
    url = f"redis://redis.example:{server.port}/0"
    return World(url, server.client, server, names=names)


# -- what is done to them -------------------------------------------------------------------------


def _kill(world: World, ended: threading.Event) -> None:
    world.server.kill()
    ended.wait()
    world.server.start()


def _refuse(world: World, ended: threading.Event) -> None:
    world.between.refuse()
    ended.wait()
    world.between.listen()


def _stop(world: World, ended: threading.Event) -> None:
    world.server.pause()
    ended.wait()
    world.server.resume()


def between(action: Callable[[Proxy], object]) -> Act:
    """Let the proxy do something until the end."""

    def act(world: World, ended: threading.Event) -> None:
        action(world.between)
        ended.wait()
        world.between.resume()

    return act


def _drop(world: World, ended: threading.Event) -> None:
    assert world.distance is not None
    world.distance.dropping = True
    ended.wait()
    world.distance.dropping = False


def commands(before: list[str], after: list[str], *, kick: bool = False) -> Act:
    """Send commands to the server, and others at the end.

    :param kick: whether connections are closed at the beginning, so that all have to log in again.
    """

    def act(world: World, ended: threading.Event) -> None:
        with world.server.client() as client:
            for command in before:
                client.execute_command(*command.split(" "))
            if kick:
                client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
            ended.wait()
            for command in after:
                client.execute_command(*command.split(" "))

    return act


def again_and_again(command: str, pause: float) -> Act:
    """Send a command to the server without end."""

    def act(world: World, ended: threading.Event) -> None:
        with world.server.client() as client:
            while not ended.wait(pause):
                client.execute_command(*command.split(" "))

    return act


def _load(world: World, ended: threading.Event) -> None:
    """Restart with a snapshot that takes as long to load as the fault is to last."""
    with world.server.client() as client:
        size = client.dbsize() + 3000
        client.mset({f"ballast:{number}": "x" * 200 for number in range(3000)})
        client.config_set("key-load-delay", 3_000_000 // size)
        client.config_set("loading-process-events-interval-bytes", 1024)
        client.config_rewrite()
        with contextlib.suppress(redis.ConnectionError):
            client.shutdown(save=True)
    world.server.restart()


def _fail_snapshots(world: World, ended: threading.Event) -> None:
    obstacle = world.server.directory / "dump.rdb"
    obstacle.mkdir()
    with world.server.client() as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        ended.wait()
        obstacle.rmdir()
        client.config_set("save", "")


def _crowd(world: World, ended: threading.Event) -> None:
    """Let nobody in: the one connection that is allowed is ours."""
    with world.server.client(single_connection_client=True) as client:
        client.execute_command("CONFIG SET", "maxclients", 1)
        client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
        ended.wait()
        client.execute_command("CONFIG SET", "maxclients", 1000)


def _flap(world: World, ended: threading.Event) -> None:
    while not ended.wait(1):
        world.server.pause()
        ended.wait(1)
        world.server.resume()


def _fail_over(world: World, ended: threading.Event) -> None:
    old = world.topology.primary()
    old.kill()

    def promoted() -> bool:
        try:
            return world.topology.primary() is not old
        except AssertionError:
            return False

    eventually(promoted, 20, "a replica is promoted")
    with world.topology.primary().client() as client:
        eventually(lambda: client.role()[0] == "master", 10)


def _move_slots(world: World, ended: threading.Event) -> None:
    """Move slots that hold keys from one primary to another, as a resharding does."""
    setup: ClusterSetup = world.topology
    source, target, *_ = setup.servers[: setup.primary_count]
    names = {server: setup._ask(server, "MYID") for server in (source, target)}
    with source.client() as client:
        while not ended.wait(0.02):
            key = client.randomkey()
            if key is None:
                continue
            slot = int(setup._ask(source, "KEYSLOT", key))
            setup._ask(target, "SETSLOT", slot, "IMPORTING", names[source])
            setup._ask(source, "SETSLOT", slot, "MIGRATING", names[target])
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                client.execute_command(
                    "MIGRATE", "127.0.0.1", target.port, "", 0, 2000, "KEYS", *keys
                )
            for server in (target, source):
                setup._ask(server, "SETSLOT", slot, "NODE", names[target])


def _forget_names(world: World, ended: threading.Event) -> None:
    assert world.names is not None
    world.names.write_text("127.0.0.1 localhost\n")
    with world.server.client() as client:
        while not ended.wait(1):
            client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
    world.names.write_text("127.0.0.1 localhost redis.example\n")


#: Redis comes and goes: it has been back, as far as anybody can know.
COMES_AND_GOES = {
    "served again after": (
        "Redis comes and goes. Each time that the circuit opens again within a minute of a "
        "recovery the checks come half as often, so that users are not made to try."
    )
}
#: The app does what Redis forbids it, and has no handler for the error.
FORBIDDEN = (
    "That this user may not do this is Redis's answer, not an outage. The client hands it on as "
    "redis-py's own `NoPermissionError`, for which this app has no handler: a mistake in "
    "its rights shows as an error of the app. Limits and sessions, which cannot tell then, refuse."
)
FORGOTTEN = {
    "admitted above the limit": (
        "Redis has lost the counters: a limit begins anew, so that a subject is admitted up to its "
        "limit once more. Promised is that no more than that are."
    ),
    "acknowledged write lost": (
        "Redis acknowledged these writes and lost them when it ended. One that persists them "
        "(`appendonly yes`, `appendfsync always`) loses none: *killed, back with its data*."
    ),
    "anonymous": "Redis has lost the sessions: everybody is logged out.",
}

FAULTS: tuple[Fault, ...] = (
    Fault("connections refused", proxied, _refuse),
    Fault("killed, back with its data", direct(options=DURABLE), _kill),
    Fault("stopped (SIGSTOP)", direct(), _stop),
    Fault("black hole: all bytes lost", proxied, between(Proxy.swallow)),
    Fault("black hole: all packets lost", lossy, _drop, apart=True),
    Fault("reset in the middle of replies", proxied, between(lambda p: p.cut_each(1, 60))),
    Fault("one byte a second", proxied, between(lambda p: p.drip(1.0))),
    Fault("300 ms latency", proxied, between(lambda p: p.delay(0.15)), served=True),
    Fault("half of the calls fail", proxied, between(lambda p: p.fail_some(0.5))),
    Fault("loading its data (LOADING)", direct(), _load, seconds=0),
    Fault(
        "a replica (READONLY)",
        direct(),
        commands(["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"]),
    ),
    Fault("cannot save (MISCONF)", direct(), _fail_snapshots),
    Fault(
        "memory is full (OOM)",
        direct(),
        commands(["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"]),
    ),
    Fault(
        "another password",
        as_user,
        commands(
            ["ACL SETUSER app resetpass >another"], ["ACL SETUSER app resetpass >secret"], kick=True
        ),
    ),
    Fault(
        "user revoked (ACL)",
        as_user,
        commands(["ACL DELUSER app"], ["ACL SETUSER app on >secret ~* &* +@all"], kick=True),
    ),
    Fault(
        "rights revoked (NOPERM)",
        as_user,
        commands(["ACL SETUSER app -@write -@scripting"], ["ACL SETUSER app +@all"]),
        cannot={"status 500": FORBIDDEN, "traceback in the log": FORBIDDEN},
    ),
    Fault("too many clients", direct(), _crowd),
    Fault(
        "SCRIPT FLUSH, 20 a second", direct(), again_and_again("SCRIPT FLUSH", 0.05), served=True
    ),
    Fault(
        "CLIENT KILL of all, 5 a second",
        direct(),
        again_and_again("CLIENT KILL TYPE normal SKIPME yes", 0.2),
    ),
    Fault("garbage on the wire", proxied, between(lambda p: p.garble_all(b"?what\r\n"))),
    Fault("restart with loss of data", direct(), _kill, forgets=True, cannot=FORGOTTEN),
    Fault("flapping, each second", direct(), _flap, seconds=6.0, cannot=COMES_AND_GOES),
    Fault("Sentinel: failover", sentinels, _fail_over, seconds=0),
    Fault("cluster: slots moved", cluster, _move_slots, served=True),
    Fault("names not answered (DNS), CLIENT KILL", named, _forget_names, apart=True),
)


def command(fault: Fault, model: str, directory: str) -> list[str]:
    """Return how one run is started, in namespaces of its own where it needs them.

    :param directory: for files that stand in for the system's.
    """
    module = [sys.executable, "-m", "tests.matrix.run", fault.name, model]
    if not fault.apart:
        return module
    Path(directory, "hosts").write_text("127.0.0.1 localhost\n")
    Path(directory, "resolv.conf").write_text(
        "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n"
    )
    mounts = "".join(f"mount --bind {directory}/{n} /etc/{n}; " for n in ("hosts", "resolv.conf"))
    inside = f'{mounts}exec "$0" "$@"'
    return ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", inside, *module]


def possible() -> list[Fault]:
    """Return the faults that can be made on this machine."""
    apart = can_be_apart()
    if not apart:
        print("no network namespaces here: two faults are left out", file=sys.stderr)
    return [fault for fault in FAULTS if apart or not fault.apart]


def named_fault(name: str) -> Fault:
    """Return a fault by its name."""
    return next(fault for fault in FAULTS if fault.name == name)
