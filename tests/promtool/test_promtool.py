"""The example alert rules and the metrics themselves, judged by Prometheus's own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.support import RedisServer, run_python

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docs" / "prometheus-alerts.yml"


def promtool(*args: str, stdin: str = "") -> str:
    program = shutil.which("promtool")
    assert program, "no promtool; on Debian: apt install prometheus"
    done = subprocess.run(
        [program, *args],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_rules_are_valid() -> None:
    assert "4 rules found" in promtool("check", "rules", str(RULES))


def test_rules_fire_when_they_should() -> None:
    output = promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yml")))
    assert "SUCCESS" in output


def test_metrics_are_well_named_and_the_rules_know_them(redis_server: RedisServer) -> None:
    text = run_python(
        f"""
        from flask import Flask
        from flask_redis_guard import RedisGuard
        from flask_redis_guard.testing import outage

        token = "promtool-test-token-0123456789"
        app = Flask("shop")
        app.config.update(
            REDIS_URL={redis_server.url!r},
            REDIS_GUARD_METRICS=True,
            REDIS_GUARD_HEALTH_TOKEN=token,
        )
        guard = RedisGuard(app)
        with app.app_context():
            guard.limiter.hit("5/minute", "somebody")
            with outage(app):
                try:
                    guard.client.get("n")
                except Exception:
                    pass
        headers = {{"Authorization": "Bearer " + token}}
        text = app.test_client().get("/api/v1/health/metrics", headers=headers).text
        wanted = [line for line in text.splitlines() if "redis_guard" in line]
        print("\\n".join(line for line in wanted if "_created" not in line))
        """
    )
    promtool("check", "metrics", stdin=text)
    samples = {line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")}
    expressions = re.findall(r"^ +expr: (.*)$", RULES.read_text(), re.MULTILINE)
    assert len(expressions) == 4
    assert set(re.findall(r"redis_guard_\w+", " ".join(expressions))) <= samples
