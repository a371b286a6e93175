"""What the first page promises to somebody who has just arrived."""

from __future__ import annotations

import re
from pathlib import Path

import requests

from tests.support import GunicornApp, RedisServer, eventually

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
#: What is read in three minutes.
WORDS = 750


def quick_start() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return str(block)


def test_page_is_read_in_three_minutes() -> None:
    prose = re.sub(r"```.*?```|\]\(\S+?\)|<[^>]*>|!\[.*?\]", "", README, flags=re.DOTALL)
    assert len(re.findall(r"\w+", prose)) <= WORDS


def test_quick_start_is_ten_lines() -> None:
    assert len([line for line in quick_start().splitlines() if line.strip()]) <= 10


def test_quick_start_pasted_into_a_file_does_what_is_said(own_server: RedisServer) -> None:
    with GunicornApp(
        quick_start(), worker_class="gthread", threads=4, env={"REDIS_URL": own_server.url}
    ) as app:

        def login() -> requests.Response:
            return requests.post(f"{app.url}/login", timeout=5)

        assert login().json() == {"visits": 1}
        own_server.kill()
        for _ in range(6):
            refused = login()
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
        own_server.start()
        eventually(lambda: login().ok, 5, "served again")
        eventually(lambda: login().status_code == 429, 5, "the limit is reached", interval=0)


def test_pictures_of_the_page_need_nothing_from_elsewhere() -> None:
    picture = (ROOT / "docs" / "outage.svg").read_text()
    assert "<script" not in picture
    assert picture.count("http") == 1  # the namespace
    assert "prefers-color-scheme:dark" in picture
