"""Serve the laboratory on 127.0.0.1 until Ctrl-C: ``make demo``, or ``python -m example_app``."""

import os
import sys

from example_app.supervisor import Supervisor


def main() -> None:
    """Run the embedded server and both applications, and end them together."""
    text = os.environ.get("PORT", "5000")
    if not text.isdecimal() or int(text) > 65_535:
        sys.exit(f"PORT={text!r} is not a port number")
    try:
        supervisor = Supervisor(int(text))
    except OSError as exc:
        sys.exit(f"Port {text}: {exc.strerror}. Choose another: make demo PORT=5001")
    supervisor.run()


if __name__ == "__main__":
    main()
