"""Workers that gunicorn forks from a process which has used Redis share nothing with it."""

from __future__ import annotations

import json

from tests.support import ClusterSetup, GunicornApp, RedisServer, eventually

APP = """
    import os, threading
    from flask import Flask, jsonify
    from flask_redis_guard import RedisGuard

    app = Flask(__name__)
    app.config.update(REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.2, REDIS_GUARD_TIMEOUT=2)
    guard = RedisGuard(app)
    client = guard.client_for(app)
    client.set("made-by", os.getpid())      # in the master: a connection, and the monitor

    def traffic():                           # which holds locks while the workers are forked
        while True:
            client.incr("traffic")

    threading.Thread(target=traffic, daemon=True).start()

    @app.get("/")
    def index():
        answers = {client.echo(str(n)) for n in range(20)} if hasattr(client, "connection_pool") \\
            else {b"%d" % client.incr("n") for n in range(20)}
        threads = [t.name for t in threading.enumerate()]
        return jsonify(pid=os.getpid(), answers=len(answers), master=int(client.get("made-by")),
                       monitors=threads.count("redis-guard-monitor"))
"""


def _check(url: str) -> None:
    with GunicornApp(
        APP,
        worker_class="gthread",
        workers=2,
        threads=4,
        arguments=("--preload",),
        env={"REDIS_URL": url},
    ) as app:
        seen: dict[int, dict[str, int]] = {}

        def both() -> bool:
            response = app.get("/")
            assert response.status_code == 200, app.log()
            answer = json.loads(response.text)
            seen[answer["pid"]] = answer
            return len(seen) == 2

        eventually(both, 10, "both workers answered")
        for pid, answer in seen.items():
            assert answer["answers"] == 20
            assert answer["monitors"] == 1
            assert answer["master"] != pid


def test_workers_of_a_preloaded_app_have_their_own_connections(own_server: RedisServer) -> None:
    _check(own_server.url)


def test_workers_of_a_preloaded_app_have_their_own_map_of_a_cluster(
    cluster_setup: ClusterSetup,
) -> None:
    _check(cluster_setup.url)
