"""Serve the example on 127.0.0.1 until Ctrl-C: ``make demo``, or ``python -m example_app``."""

from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

from example_app.app import create_app, guard  # noqa: E402
from example_app.embedded import EmbeddedServer, find_binary  # noqa: E402

#: Shorter than the defaults of 5 and 300 seconds, for visitors who watch.
IMPATIENCE = {
    "REDIS_GUARD_HEALTH_CHECK_INTERVAL": "2",
    "REDIS_GUARD_DOWNTIME_ALERT_SECONDS": "60",
}


def main() -> None:
    """Run the embedded server and the application, and end both together."""
    for key, value in IMPATIENCE.items():
        os.environ.setdefault(key, value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    port = _port()
    binary = find_binary()
    server = EmbeddedServer(binary) if binary else None
    try:
        if server is not None:
            server.start()
        app = create_app(server)
        guard.start(app)
        http = WSGIServer(("127.0.0.1", port), app, log=None)
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, http.stop, 1)
        try:
            http.start()
        except OSError as exc:
            sys.exit(f"Port {port}: {exc.strerror}. Choose another: make demo PORT=5001")
        if server is None:
            print("No Redis server here: ENVIRONMENT=development, on the in-memory store.")
        print(f"Open http://127.0.0.1:{http.server_port}/ (Ctrl-C ends it)", flush=True)
        http.serve_forever()
    finally:
        if server is not None:
            server.close()


def _port() -> int:
    text = os.environ.get("PORT", "5000")
    if not text.isdecimal() or int(text) > 65_535:
        sys.exit(f"PORT={text!r} is not a port number")
    return int(text)


if __name__ == "__main__":
    main()
