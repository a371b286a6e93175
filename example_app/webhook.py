"""Alerts to a webhook, where ``ALERT_WEBHOOK`` names one."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from flask_redis_guard import ConfigurationError
from flask_redis_guard.web.alerts.story import Alert


def webhook() -> Callable[[Alert], None] | None:
    """Return what delivers alerts; ``None`` if there is nowhere to deliver them to."""
    url = os.environ.get("ALERT_WEBHOOK")
    if not url:
        return None
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigurationError("ALERT_WEBHOOK", "***", "an http:// or https:// URL")

    def deliver(alert: Alert) -> None:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            url,
            data=json.dumps(alert.as_dict()).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - as above

    return deliver
