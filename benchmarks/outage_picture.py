"""Draw one outage as three apps meet it: ``python -m benchmarks.outage_picture``.

The apps run at once under gunicorn, on one server that is killed, comes back, hangs, and comes
back. Each is sent the same requests: a visitor who keeps within a limit, and an attacker who does
not. The picture, ``docs/outage.svg``, has a square for each request.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Table, publish, server, versions
from tests.support import RedisServer
from tests.support.apps import GunicornApp

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "outage.svg"

#: Requests a second to each app, in this order: four within their limit, four guesses.
PLAN = "vgvgvgvg"
#: The limit on guesses, and the seconds of a period; a client's clock reads them with an error.
LIMIT, PERIOD, ERROR = 5, 10.0, 1.0
#: Seconds after which an answer came late, and after which a client gives up.
LATE, PATIENCE = 1.5, 15.0

SHARED = """
from flask import Flask, request

app = Flask("app")
URL = {url!r}

def address():
    return "client"
"""
APPS = {
    "flask-redis-guard": """
app.config["REDIS_URL"] = URL
from flask_redis_guard import RedisGuard, rate_limited
RedisGuard(app)

@app.get("/v")
@rate_limited("1000/minute", key=address)
def visit():
    return "welcome"

@app.get("/g")
@rate_limited("5 per 10 seconds", key=address)
def guess():
    return "wrong password", 401
""",
    "Flask-Limiter": """
from flask_limiter import Limiter
limiter = Limiter(address, app=app, storage_uri=URL, strategy="moving-window")

@app.get("/v")
@limiter.limit("1000/minute")
def visit():
    return "welcome"

@app.get("/g")
@limiter.limit("5 per 10 seconds")
def guess():
    return "wrong password", 401
""",
    "redis-py, try … except": """
import redis
store = redis.Redis.from_url(URL)

def allowed(name, limit, seconds):
    try:
        count = store.incr(f"plain:{{name}}")
        if count == 1:
            store.expire(f"plain:{{name}}", seconds)
    except redis.RedisError:
        return True
    return count <= limit

@app.get("/v")
def visit():
    return "welcome" if allowed("v", 1000, 60) else ("slow down", 429)

@app.get("/g")
def guess():
    return ("wrong password", 401) if allowed("g", 5, 10) else ("slow down", 429)
""",
}

#: What happens to the server: after so many seconds, by a word, and how.
STORY: list[tuple[int, str, Callable[[RedisServer], object]]] = [
    (8, "killed", RedisServer.kill),
    (18, "back", RedisServer.start),
    (28, "hangs", RedisServer.pause),
    (38, "back", RedisServer.resume),
]
SECONDS = 46


@dataclass
class Request:
    """One request.

    :param number: its place in the stream.
    :param sent: when, in seconds since the stream began.
    :param outcome: its status, ``beyond`` if it was let in beyond the limit, ``none`` without an
        answer.
    :param took: seconds until then.
    """

    number: int
    sent: float
    outcome: str = "none"
    took: float = PATIENCE

    @property
    def answered(self) -> float:
        """When its answer came."""
        return self.sent + self.took

    @property
    def is_guess(self) -> bool:
        """Whether it is one of the attacker's."""
        return PLAN[self.number % len(PLAN)] == "g"


class Stream:
    """Sends the plan to one app, however long the answers take."""

    def __init__(self, app: GunicornApp, pool: ThreadPoolExecutor) -> None:
        self._port = app.port
        self._pool = pool
        self.requests: list[Request] = []

    def run(self, began: float) -> None:
        """Send everything at its time."""
        for number in range(SECONDS * len(PLAN)):
            time.sleep(max(0.0, began + number / len(PLAN) - time.monotonic()))
            self._pool.submit(self._send, number, began)

    def _send(self, number: int, began: float) -> None:
        request = Request(number, time.monotonic() - began)
        self.requests.append(request)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", f"/{PLAN[number % len(PLAN)]}")
            response = connection.getresponse()
            response.read()
            request.outcome = str(response.status)
        connection.close()
        request.took = time.monotonic() - began - request.sent


def judge(requests: list[Request]) -> list[Request]:
    """Name the guesses that were let in beyond the limit; return all by their numbers."""
    let_in: list[float] = []
    for request in sorted(requests, key=lambda one: one.answered):
        if request.outcome == "401":
            let_in = [at for at in let_in if request.answered - at < PERIOD - ERROR]
            let_in.append(request.answered)
            if len(let_in) > LIMIT:
                request.outcome = "beyond"
    return sorted(requests, key=lambda one: one.number)


