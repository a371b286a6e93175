"""Whether the guard can rely on this Redis: what a server tells of itself, all steps of the command
``check``, and what is warned of once in each process."""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

import redis

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.topology.urls import parse_topology
from flask_redis_guard.config import split_url
from flask_redis_guard.errors import RedisUnavailable

logger = logging.getLogger("flask_redis_guard")

PASS, WARN, FAIL = "pass", "warn", "fail"

#: Seconds by which the server's clock may differ from ours before somebody should look at it.
CLOCK_SKEW = 2.0
#: The oldest server with all that the scripts use.
OLDEST = (6, 0)
#: Seconds; gunicorn's own default.
_GUNICORN_TIMEOUT = 30

#: What to do about a failure, by its reason.
_REMEDIES = {
    "timeout": "nobody answered in time; see REDIS_GUARD_TIMEOUT, the network, a hung server",
    "connection": "see REDIS_URL",
    "authentication": "the server does not take this user and password; see REDIS_URL",
    "handshake": "the server refused the handshake; see the database number in REDIS_URL",
    "read-only": "this server is a read-only replica; name the primary",
    "out-of-memory": "the server is at its maxmemory and refuses writes",
    "misconf": "the server cannot save its snapshot to disk and refuses writes",
    "no-replicas": "too few replicas are connected, the server refuses writes",
    "max-clients": "the server is at its maxclients; see REDIS_GUARD_MAX_CONNECTIONS",
    "loading": "the server is reading its data set; wait",
    "protocol": "what answers there is no Redis",
    "no-primary": "the sentinels name no primary",
    "failover": "the sentinels are replacing the primary; wait",
    "unconfirmed": "too few sentinels answer to tell who is the primary",
    "cluster-down": "the cluster does not serve all slots",
    "rejected": "the server answered with an error, such as a missing permission (ACL)",
}


class Server(NamedTuple):
    """What a server tells of itself, as far as the section that was asked for has it."""

    #: Such as ``Valkey 8.1.0``; ``None`` where the section does not say.
    version: str | None
    #: The version of Redis that it is, or is compatible with.
    number: tuple[int, ...]
    #: What happens when its memory is full.
    eviction: str
    #: Bytes of memory that it may use; 0: any number.
    max_memory: int

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> Server:
        """Read a reply to ``INFO``."""
        compatible, valkey = info.get("redis_version"), info.get("valkey_version")
        return cls(
            f"Valkey {valkey}" if valkey else f"Redis {compatible}" if compatible else None,
            tuple(int(part) for part in str(compatible).split(".")[:2] if part.isdigit()),
            str(info.get("maxmemory_policy", "unknown")),
            int(info.get("maxmemory", 0)),
        )


def servers(client: Any, section: str, *, one: bool = False) -> list[Server]:
    """Ask with ``INFO``.

    :param client: of one server or of a cluster.
    :param section: ``server`` or ``memory``.
    :param one: on a cluster ask any one of its nodes.
    :raises redis.RedisError: if it may not be asked, or does not answer.
    """
    anywhere = {"target_nodes": client.RANDOM} if one and hasattr(client, "RANDOM") else {}
    info: dict[str, Any] = client.info(section, **anywhere)
    nodes = list(info.values())
    whole = bool(nodes) and all(isinstance(node, dict) for node in nodes)
    return [Server.read(node) for node in (nodes if whole else [info])]


@dataclass(frozen=True)
class Finding:
    """The result of one step."""

    step: str
    #: ``pass``, ``warn`` or ``fail``.
    status: str
    text: str


class _Step(Exception):
    def __init__(self, status: str, text: str) -> None:
        super().__init__(status, text)
        self.status, self.text = status, text


