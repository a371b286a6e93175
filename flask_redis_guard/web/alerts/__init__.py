"""Alerts about outages, delivered in the background."""

from flask_redis_guard.web.alerts.delivery import Alert
from flask_redis_guard.web.alerts.story import Alerts

__all__ = ["Alert", "Alerts"]
