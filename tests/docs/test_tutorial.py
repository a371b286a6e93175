"""The tutorial is followed from start to end: files written, commands run, output compared.

A block of Python goes into ``shop.py``, as the comment before it says: ``file`` begins a file,
``append`` adds to one, ``below`` puts the block below a line and ``replace`` in the place of one.
A console block marked ``serve`` is left running, and started anew when a file changes. ``redis:
stop`` and ``redis: start`` come before the commands of their block. In what is compared, ``…``
stands for anything.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import FILES, ROOT, Block, blocks, commands
from tests.support import RedisServer, eventually
from tests.support.orphans import death_signal
from tests.support.ports import PortLease

PAGE = ROOT / "docs" / "tutorial.md"


class Reader:
    """Somebody who does what the page says.

    :param directory: where the files are written.
    :param server: the server that is stopped and started.
    """

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.directory = directory
        self.server = server
        self.served: str | None = None
        self.stale = False
        self.process: subprocess.Popen[bytes] | None = None
        self.leases = {port: PortLease() for port in ("8000", "8001")}
        tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        unset = ("ENVIRONMENT", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST")
        self.environ = {k: v for k, v in os.environ.items() if k not in unset}
        self.environ |= {"PATH": tools, "PYTHONPATH": str(ROOT), "REDIS_URL": server.url}

    def do(self, block: Block) -> None:
        """Follow one block."""
        match block.marks.get("redis"):
            case "stop":
                self.server.kill()
            case "start" if not self.server.alive:
                self.server.start()
        if block.skipped:
            return
        if FILES & block.marks.keys():
            self.write(block)
        elif block.language == "console":
            for command, output in commands(block.source):
                self.run(command, output, serve="serve" in block.marks)

    def write(self, block: Block) -> None:
        """Put the block where its mark says, and let what is served see it."""
        ((how, where),) = ((name, block.marks[name]) for name in FILES & block.marks.keys())
        name = where if how in ("file", "append") else "shop.py"
        path = self.directory / name
        text = "" if how == "file" else path.read_text()
        if how in ("file", "append"):
            text += ("\n\n" if text else "") + block.source + "\n"
        else:
            assert text.count(f"{where}\n") == 1, f"{where!r} stands once in {name}"
            source = block.source
            if indent := re.match(r" +", where):  # the block was taken out of its indentation
                source = "\n".join(indent[0] + line for line in source.splitlines())
            kept = f"{where}\n" if how == "below" else ""
            text = text.replace(f"{where}\n", f"{kept}{source}\n")
        path.write_text(text)
        compile(text, name, "exec")
        self.stale = self.served is not None and name == "shop.py"

    def run(self, command: str, output: str, *, serve: bool) -> None:
        """Run a command and compare what it prints with what is shown."""
        for port, lease in self.leases.items():
            command = command.replace(port, str(lease.port))
        if serve:
            self.serve(command.replace(" --reload", ""))
            return
        if self.stale and self.served and "localhost:" in command:
            self.serve(self.served)  # what --reload does
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        shown = re.escape(output.strip()).replace("…", "(.|\n)*?")
        printed = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        assert re.fullmatch(shown, printed), f"{command}\nprints\n{printed}\nnot\n{output}"

    def serve(self, command: str) -> None:
        """Leave a command running that serves the app, and end the one before."""
        self.end()
        self.served, self.stale = command, False
        with Path(self.directory, "served.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.directory,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=death_signal(),
            )
        (port,) = (lease.port for lease in self.leases.values() if str(lease.port) in command)
        eventually(lambda: self.answers(port), 15, f"{command} serves: {self.log()}")

    def answers(self, port: int) -> bool:
        """Whether somebody listens there."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def log(self) -> str:
        """What the served app has printed."""
        return Path(self.directory, "served.log").read_text()

    def end(self) -> None:
        """End what is served, with its children."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End everything."""
        self.end()
        for lease in self.leases.values():
            lease.release()


def test_tutorial_holds_what_it_says(tmp_path: Path, own_server: RedisServer) -> None:
    reader = Reader(tmp_path, own_server)
    followed = blocks(PAGE.read_text())
    try:
        for block in followed:
            try:
                reader.do(block)
            except AssertionError as error:
                raise AssertionError(f"line {block.line}: {error}\n{reader.log()}") from None
        assert reader.log().count("Redis connection failed") == 2  # once for each outage
    finally:
        reader.close()
    assert len(followed) > 20