def diagnose(
    gate: Gate, client: Callable[[], Any], key: str, run_scripts: Callable[[], object], url: str
) -> Iterator[Finding]:
    """Go through all steps; without a connection the others are left out.

    :param gate: the gate of the client. Each step is a probe: no in-memory store answers for Redis.
    :param client: gives the client.
    :param key: a key that may be written and deleted.
    :param run_scripts: runs the limiter's scripts; raises if Redis does not.
    :param url: where Redis is; its hosts are looked at one by one where there is no connection.
    """
    if gate.memory_only:
        yield Finding("connection", WARN, "REDIS_URL is memory://: there is no Redis to check")
        return
    steps: dict[str, Callable[[], str]] = {
        "connection": lambda: _connection(client()),
        "version": lambda: _version(client()),
        "write": lambda: _write(client(), key),
        "scripts": lambda: _scripts(run_scripts),
        "eviction": lambda: _eviction(client()),
        "clock": lambda: _clock(client()),
    }
    for step, call in steps.items():
        finding = _run(gate, step, call, url)
        yield finding
        if step == "connection" and finding.status == FAIL:
            return


def _run(gate: Gate, step: str, call: Callable[[], str], url: str) -> Finding:
    try:
        return Finding(step, PASS, gate.run("CHECK", call, probe=True))
    except _Step as result:
        return Finding(step, result.status, result.text)
    except RedisUnavailable as error:
        remedy = _REMEDIES.get(error.reason, "see the documentation's table of reasons")
        seen = _look_at(url, gate.timeout) if step == "connection" else []
        return Finding(step, FAIL, f"{error.reason}: {'; '.join([*seen, remedy])}")
    except redis.exceptions.NoPermissionError:
        # What is told only needs to be known; what must work fails above as "rejected".
        status = FAIL if step in ("connection", "write") else WARN
        return Finding(step, status, "the Redis user has no permission for this (ACL)")
    except redis.RedisError as error:
        return Finding(step, FAIL, f"the server answered with an error: {type(error).__name__}")


def _connection(client: Any) -> str:
    started = time.monotonic()
    client.ping()
    return f"answered in {(time.monotonic() - started) * 1000:.1f} ms"


def _version(client: Any) -> str:
    found = servers(client, "server")
    for server in found:
        if server.number < OLDEST:
            raise _Step(FAIL, f"{server.version} is too old; at least Redis 6 or Valkey is needed")
    return ", ".join(sorted({str(server.version) for server in found}))


def _write(client: Any, key: str) -> str:
    client.set(key, "1", ex=60)
    if client.get(key) not in (b"1", "1"):
        raise _Step(FAIL, "what was written could not be read back")
    client.delete(key)
    return "wrote, read and deleted a key"


def _scripts(run_scripts: Callable[[], object]) -> str:
    run_scripts()
    return "the rate limiter's scripts run"


def _eviction(client: Any) -> str:
    told = "no memory limit"
    for server in servers(client, "memory"):
        if not server.max_memory:
            continue
        if server.eviction != "noeviction":
            raise _Step(
                FAIL,
                f"maxmemory-policy is {server.eviction}: a full server throws counters and "
                "sessions away, which lifts limits and logs users out; set noeviction",
            )
        told = server.eviction
    return told


def _clock(client: Any) -> str:
    first, ours, second = client.time(), time.time(), client.time()
    if isinstance(first, dict):  # on Cluster, by node
        first, second = next(iter(first.values())), next(iter(second.values()))
    theirs = first[0] + first[1] / 1e6
    if second[0] + second[1] / 1e6 < theirs:
        raise _Step(FAIL, "the server's clock runs backwards; limits rely on it")
    skew = theirs - ours
    if abs(skew) > CLOCK_SKEW:
        raise _Step(WARN, f"the server's clock is {skew:+.1f} s off this machine's")
    return f"{skew * 1000:+.0f} ms off this machine's"


# -- what makes a guard unsafe although Redis answers: warned of once in each process ------------


def advise(client: Any, timeout: float) -> None:
    """Warn, with the remedy, about each thing that is found; never fail and never insist.

    :param client: the guarded client; called where waiting hurts nobody.
    :param timeout: ``REDIS_GUARD_TIMEOUT`` in seconds.
    """
    for warning in (*_about_server(client), *_about_worker(timeout, sys.argv, os.environ)):
        logger.warning(warning)


