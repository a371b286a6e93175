"""The board: a file of slots, one for each worker, each written by its owner alone.

It is read and written by ``pread`` and ``pwrite``: a mapped file that somebody truncates kills the
process that touches it. Each part carries a keyed hash, so that what is half written, stale or
garbage counts as empty. A lock on a byte of its own keeps each slot; the kernel drops it when
the process ends, however it does. These locks belong to the open file and not to the
process, so neither a fork nor another app of the same process disturbs them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flask_redis_guard.host.places import (
    BoardName,
    BoardRefused,
    find,
    old_boards,
)

fcntl: Any
try:
    import fcntl
except ImportError:  # another platform
    fcntl = None

#: Most workers of a host; those beyond are for themselves.
SLOTS = 256
#: Bytes before the first slot, and of each.
HEADER, SLOT = 4096, 4096
#: Where in the header the epoch and the operator's command are, where in a slot the record is.
EPOCH, COMMAND, RECORD = 0, 64, 64
#: Where the locks are: bytes that do not exist.
LOCKS, COMMAND_LOCK = 1 << 30, (1 << 30) + SLOTS
#: What one worker tells for all is locked from here on.
TELLING_LOCKS = COMMAND_LOCK + 1
_DIGEST = 16
_LENGTH = struct.Struct("!H")
_PULSE = struct.Struct("!ddddd")
_LOCK = struct.Struct("hhqqi0q")


class Pulse(NamedTuple):
    """What of a slot changes often. Seconds of the monotonic clock."""

    #: When its worker was last heard of, and when it will be again.
    beat_at: float = 0.0
    due_at: float = 0.0
    #: When its last operation began that Redis has answered.
    succeeded_at: float = 0.0
    #: When the first operation began that has waited for half of its time; 0 for none.
    asked_at: float = 0.0
    #: When one of these was answered last.
    heard_at: float = 0.0


class SlotContent(NamedTuple):
    """What a slot holds."""

    slot: int
    record: dict[str, Any]
    pulse: Pulse
    alive: bool


class Board:
    """One board that is open in this process.

    :param identity: whose it is.
    :param where: ``auto``, or a directory.
    :param create: whether to make it where there is none.
    :raises BoardRefused: if there is none to be had.
    """

    def __init__(self, identity: BoardName, where: str, *, create: bool = True) -> None:
        self._fd = -1
        if fcntl is None or not hasattr(fcntl, "F_OFD_SETLK"):
            raise BoardRefused("this platform has no locks that belong to an open file")
        self._key = identity.digest("key", 32)
        self.path, self._fd = find(where, identity.file_name, create=create)
        found = os.fstat(self._fd)
        self._file = found.st_dev, found.st_ino
        self._read: dict[int, tuple[bytes, dict[str, Any]]] = {}
        #: The slot of this worker; ``None`` while it only looks on.
        self.slot: int | None = None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Leave; its slot is free."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                # In a process that has closed all its files another one may have this number.
                if self._file == _file(fd):
                    os.close(fd)

    # -- slots -----------------------------------------------------------------------------------

    def take_slot(self) -> int:
        """Take the lowest slot that is free.

        :raises BoardRefused: if there is none.
        :raises OSError: if the file system has no locks.
        """
        for slot in range(SLOTS):
            if self._lock(LOCKS + slot):
                self.slot = slot
                return slot
        raise BoardRefused(f"all {SLOTS} slots are taken")

    def write(self, record: dict[str, Any], *, ring: bool = True) -> None:
        """Publish what this worker says of itself.

        :param ring: whether to let the others know that there is something new.
        :raises OSError: if that is not possible.
        """
        self._write_part(self._place + RECORD, json.dumps(record).encode(), SLOT - RECORD)
        if ring:
            self.ring()

    def pulse(self, pulse: Pulse) -> None:
        """Publish what changes often; nobody is told.

        :raises OSError: if that is not possible.
        """
        self._write_part(self._place, _PULSE.pack(*pulse), RECORD)

    @property
    def _place(self) -> int:
        if self.slot is None:
            raise BoardRefused("this process has no slot")
        return HEADER + self.slot * SLOT

    def ring(self) -> None:
        """Let all know that there is something new."""
        self._write(EPOCH, os.urandom(8))

    def epoch(self) -> bytes:
        """Return what is another one whenever there is something new.

        :raises OSError: if it cannot be read.
        """
        return os.pread(self._fd, 8, EPOCH)

    def read(self) -> list[SlotContent]:
        """Return what all slots hold, in their order.

        :raises OSError: if they cannot be read.
        """
        content = os.pread(self._fd, HEADER + SLOTS * SLOT, 0)
        return list(self._slots(content))

    def _slots(self, content: bytes) -> Iterator[SlotContent]:
        for slot in range((len(content) - HEADER + SLOT - 1) // SLOT):
            place = HEADER + slot * SLOT
            raw = content[place + RECORD : place + SLOT]
            record = self._record(slot, raw)
            if record is not None:
                packed = self._read_part(content[place : place + RECORD])
                fits = packed is not None and len(packed) == _PULSE.size
                pulse = Pulse(*_PULSE.unpack(packed)) if fits and packed else Pulse()
                yield SlotContent(
                    slot, record, pulse, slot == self.slot or self._held(LOCKS + slot)
                )

    def _record(self, slot: int, raw: bytes) -> dict[str, Any] | None:
        known = self._read.get(slot)
        if known is not None and known[0] == raw:
            return known[1]
        record = self._json(raw)
        if record is not None:
            self._read[slot] = raw, record
        return record

    # -- the operator's command ------------------------------------------------------------------

    def command(self) -> dict[str, Any] | None:
        """Return the command that is written beside the slots.

        :raises OSError: if it cannot be read.
        """
        return self._json(os.pread(self._fd, HEADER - COMMAND, COMMAND))

    @contextlib.contextmanager
    def commanding(self) -> Iterator[None]:
        """Be the only one who writes a command.

        :raises BoardRefused: if another process is at it.
        """
        if not self._lock(COMMAND_LOCK):
            raise BoardRefused("another operator's command is being written")
        try:
            yield
        finally:
            self._lock(COMMAND_LOCK, release=True)

    @contextlib.contextmanager
    def deciding(self, number: int) -> Iterator[bool]:
        """Try to be the only one who decides something, and wait for nobody.

        :param number: what.
        :returns: whether it is; otherwise another process is about to.
        """
        free = self._lock(TELLING_LOCKS + number)
        try:
            yield free
        finally:
            if free:
                self._lock(TELLING_LOCKS + number, release=True)

    def write_command(self, command: dict[str, Any]) -> None:
        """Write a command, within :meth:`commanding`.

        :raises OSError: if that is not possible.
        """
        self._write_part(COMMAND, json.dumps(command).encode(), HEADER - COMMAND)
        self.ring()

    # -- the file --------------------------------------------------------------------------------

    @property
    def is_there(self) -> bool:
        """Whether workers that start now would find the same board."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def sweep(self) -> None:
        """Remove boards that nobody uses any more."""
        for path in old_boards(Path(self.path).parent, but=Path(self.path).name):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if _set_lock(fd, LOCKS, SLOTS + 1):
                        path.unlink()
                finally:
                    os.close(fd)

    def _write_part(self, place: int, payload: bytes, room: int) -> None:
        if len(payload) > room - _DIGEST - _LENGTH.size:
            raise ValueError(f"{len(payload)} bytes do not fit into {room}")
        head = _LENGTH.pack(len(payload))
        self._write(place, self._digest(payload) + head + payload)

    def _read_part(self, raw: bytes) -> bytes | None:
        begin = _DIGEST + _LENGTH.size
        if len(raw) < begin:
            return None
        (length,) = _LENGTH.unpack(raw[_DIGEST:begin])
        payload = raw[begin : begin + length]
        return payload if raw[:_DIGEST] == self._digest(payload) else None

    def _json(self, raw: bytes) -> dict[str, Any] | None:
        payload = self._read_part(raw)
        found = None if payload is None else json.loads(payload)
        return found if isinstance(found, dict) else None

    def _digest(self, payload: bytes) -> bytes:
        return hashlib.blake2b(payload, digest_size=_DIGEST, key=self._key).digest()

    def _write(self, place: int, content: bytes) -> None:
        # A process that has closed all its files may have given their numbers to others.
        if _file(self._fd) != self._file:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.pwrite(self._fd, content, place)

    def _lock(self, place: int, *, release: bool = False) -> bool:
        return _set_lock(self._fd, place, 1, release=release)

    def _held(self, place: int) -> bool:
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        kind = _LOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))[0]
        return bool(kind != fcntl.F_UNLCK)


def _file(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _set_lock(fd: int, place: int, length: int, *, release: bool = False) -> bool:
    kind = fcntl.F_UNLCK if release else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, place, length, 0))
    except BlockingIOError:
        return False
    return True
