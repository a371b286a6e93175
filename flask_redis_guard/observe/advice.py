"""What makes a guard unsafe although Redis answers: looked at once per process, and said once."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from redis.exceptions import RedisError

logger = logging.getLogger("flask_redis_guard")

#: The oldest server with all that the guard's scripts use.
OLDEST = 6
_GUNICORN_TIMEOUT = 30  # seconds; gunicorn's own default


def advise(client: Any, timeout: float) -> None:
    """Warn, with the remedy, about each thing that is found; never fail and never insist.

    :param client: the guarded client; called where waiting hurts nobody.
    :param timeout: ``REDIS_GUARD_TIMEOUT`` in seconds.
    """
    for warning in (*_about_server(client), *_about_worker(timeout, sys.argv, os.environ)):
        logger.warning(warning)


def _about_server(client: Any) -> Iterator[str]:
    somewhere = {"target_nodes": client.RANDOM} if hasattr(client, "RANDOM") else {}
    try:
        info = {**client.info("server", **somewhere), **client.info("memory", **somewhere)}
    except (RedisError, TypeError) as exc:  # no permission, mostly
        logger.debug("Not advising on the server: %s", type(exc).__name__)
        return
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith(("allkeys-", "volatile-")):
        yield (
            f"Redis evicts keys when its memory is full (maxmemory-policy {policy}): rate limits "
            "and sessions vanish then, and limits start anew. Set maxmemory-policy noeviction, or "
            "give the guard a Redis of its own."
        )
    version = re.match(r"\d+", str(info.get("redis_version", "")))
    if version and int(version[0]) < OLDEST:
        yield (
            f"Redis {info['redis_version']} is too old: the guard needs Redis {OLDEST} or Valkey. "
            "Upgrade the server."
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