def _about_server(client: Any) -> Iterator[str]:
    try:
        server = servers(client, "server", one=True)[0]
        eviction = servers(client, "memory", one=True)[0].eviction
    except (redis.RedisError, TypeError, ValueError) as exc:  # no permission, mostly
        logger.debug("Not advising on the server: %s", type(exc).__name__)
        return
    if eviction.startswith(("allkeys-", "volatile-")):
        yield (
            f"Redis evicts keys when its memory is full (maxmemory-policy {eviction}): rate limits "
            "and sessions vanish then, and limits start anew. Set maxmemory-policy noeviction, or "
            "give the guard a Redis of its own."
        )
    if server.number and server.number < OLDEST:
        yield (
            f"{server.version} is too old: the guard needs Redis 6 or Valkey. Upgrade the server."
        )


def _about_worker(timeout: float, argv: Sequence[str], environ: Any) -> Iterator[str]:
    if "gunicorn" not in " ".join(argv[:1]):
        return
    words = [*argv[1:], *shlex.split(environ.get("GUNICORN_CMD_ARGS", ""))]
    limit = float(_GUNICORN_TIMEOUT)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        found = re.fullmatch(r"(?:--timeout=|-t=?)(\d+)", word)
        if found or (word in ("--timeout", "-t") and following.isdigit()):
            limit = float(found[1] if found else following)
    if 0 < limit <= timeout:  # 0 is none
        yield (
            f"REDIS_GUARD_TIMEOUT is {timeout:g} s, but gunicorn kills a worker that is silent "
            f"for {limit:g} s: a Redis that hangs would kill workers. Set it well below "
            "gunicorn's --timeout."
        )


# -- why there is no connection: one look at each host, without the client ---------------------

#: Hosts that are looked at, and the seconds that one of them may take at least.
_MOST_HOSTS = 6
_PATIENCE = 2.0


def _look_at(url: str, timeout: float) -> list[str]:
    """Return what is found at each of the hosts in the URL; nothing of the login is sent."""
    parts = split_url(url)
    if parts.scheme == "unix":
        return [_look_at_path(unquote(parts.path))]
    if "+" in parts.scheme:
        hosts = parse_topology(url).hosts[:_MOST_HOSTS]
    else:
        hosts = ((unquote(parts.hostname or "localhost"), parts.port or 6379),)
    tls, patience = parts.scheme.startswith("rediss"), max(_PATIENCE, timeout)
    return [_look_at_host(host, port, tls, patience) for host, port in hosts]


def _look_at_path(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return f"there is no socket {path}"
        except OSError as exc:
            return f"{path}: {exc.strerror or exc}"
    return f"{path} accepts connections"


def _look_at_host(host: str, port: int, tls: bool, patience: float) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        answer = _plain_answer(host, port, patience)
    except socket.gaierror:
        return f"the name {host} does not resolve: is it misspelt?"
    except ConnectionRefusedError:
        return f"nobody listens at {where}"
    except TimeoutError:
        return f"{where} does not answer: a wrong address, or a packet filter on the way"
    except OSError as exc:
        return f"{where} cannot be reached: {exc.strerror or exc}"
    if re.match(rb"[+-][A-Z]", answer):
        hint = ", but without TLS: write redis:// for rediss://" if tls else ""
        return f"{where} answers as Redis does{hint}"
    speaks = _speaks_tls(host, port, patience)
    if speaks and not tls:
        return f"{where} speaks TLS: write rediss:// for redis://"
    if speaks:
        return f"{where} speaks TLS: look at its certificate, and at the ssl_ options of the URL"
    if answer:
        return f"what answers at {where} is no Redis: look at the port"
    return f"{where} accepts connections and says nothing: a hung server, or no Redis"


def _plain_answer(host: str, port: int, patience: float) -> bytes:
    """Return what is answered to a PING without TLS and without a login.

    :raises OSError: where nothing can be connected to.
    """
    with socket.create_connection((host, port), patience) as probe:
        try:
            probe.sendall(b"PING\r\n")
            return probe.recv(64)
        except OSError:
            return b""


def _speaks_tls(host: str, port: int, patience: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # only asked whether it speaks it at all
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), patience) as probe,
            context.wrap_socket(probe, server_hostname=host),
        ):
            return True
    except ssl.SSLError as exc:  # it may insist on a certificate of ours
        return "ALERT" in str(exc.reason) or "CERTIFICATE" in str(exc.reason)
    except OSError:
        return False
