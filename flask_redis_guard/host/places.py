"""Where the board lies: a directory that nobody but its user can enter, and a file in it.

What another user planted there, a link, a directory or a file of somebody else's, is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Where in the system's directories.
FOLDER = "flask-redis-guard"
SUFFIX = ".board"
#: Another layout of the file has another number, so that versions do not read one another.
LAYOUT = 2
#: Seconds after which a board that no process has open is removed.
OLD = 86_400.0


class BoardRefused(Exception):
    """There is no board to be had; the text says why."""


@dataclass(frozen=True)
class BoardName:
    """Whose board it is: workers for which all of this is the same share one."""

    app: str
    #: It may hold a password, and goes nowhere but into the hash.
    redis_url: str
    key_prefix: str

    def digest(self, purpose: str, size: int) -> bytes:
        """Return a hash of it, of the user, of the boot of this machine and of the layout."""
        words = [LAYOUT, purpose, self.app, self.redis_url, self.key_prefix, user(), _boot()]
        return hashlib.blake2b(json.dumps(words).encode(), digest_size=size).digest()

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return self.digest("name", 16).hex() + SUFFIX


def user() -> int:
    """Return the user whom files belong to that this process makes."""
    return os.geteuid()


def _boot() -> str:
    """Return what another boot has another one of: the monotonic clock begins anew with it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip().hex()
    return ""


def folders(where: str) -> list[Path]:
    """Return the directories in which a board may lie, in their order.

    :param where: ``auto``, or a directory.
    """
    if where != "auto":
        return [Path(where)]
    name = f"{FOLDER}-{user()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    parents = [Path(runtime)] if runtime.startswith("/") else []
    parents += [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108 - checked below
    return [parent / name for parent in parents if parent.is_dir()]


def open_folder(path: Path) -> int:
    """Return a descriptor of a directory that is the user's alone, made if it is missing.

    :raises BoardRefused: if it is not, or cannot be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BoardRefused(f"{path}: {error.strerror}") from None
    found = os.fstat(folder)
    if found.st_uid != user() or found.st_mode & 0o077:
        os.close(folder)
        raise BoardRefused(f"{path} is not this user's alone (owner {found.st_uid}, mode 0700)")
    return folder


def open_file(folder: int, name: str, *, create: bool) -> int:
    """Return a descriptor of a board's file, for reading and writing.

    :param folder: of :func:`open_folder`.
    :param create: whether to make it if it is missing.
    :raises BoardRefused: if it is no file of the user's alone, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        board = os.open(name, flags | (os.O_CREAT if create else 0), 0o600, dir_fd=folder)
    except OSError as error:
        raise BoardRefused(f"{name}: {error.strerror}") from None
    found = os.fstat(board)
    own = stat.S_ISREG(found.st_mode) and found.st_uid == user() and not found.st_mode & 0o077
    if not own or found.st_nlink > 1:
        os.close(board)
        raise BoardRefused(f"{name} is no file of this user's alone")
    return board


def find(where: str, name: str, *, create: bool) -> tuple[Path, int]:
    """Return the path of a board and a descriptor of it; one that there is comes first.

    A shell of the same user may know another directory first than a service does: looking for
    what there is brings both to the same board.

    :param create: whether to make it where there is none.
    :raises BoardRefused: where there is none, and none can be made.
    """
    reasons = []
    places = folders(where)
    for make in (False, True) if create else (False,):
        for path in places:
            try:
                folder = open_folder(path) if make else _look_into(path)
                try:
                    return path / name, open_file(folder, name, create=make)
                finally:
                    os.close(folder)
            except BoardRefused as error:
                reasons.append(str(error))
    raise BoardRefused("; ".join(dict.fromkeys(reasons[-len(places) :])) or "no directory for it")


def _look_into(path: Path) -> int:
    if not path.is_dir():
        raise BoardRefused(f"{path}: there is none")
    return open_folder(path)


def old_boards(folder: Path, but: str) -> Iterator[Path]:
    """Give the boards in a directory that nobody has written to for long.

    :param folder: the directory.
    :param but: the name of one that is not looked at.
    """
    with contextlib.suppress(OSError):
        for path in folder.glob("*" + SUFFIX):
            with contextlib.suppress(OSError):
                if path.name != but and time.time() - path.lstat().st_mtime > OLD:
                    yield path
