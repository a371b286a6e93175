"""URLs that name several hosts: of sentinels and of clusters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from redis.connection import parse_url

from flask_redis_guard.config import split_url

_HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\s:,\[\]@/]+))(?::(?P<port>[0-9]{1,5}))?"
)
_SENTINEL = "sentinel_"


@dataclass(frozen=True)
class Topology:
    """What a ``redis+sentinel://`` or ``redis+cluster://`` URL says."""

    kind: str  #: ``sentinel`` or ``cluster``
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    #: What the sentinels call the primary.
    service: str
    #: For the connections to the data servers: user, password, database, the query's options.
    options: dict[str, Any]
    #: The same for the connections to the sentinels.
    sentinel_options: dict[str, Any]


def parse_topology(url: str) -> Topology:
    """Read a URL that names several hosts.

    User name and password are those of the data servers. Query options are those of a ``redis://``
    URL; with ``sentinel_`` before the name they are for the sentinels (``sentinel_password``).

    :param url: ``redis+sentinel://[user:password@]h1:p1,h2:p2/name/db?option=value`` or
        ``redis+cluster://[user:password@]h1:p1,h2:p2?option=value``; ``rediss+`` for TLS.
    :raises ValueError: if it cannot be read; the text never shows a secret.
    """
    parts = split_url(url)
    transport, _, kind = parts.scheme.partition("+")
    login, _, listed = parts.netloc.rpartition("@")
    hosts = tuple(_host(text, 26379 if kind == "sentinel" else 6379) for text in listed.split(","))
    path = [unquote(piece) for piece in parts.path.split("/")[1:]]
    if kind == "sentinel":
        service, *rest = path or [""]
        if not service:
            raise ValueError("the name of the primary after the sentinels: .../NAME/DB")
    else:
        service, rest = "", path
    if len(rest) > 1 or not re.fullmatch(r"[0-9]*", "".join(rest)):
        raise ValueError("a path that ends with the number of a database")
    if kind == "cluster" and int("".join(rest) or 0) != 0:
        raise ValueError("no database but 0: a cluster has only one")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    own = [(key, value) for key, value in pairs if not key.startswith(_SENTINEL)]
    theirs = [
        (key.removeprefix(_SENTINEL), value) for key, value in pairs if key.startswith(_SENTINEL)
    ]
    if theirs and kind == "cluster":
        raise ValueError("no options for sentinels in the URL of a cluster")
    database = f"/{int(''.join(rest) or 0)}" if kind == "sentinel" else ""
    return Topology(
        kind=kind,
        tls=transport == "rediss",
        hosts=hosts,
        service=service,
        options=_options(f"redis://{login and login + '@'}host{database}", own),
        sentinel_options=_options("redis://host", theirs),
    )


def _host(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError("hosts as HOST:PORT,HOST:PORT")
    number = int(match["port"] or port)
    if not 0 < number < 65_536:
        raise ValueError("ports from 1 to 65535")
    return match["six"] or match["name"], number


def _options(base: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    options = dict(parse_url(f"{base}?{urlencode(pairs)}"))
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    if not options.get("db"):
        options.pop("db", None)
    return options
