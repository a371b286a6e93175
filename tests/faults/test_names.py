"""A resolver that does not answer holds nobody up for longer than an operation may take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.distance import can_be_apart

pytestmark = [
    pytest.mark.timing,
    pytest.mark.skipif(not can_be_apart(), reason="needs a network namespace"),
]

GREENLETS = "from gevent import monkey; monkey.patch_all(); import gevent"
THREADS = ""
# In namespaces of its own, with its own hosts file and a name server that never answers.
SILENCE = """
    import os, socket, subprocess, threading, time
    for name in ("resolv.conf", "hosts"):
        ours, theirs = f"{os.environ['FILES']}/{name}", f"/etc/{name}"
        subprocess.run(["mount", "--bind", ours, theirs], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 53))

    from tests.support import RedisServer
    from tests.support.guarded import NEVER_OPENS, Guarded
    from flask_redis_guard import RedisUnavailable

    def hosts(text):
        with open("/etc/hosts", "w") as file:
            file.write("127.0.0.1 localhost\\n" + text)

    def asked():
        packets = 0
        silent.setblocking(False)
        try:
            while silent.recv(1000):
                packets += 1
        except BlockingIOError:
            return packets

    def get():
        began = time.monotonic()
        try:
            guarded.client.get("k")
            told = "answered"
        except RedisUnavailable as exc:
            told = exc.reason
        times.append(time.monotonic() - began)
        results.append(told)

    def at_once(number):
        results.clear(), times.clear()
        threads = [threading.Thread(target=get) for _ in range(number)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert max(times) < 0.9, times
        return set(results)

    times, results = [], []
    with RedisServer() as server:
        url = f"redis://redis.example:{server.port}/0"
        guarded = Guarded(url, REDIS_GUARD_TIMEOUT=0.4, **NEVER_OPENS)
        assert at_once(20) == {"timeout"}, results
        packets = asked()
        assert 0 < packets <= 4, packets  # A and AAAA, each perhaps repeated
        hosts("127.0.0.1 redis.example\\n")
        deadline = time.monotonic() + 10
        while at_once(1) != {"answered"}:  # the look-up under way fails after a second
            assert time.monotonic() < deadline
        hosts("")  # from here on it is asked for again, in vain
        time.sleep(1.1)
        for _ in range(3):
            guarded.client.connection_pool.disconnect()
            assert at_once(20) == {"answered"}, results
        assert asked() > 0
    print("done")
"""


@pytest.mark.parametrize("others", [GREENLETS, THREADS], ids=["greenlets", "threads"])
def test_a_silent_resolver(others: str, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    assert shutil.which("mount")
    apart = ["unshare", "--map-root-user", "--net", "--mount"]
    done = subprocess.run(
        [*apart, sys.executable, "-c", others + textwrap.dedent(SILENCE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        env={"FILES": str(tmp_path), **os.environ},
    )
    assert done.stdout.strip() == "done", done.stderr
