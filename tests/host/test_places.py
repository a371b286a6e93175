"""Where a board lies, and that old ones go."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from flask_redis_guard.host.board import Board, Pulse
from flask_redis_guard.host.places import FOLDER, OLD, BoardName, BoardRefused, folders

NAME = BoardName("shop", "redis://:secret@cache/0", "guard:")


def test_directories_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"{FOLDER}-{os.geteuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert folders("auto")[0] == tmp_path / own
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert tmp_path not in {path.parent for path in folders("auto")}
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert all(path.is_absolute() for path in folders("auto"))
    assert folders("/srv/state") == [Path("/srv/state")]


def test_board_that_is_there_comes_before_a_better_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell with a runtime directory finds the board of a service without one."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    name = BoardName(f"test-{os.urandom(8).hex()}", "redis://h", "guard:")
    service = Board(name, "auto")
    try:
        runtime = tmp_path / "runtime"
        runtime.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        shell = Board(name, "auto")
        assert shell.path == service.path
        shell.close()
    finally:
        service.close()
        service.path.unlink()


def test_file_and_directory_are_the_users_alone_and_tell_no_secret(tmp_path: Path) -> None:
    board = Board(NAME, str(tmp_path / "state"))
    board.take_slot()
    board.write({"pid": 1})
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (board.path, board.path.parent)]
    assert modes == [0o600, 0o700]
    assert b"secret" not in board.path.read_bytes() + bytes(board.path)
    board.close()


def test_other_deployments_have_other_boards() -> None:
    others = [
        BoardName("shop", "redis://cache/0", "guard:"),
        BoardName("shop", NAME.redis_url, "other:"),
        BoardName("blog", NAME.redis_url, "guard:"),
    ]
    assert len({each.file_name for each in (NAME, *others)}) == 4


@pytest.mark.parametrize("plant", ["link", "hard link", "directory", "wide"])
def test_what_was_planted_is_refused(tmp_path: Path, plant: str) -> None:
    where = tmp_path / "state"
    where.mkdir(mode=0o700)
    target, path = tmp_path / "target", where / NAME.file_name
    target.touch(mode=0o600)
    if plant == "link":
        path.symlink_to(target)
    elif plant == "hard link":
        path.hardlink_to(target)
    elif plant == "directory":
        path.mkdir()
    else:
        path.touch()
        path.chmod(0o644)
    with pytest.raises(BoardRefused):
        Board(NAME, str(where))
    assert target.read_bytes() == b""


def test_each_takes_the_lowest_free_slot_and_leaves_it_when_it_goes(tmp_path: Path) -> None:
    boards = [Board(NAME, str(tmp_path / "state")) for _ in range(3)]
    assert [board.take_slot() for board in boards] == [0, 1, 2]
    for board in boards:
        board.write({"pid": board.slot})
    boards[1].close()
    assert [found.alive for found in boards[0].read()] == [True, False, True]
    again = Board(NAME, str(tmp_path / "state"))
    assert again.take_slot() == 1
    for board in (*boards, again):
        board.close()


def test_parts_that_were_not_written_by_us_count_as_empty(tmp_path: Path) -> None:
    board = Board(NAME, str(tmp_path / "state"))
    board.take_slot()
    board.write({"pid": 1})
    board.pulse(Pulse(1.0, 2.0, 3.0))
    content = board.path.read_bytes()
    (found,) = board.read()
    assert (found.record, found.pulse.due_at) == ({"pid": 1}, 2.0)
    for place in range(4096, len(content), 7):
        spoilt = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        board.path.write_bytes(spoilt)
        for each in board.read():
            assert each.record == {"pid": 1}
            assert each.pulse in (found.pulse, Pulse())
    other = Board(BoardName("x", "y", "z"), str(tmp_path / "state"))
    other.path.write_bytes(content)  # of another deployment
    assert other.read() == []
    other.close()
    board.close()


def test_boards_that_nobody_uses_go(tmp_path: Path) -> None:
    where = str(tmp_path / "state")
    used, unused, young = (Board(BoardName(name, "", ""), where) for name in "abc")
    used.take_slot()
    long_ago = time.time() - OLD - 60
    for board in (used, unused):
        os.utime(board.path, (long_ago, long_ago))
    unused.close()
    young.close()
    board = Board(NAME, where)
    board.sweep()
    assert used.path.exists()
    assert young.path.exists()
    assert not unused.path.exists()
    used.close()
    board.close()