def observe() -> dict[str, list[Request]]:
    """Let all apps meet the outage, and return what became of the requests to each."""
    with ExitStack() as stack:
        running = stack.enter_context(server(options={"databases": len(APPS)}))
        pool = stack.enter_context(ThreadPoolExecutor(400))
        streams: dict[str, Stream] = {}
        for database, (name, source) in enumerate(APPS.items()):
            if name == "Flask-Limiter" and importlib.util.find_spec("flask_limiter") is None:
                print("Flask-Limiter is not installed: not drawn", file=sys.stderr)
                continue
            url = running.url.rpartition("/")[0] + f"/{database}"
            app = GunicornApp(
                SHARED.format(url=url) + source.replace("{{", "{").replace("}}", "}"),
                worker_class="gthread",
                workers=2,
                threads=8,
                ready_path="/v",
            )
            streams[name] = Stream(stack.enter_context(app), pool)
        time.sleep(1)
        began = time.monotonic() + 0.2
        threads = [threading.Thread(target=each.run, args=(began,)) for each in streams.values()]
        for thread in threads:
            thread.start()
        for second, _, act in STORY:
            time.sleep(max(0.0, began + second - time.monotonic()))
            act(running)
        for thread in threads:
            thread.join()
        pool.shutdown()
        return {name: judge(stream.requests) for name, stream in streams.items()}


# -- numbers --------------------------------------------------------------------------------------


def back_after(requests: list[Request]) -> float:
    """Return how long after Redis's return a request still met an error or a refusal, at most."""
    worst = 0.0
    for index, (second, word, _) in enumerate(STORY):
        if word == "back":
            # What was sent just before the next fault may have met it.
            end = STORY[index + 1][0] - 1 if index + 1 < len(STORY) else SECONDS
            bad = [
                one.sent - second
                for one in requests
                if second <= one.sent < end and one.outcome in ("500", "503", "none")
            ]
            worst = max([worst, *bad])
    return worst


def numbers(name: str, requests: list[Request]) -> list[object]:
    """Return a row of the table."""
    return [
        name,
        sum(one.outcome == "beyond" for one in requests),
        sum(one.outcome in ("500", "none") for one in requests),
        sum(one.outcome == "503" for one in requests),
        round(max(one.took for one in requests), 1),
        round(back_after(requests), 1),
    ]


# -- the picture ----------------------------------------------------------------------------------

PITCH, SIZE, LEFT, TOP, PANEL, WIDTH = 15, 13, 104, 54, 206, 812
STYLE = """
.b{fill:#f3f4f9}.p{fill:#fff;stroke:#dfe2ee}.t{fill:#171a2b;font:600 16px system-ui,sans-serif}
.s{fill:#565d78;font:13px system-ui,sans-serif}.n{fill:#b3163c;font:600 13px system-ui,sans-serif}
.g{fill:#0f7048;font:600 13px system-ui,sans-serif}.away{fill:#f2f3f8}
.up{fill:#1f9d68}.down{fill:#d4213d}
.c200{fill:#1f9d68}.c401{fill:#3b7df0}.c429{fill:#f2b33f;stroke:#b97800;stroke-width:.8}.c503{fill:#7480a8}.c500{fill:#d4213d}
.cbeyond{fill:#e0218a}.late{fill:none;stroke:#d4213d;stroke-width:1.5}
.m{fill:none;stroke:#fff;stroke-width:1.7;stroke-linecap:round}
@media (prefers-color-scheme:dark){.b{fill:#0d101b}
.p{fill:#161a29;stroke:#2a3048}.t{fill:#e9ebf6}.s{fill:#a2a9c6}
.n{fill:#ff96aa}.g{fill:#6fe0ac}.away{fill:#1f253a}.up,.c200{fill:#2fa876}.c401{fill:#4c86ee}
.c429{fill:#e5a633;stroke:none}.c503{fill:#68739d}.c500,.down{fill:#e0314d}.cbeyond{fill:#f23d9e}
.late{stroke:#ff5d76}}
"""
#: What is drawn into a square, so that nothing depends on its colour alone.
MARKS = {
    "503": "M{0} {4}h4.6",
    "500": "M{1} {2}l5 5m0 -5l-5 5",
    "beyond": "M{3} {5}v3.6m0 2.6v.1",
}
LEGEND = [
    ("200", "served"),
    ("401", "tried"),
    ("429", "over the limit"),
    ("503", "refused: try later"),
    ("beyond", "let in beyond the limit"),
    ("500", "error"),
    ("late", "answered late, or never"),
]


def cell(x: float, y: float) -> str:
    """Return the path of a square."""
    return f"M{x:g} {y:g}h{SIZE}v{SIZE}h-{SIZE}z"


def mark(outcome: str, x: float, y: float) -> str:
    """Return the path of what is drawn into it."""
    middle = SIZE / 2
    places = (x + 4.2, x + 4, y + 4, x + middle, y + middle, y + 3.2)
    return MARKS[outcome].format(*(f"{place:g}" for place in places))


def rect(kind: str, x: float, y: float, width: float, height: float, more: str = "") -> str:
    """Return a rectangle."""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"{more}/>'


