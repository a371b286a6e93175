"""What all processes of the laboratory share: where things are, the timeline, the buttons."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What can be done to the embedded server.
DEEDS = ("kill", "hang", "slow", "empty", "start")
#: The state of a store that lives in the process: nothing can be done to it.
IN_MEMORY = "in memory"


@dataclass(frozen=True)
class Laboratory:
    """Where a worker finds what the supervisor has prepared.

    :param directory: private to the user; holds the timeline and the supervisor's socket.
    :param redis_url: the embedded server; ``None`` if there is none, for the in-memory store.
    :param unguarded_port: where the unguarded app answers; 0 if it is not served.
    :param secret: signs the cookies of all workers.
    """

    directory: Path
    redis_url: str | None = None
    unguarded_port: int = 0
    secret: str = field(default_factory=secrets.token_hex)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Laboratory:
        """Return what :meth:`as_environment` has described."""
        return cls(
            Path(environment["LAB_DIRECTORY"]),
            environment["LAB_REDIS_URL"] or None,
            int(environment["LAB_UNGUARDED_PORT"]),
            environment["LAB_SECRET"],
        )

    def as_environment(self) -> dict[str, str]:
        """Return the variables that tell a worker all of this."""
        return {
            "LAB_DIRECTORY": str(self.directory),
            "LAB_REDIS_URL": self.redis_url or "",
            "LAB_UNGUARDED_PORT": str(self.unguarded_port),
            "LAB_SECRET": self.secret,
        }

    @property
    def control(self) -> Path:
        """The socket on which the supervisor takes orders."""
        return self.directory / "control.sock"

    # One file that every process appends to: a line is written by one call of the system, so that
    # lines never mix, nobody waits for anybody, and whichever worker is asked can tell all of it.

    def tell(self, kind: str, text: str, mood: str = "note", **more: Any) -> None:
        """Write a line of the timeline.

        :param kind: ``redis``, ``breaker``, ``alert``, ``recovery``, ``limit`` or ``worker``.
        :param text: what happened.
        :param mood: ``good``, ``bad`` or ``note``, for its colour.
        """
        entry = {"at": time.time(), "process": os.getpid(), "kind": kind, "text": text}
        line = json.dumps({**entry, "mood": mood, **more}) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(self.directory / "timeline", flags, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def told(self, after: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the timeline's entries from a position on, and the position behind them."""
        try:
            with (self.directory / "timeline").open("rb") as file:
                file.seek(after)
                lines = file.read()
        except FileNotFoundError:
            return [], 0
        whole = lines[: lines.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], after + len(whole)

    def ask(self, order: str) -> dict[str, str]:
        """Have the supervisor do something to the embedded server, from whichever worker.

        :param order: one of :data:`DEEDS`, or ``state``.
        :returns: the server's ``state``, and an ``error`` if it was not done.
        :raises OSError: if the supervisor does not answer.
        """
        if self.redis_url is None:
            return {"state": IN_MEMORY}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(12)
            connection.connect(str(self.control))
            connection.sendall(f"{order}\n".encode())
            with connection.makefile() as answer:
                told: dict[str, str] = json.loads(answer.readline())
        return told
