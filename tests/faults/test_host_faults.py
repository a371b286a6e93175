"""A worker that is stopped, killed or forked, and a board that is spoilt, harm no other worker."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import RedisServer, eventually, run_python
from tests.support.hosts import HostSetup

#: Seconds between recovery checks and their jitter, the time after which another worker takes over,
#: and room for a busy machine.
SOON = 6.0


def serve_all(host: HostSetup) -> None:
    for worker in host.workers:
        assert worker.ask() == "served"


def open_all(host: HostSetup) -> None:
    for _ in range(5):
        assert host[0].ask() == "connection"
    eventually(lambda: host.states() == ["open"] * len(host.workers), 2, "all have opened")


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_prober_that_is_stopped_or_killed_keeps_nobody_waiting(
    own_server: RedisServer, number: int
) -> None:
    with HostSetup(own_server.url, 3) as host:
        serve_all(host)
        own_server.kill()
        open_all(host)
        (prober,) = {worker("part.host.look() or part.host.view.prober") for worker in host.workers}
        slots = [worker("part.host.slot") for worker in host.workers]
        victim = host[slots.index(prober)]
        rest = [worker for worker in host.workers if worker is not victim]
        victim.signal(number)
        time.sleep(0.3)
        # That the one is gone lets nobody in.
        assert [worker.ask() for worker in rest] == ["circuit-open"] * 2
        own_server.start()
        eventually(lambda: {w.ask() for w in rest} == {"served"}, SOON, "the rest is served")
        if number == signal.SIGSTOP:
            victim.signal(signal.SIGCONT)
            eventually(lambda: victim.ask() == "served", SOON, "and the stopped one, too")
            assert {worker.ask() for worker in rest} == {"served"}


def test_fork_in_the_middle_takes_a_slot_of_its_own(own_server: RedisServer) -> None:
    fork = (
        "(lambda child: child if child else (setattr(sys, 'forked', ask()), "
        "open(sys.argv[1] + '/child', 'w').write(repr((sys.forked, part.host.slot))), "
        "time.sleep(30)))(os.fork())"
    )
    with HostSetup(own_server.url, 2) as host:
        serve_all(host)
        slots = [worker("part.host.slot") for worker in host.workers]
        child = host[0](fork)
        try:
            answer = host.directory / "child"
            eventually(lambda: answer.exists() and answer.read_text(), 5, "the child has asked")
            assert answer.read_text() == repr(("served", 2))
            assert [worker("part.host.slot") for worker in host.workers] == slots
            own_server.kill()
            open_all(host)
        finally:
            os.kill(child, signal.SIGKILL)
        own_server.start()
        eventually(lambda: {w.ask() for w in host.workers} == {"served"}, SOON)


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def shorten(path: Path) -> None:
    os.truncate(path, 5000)


def fill(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(os.urandom(size))


def delete(path: Path) -> None:
    path.unlink()


def lock_up(path: Path) -> None:
    path.chmod(0o400)
    path.parent.chmod(0o500)


@pytest.mark.parametrize("spoil", [truncate, shorten, fill, delete, lock_up])
def test_board_that_is_spoilt_neither_blocks_nor_admits(
    own_server: RedisServer, spoil: Callable[[Path], None]
) -> None:
    with HostSetup(own_server.url, 3) as host:
        serve_all(host)
        path = host.file
        spoil(path)
        serve_all(host)  # Redis is there
        time.sleep(1.0)
        serve_all(host)
        own_server.kill()
        open_all(host)  # it was written anew meanwhile
        spoil(path) if path.exists() else None
        assert [worker.ask() for worker in host.workers] == ["circuit-open"] * 3
        time.sleep(0.5)
        assert [worker.ask() for worker in host.workers] == ["circuit-open"] * 3
        own_server.start()
        eventually(lambda: {w.ask() for w in host.workers} == {"served"}, SOON, "all are served")
        assert "Traceback" not in host.log()
        path.parent.chmod(0o700)


def test_without_a_board_each_is_for_itself_and_says_so_once(
    own_server: RedisServer, tmp_path: Path
) -> None:
    foreign = tmp_path / "a-file"
    foreign.write_text("not a directory")
    with HostSetup(own_server.url, 2, REDIS_GUARD_HOST_STATE=str(foreign)) as host:
        serve_all(host)
        own_server.kill()
        for _ in range(5):
            assert host[0].ask() == "connection"
        assert host.states() == ["open", "closed"]
        assert host[1].ask() == "connection"
        log = host.log()
        assert log.count("cannot share what they know of Redis") == 2
        own_server.start()
        eventually(lambda: {w.ask() for w in host.workers} == {"served"}, SOON)


NOBODY = 65534


def try_as(user: int, *places: Path) -> list[str]:
    """Open boards as another user does, and then read what there is."""
    told = run_python(
        f"""
        import os
        from pathlib import Path
        from flask_redis_guard.host.board import Board
        from flask_redis_guard.host.places import BoardName, BoardRefused
        os.setgroups([])
        os.setresgid({user}, {user}, {user})
        os.setresuid({user}, {user}, {user})
        for where in {[str(place) for place in places]!r}:
            try:
                Board(BoardName("app", "redis://h", "guard:"), where)
            except BoardRefused as error:
                print("refused")
            else:
                print("taken")
        try:
            print(len([path.read_bytes() for path in Path({str(places[0])!r}).glob("*")]))
        except PermissionError:
            print("unreadable")
        """
    )
    return told.split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_can_neither_enter_nor_plant_a_board(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 1) as host:
        serve_all(host)
        host.directory.chmod(0o755)
        assert try_as(NOBODY, host.board) in (["refused", "unreadable"], ["refused", "0"])
        planted = host.directory / "planted"
        planted.mkdir(mode=0o700)
        os.chown(planted, NOBODY, NOBODY)
        link = host.directory / "link"
        link.symlink_to(host.board)
        wide = host.directory / "wide"
        wide.mkdir()
        wide.chmod(0o755)
        own = host.directory / "own"
        *found, _ = try_as(0, planted, link, wide, own)
        assert found == ["refused", "refused", "refused", "taken"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_can_do_nothing_to_a_board(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 1) as host:
        serve_all(host)
        host.directory.chmod(0o755)  # so that it is the board's own directory that keeps him out
        before = host.file.stat()
        tried = run_python(
            f"""
            import os
            os.setgroups([])
            os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
            os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
            board, place = {str(host.file)!r}, {str(host.board)!r}
            for what in (
                lambda: os.listdir(place),
                lambda: os.stat(board),
                lambda: os.open(board, os.O_RDONLY),
                lambda: os.open(board, os.O_RDWR),
                lambda: os.truncate(board, 0),
                lambda: os.chmod(board, 0o666),
                lambda: os.chmod(place, 0o777),
                lambda: os.chown(place, {NOBODY}, {NOBODY}),
                lambda: os.unlink(board),
                lambda: os.open(place + "/" + "0" * 32 + ".board", os.O_CREAT | os.O_RDWR),
                lambda: os.symlink("/etc/passwd", place + "/" + "1" * 32 + ".board"),
                lambda: os.rename(place, place + ".old"),
                lambda: os.kill({host[0].pid}, 0),
            ):
                try:
                    what()
                    print("done")
                except PermissionError:
                    print("refused")
            """
        )
        assert tried.split() == ["refused"] * 13
        after = host.file.stat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
        assert stat.S_IMODE(after.st_mode) == 0o600
        assert [path.name for path in host.board.iterdir()] == [host.file.name]