def squares(placed: Iterable[tuple[str, bool, float, float]]) -> str:
    """Return squares: of each outcome, whether it came late, and where, as few elements."""
    paths: dict[str, list[str]] = {}
    for outcome, late, x, y in placed:
        if late:
            paths.setdefault("late", []).append(f"M{x + 1:g} {y + 1:g}h11v11h-11z")
            if outcome not in ("none", "late"):
                kind = f"c{outcome}"
                paths.setdefault(kind, []).append(f"M{x + 4.5:g} {y + 4.5:g}h4v4h-4z")
            continue
        paths.setdefault(f"c{outcome}", []).append(cell(x, y))
        if outcome in MARKS:
            paths.setdefault("m", []).append(mark(outcome, x, y))
    last = {"late": 1, "m": 2}  # above the others
    ordered = sorted(paths.items(), key=lambda item: (last.get(item[0], 0), item[0]))
    return "".join(f'<path class="{kind}" d="{"".join(each)}"/>' for kind, each in ordered)


def panel(name: str, requests: list[Request], top: float) -> str:
    """Return the picture of one app."""
    parts = [
        rect("p", 0.5, top + 0.5, WIDTH - 1, PANEL - 14, ' rx="12"'),
        f'<text class="t" x="16" y="{top + 27}">with {name}</text>',
    ]
    _, beyond, errors, _, wait, back = numbers(name, requests)
    told = [
        (f"{beyond} let in beyond the limit", bool(beyond)),
        (f"{errors} errors", bool(errors)),
        (f"waits up to {wait} s", float(str(wait)) > 1),
        (f"back in {back} s", float(str(back)) > 2),
    ]
    words = " · ".join(f'<tspan class="{"n" if bad else "g"}">{text}</tspan>' for text, bad in told)
    parts.append(
        f'<text class="s" x="{WIDTH - 16}" y="{top + 27}" text-anchor="end">{words}</text>'
    )
    grid = top + 62
    for index, (second, word, _) in enumerate(STORY):
        end = STORY[index + 1][0] if index + 1 < len(STORY) else SECONDS
        x, width = LEFT + second * PITCH - 1.5, (end - second) * PITCH
        away = word != "back"
        if away:
            height = 8 * 14.5 + 8
            parts.append(rect("away", x, grid - 3, width, height))
        parts.append(
            rect("down" if away else "up", x, grid - 8, width, 3)
            + f'<text class="{"n" if away else "s"}" x="{x}" y="{grid - 13}">{word}</text>'
        )
    parts.append(rect("up", LEFT - 1.5, grid - 8, STORY[0][0] * PITCH, 3))
    for row, word in ((0, "a visitor"), (4, "guesses")):
        parts.append(f'<text class="s" x="16" y="{grid + row * 15.5 + 34}">{word}</text>')
    parts.append(squares(_places(requests, grid)))
    return "".join(parts)


def _places(requests: list[Request], grid: float) -> Iterable[tuple[str, bool, float, float]]:
    for one in requests:
        second, slot = divmod(one.number, len(PLAN))
        row = slot // 2 + (4 if one.is_guess else 0)
        late = one.took > LATE or one.outcome == "none"
        yield one.outcome, late, LEFT + second * PITCH, grid + row * 14.5 + (row > 3) * 4


def draw(observed: dict[str, list[Request]]) -> str:
    """Return the picture of all apps."""
    height = TOP + PANEL * len(observed) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-14 -12 {WIDTH + 28} {height + 18}" '
        f'role="img" aria-labelledby="title desc"><title id="title">One outage, three apps</title>'
        f'<desc id="desc">Every square is a request, every column a second. {versions()}</desc>'
        f"<style>{STYLE}</style>" + rect("b", -14, -12, WIDTH + 28, height + 18, ' rx="14"')
    ]
    for index, (outcome, word) in enumerate(LEGEND):
        x, y = 4 + index % 4 * 202, 2 + index // 4 * 22
        parts.append(squares([(outcome, outcome == "late", x, y)]))
        text = word if outcome in ("beyond", "late") else f"{outcome} {word}"
        parts.append(f'<text class="s" x="{x + 19}" y="{y + 11}">{text}</text>')
    for index, (name, requests) in enumerate(observed.items()):
        parts.append(panel(name, requests, TOP + index * PANEL))
    axis = f"one outage, {SECONDS} seconds: a column is a second, a square is a request"
    parts.append(f'<text class="s" x="{LEFT}" y="{height - 8}">{axis}</text></svg>\n')
    return "".join(parts)


def measure() -> list[Table]:
    """Run the outage, draw it, and return its numbers."""
    observed = observe()
    PICTURE.write_text(draw(observed))
    head = ["app", "let in beyond the limit", "errors, no answers", "refused with 503"]
    head += ["longest wait, s", "last bad answer after Redis's return, s"]
    note = (
        f"{len(PLAN)} requests a second for {SECONDS} s, gunicorn -k gthread -w 2; Redis is killed "
        "for 10 s and hangs for 10 s. Flask-Limiter's moving window takes the time from the "
        "process, before a request waits: a guess that waited for Redis counts for less long."
        "\n\n![One outage, three apps](outage.svg)"
    )
    rows = [numbers(name, requests) for name, requests in observed.items()]
    return [Table("One outage, three apps", head, rows, note)]


if __name__ == "__main__":
    publish(measure())
