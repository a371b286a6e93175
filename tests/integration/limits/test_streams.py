"""A place is free once its request is over, whatever became of what the view gave back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask, Response, request, send_file, stream_with_context
from werkzeug.serving import make_server

from flask_redis_guard import concurrency_limited
from tests.integration.limits.conftest import Made
from tests.support import RedisServer, eventually

Make = Callable[..., Made]


def parts() -> Iterator[str]:
    yield "a"
    yield "b"


@pytest.fixture
def serve() -> Iterator[Callable[[Flask], str]]:
    servers: list[tuple[Any, threading.Thread]] = []

    def start(app: Flask) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def held(redis_server: RedisServer) -> int:
    with redis_server.client() as client:
        return sum(client.zcard(key) for key in client.keys("guard:*"))


def _bad_header() -> Any:
    return parts(), 200, {"X-Name": "from the client\n"}


def _refused_late() -> Any:
    response = Response(parts())
    response.headers._list.append(("X-Name", "from the client\n"))
    return response


def _in_context() -> Any:
    return Response(stream_with_context(parts()))


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize(
    "result", [_bad_header, _refused_late, _in_context, lambda: parts(), lambda: Response(parts())]
)
def test_over_http_no_place_stays_taken(
    make_app: Make,
    serve: Callable[[Flask], str],
    redis_server: RedisServer,
    result: Callable[[], Any],
    above: bool,
) -> None:
    made = make_app()

    def view() -> Any:
        return result()

    limited = concurrency_limited(1)(view)
    made.app.add_url_rule("/", "index", view if above else limited)
    url = serve(made.app)
    codes = []
    for method in ("get", "get", "head", "get"):
        codes.append(requests.request(method, url, timeout=10).status_code)
        eventually(lambda: held(redis_server) == 0, 5, "the place is free")
    assert codes == [codes[0]] * 4
    assert codes[0] in (200, 500)


@pytest.mark.parametrize("fault", ["raises", "replaces", "teardown"])
def test_hooks_behind_the_view_take_no_place_with_them(
    make_app: Make, redis_server: RedisServer, fault: str
) -> None:
    made = make_app(PROPAGATE_EXCEPTIONS=False)

    @made.app.get("/")
    @concurrency_limited(1)
    def view() -> Any:
        return parts()

    if fault == "teardown":

        @made.app.teardown_request
        def end(error: BaseException | None) -> None:
            raise ZeroDivisionError("in a teardown function")
    else:

        @made.app.after_request
        def after(response: Response) -> Response:
            return Response("other") if fault == "replaces" else Response(str(1 // 0))

    for _ in range(3):
        if fault == "teardown":
            with pytest.raises(Exception, match="teardown"):  # a group, from Flask 3.2 on
                made.client.get("/", buffered=True)
            # The response is lost with the request: no server will ever close it.
        else:
            assert made.client.get("/").status_code == (500 if fault == "raises" else 200)
        assert held(redis_server) == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_downloads_one_after_the_other(
    make_app: Make,
    serve: Callable[[Flask], str],
    redis_server: RedisServer,
    tmp_path: Path,
    method: str,
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    made = make_app()

    @made.app.get("/")
    @concurrency_limited(2)
    def view() -> Any:
        return send_file(tmp_path / "file", conditional="Range" in request.headers)

    url = serve(made.app)
    for headers in ({}, {}, {}, {"Range": "bytes=5-9"}, {"Range": "bytes=5-9"}, {}):
        response = requests.request(method, url, headers=headers, timeout=10)
        assert response.status_code == (206 if headers else 200)
        eventually(lambda: held(redis_server) == 0, 5, "the place is free")


def test_a_download_holds_its_place_while_it_is_sent(
    make_app: Make, redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    made = make_app()

    @made.app.get("/")
    @concurrency_limited(1)
    def view() -> Any:
        return send_file(tmp_path / "file")

    with made.app.test_client().get("/", buffered=False) as streamed:
        assert streamed.status_code == 200
        assert held(redis_server) == 1
        assert made.app.test_client().get("/").status_code == 429
    assert held(redis_server) == 0


def test_a_generator_that_nobody_asks_for_is_closed_with_its_response(
    make_app: Make, redis_server: RedisServer
) -> None:
    made = make_app()
    made.app.add_url_rule("/", "index", concurrency_limited(1)(lambda: Response(parts())))
    for _ in range(3):
        made.app.test_client().get("/", buffered=False).close()
        assert held(redis_server) == 0


def test_a_helpers_stream_that_is_left_unread_ends_with_the_request(
    make_app: Make, redis_server: RedisServer
) -> None:
    made = make_app()
    rows = concurrency_limited(1)(parts)
    made.app.add_url_rule("/", "index", lambda: next(iter(rows())))
    assert made.codes("/", 3) == [200] * 3
    assert held(redis_server) == 0
