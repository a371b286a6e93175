"""The health routes: is this process alive, can it serve, how is Redis; a status page."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import math
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, current_app, make_response, render_template, request

from flask_redis_guard.core.arguments import answer_of
from flask_redis_guard.core.hostview import ACTIONS
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.host.operators import Operators
from flask_redis_guard.host.places import BoardRefused
from flask_redis_guard.observe.report import HealthReport

logger = logging.getLogger("flask_redis_guard")

#: The media type of draft-inadarei-api-health-check, whose words for the status are used as well.
MEDIA_TYPE = "application/health+json"
NAME = "redis_guard"

#: The page needs its own script, style, icon and answers, and nothing else from anywhere.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Authorization:
    """Who may see more than the five fields.

    :param token: sent as a bearer token, or as the password of HTTP Basic, which browsers can.
    :param allow: a callable of the user, asked in the request; true lets the caller see all.
    :param development: whether everybody may, as long as neither of the two is given.
    """

    def __init__(
        self, token: str | None, allow: Callable[[], object] | None, *, development: bool
    ) -> None:
        self._token = None if token is None else token.encode()
        self._allow = allow
        self._open = development and token is None and allow is None

    @property
    def takes_token(self) -> bool:
        """Whether a caller can authorise itself by a token."""
        return self._token is not None

    def granted(self) -> bool:
        """Tell whether the current request may see all; what goes wrong on the way is a no."""
        if self._open:
            return True
        if self._token is not None:
            sent = _sent_token(request.headers.get("Authorization", ""))
            if hmac.compare_digest(sent, self._token):
                return True
        if self._allow is None:
            return False
        try:
            return answer_of(self._allow())
        except RedisUnavailable as error:  # as often as a page asks, all through an outage
            logger.warning("REDIS_GUARD_HEALTH_AUTHORIZE needs Redis and gets a no: %s", error)
            return False
        except Exception:
            logger.exception("REDIS_GUARD_HEALTH_AUTHORIZE failed: the request is not authorised")
            return False


def _sent_token(header: str) -> bytes:
    """Return the token in an ``Authorization`` header; nothing where there is none."""
    scheme, _, value = header.strip().partition(" ")
    # WSGI hands headers over as Latin-1; the bytes are what was sent.
    sent = value.strip().encode("latin-1", "replace")
    if scheme.lower() == "bearer":
        return sent
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(sent, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def health_blueprint(
    url_prefix: str,
    report: HealthReport,
    authorization: Authorization,
    scrape: Callable[[], tuple[bytes, str]] | None = None,
    *,
    ready_means: str = "live",
    operators: Operators | None = None,
) -> Blueprint:
    """Return the blueprint of one app's health routes.

    :param url_prefix: where to mount them.
    :param report: tells how Redis is.
    :param authorization: tells who may see more than the five fields.
    :param scrape: gives the metrics and their media type; ``None`` mounts no route for them.
    :param ready_means: ``live``, or ``redis`` for a ``/ready`` that fails while requests that need
        Redis are refused.
    :param operators: the workers of this host; ``None`` where they share nothing.
    """
    blueprint = Blueprint(
        NAME,
        __name__,
        url_prefix=url_prefix,
        static_folder="static",
        template_folder="templates",
    )
    routes = HealthRoutes(
        report, authorization, scrape, follows_redis=ready_means == "redis", operators=operators
    )
    blueprint.add_url_rule("/live", view_func=routes.live)
    blueprint.add_url_rule("/ready", view_func=routes.ready)
    blueprint.add_url_rule("/detailed", view_func=routes.detailed)
    blueprint.add_url_rule("/status", view_func=routes.status)
    blueprint.add_url_rule("/status.json", view_func=routes.status_data)
    if operators is not None:
        blueprint.add_url_rule("/breaker", view_func=routes.breaker, methods=["POST"])
    if scrape is not None:
        blueprint.add_url_rule("/metrics", view_func=routes.metrics)
    return blueprint


#: A request with this header cannot come from a page of another site.
OWN_HEADER = "X-Redis-Guard"


def _is_own_page() -> bool:
    """Whether a request comes from the status page, or from no browser."""
    site = request.headers.get("Sec-Fetch-Site")
    return OWN_HEADER in request.headers and site in (None, "same-origin")


def _said(text: str, status: int) -> Response:
    return Response(text, status, {"Cache-Control": "no-store"}, "text/plain")


class HealthRoutes:
    """The views; see :func:`health_blueprint`."""

    def __init__(
        self,
        report: HealthReport,
        authorization: Authorization,
        scrape: Callable[[], tuple[bytes, str]] | None,
        *,
        follows_redis: bool,
        operators: Operators | None,
    ) -> None:
        self._operators = operators
        self._report = report
        self._authorization = authorization
        self._scrape = scrape
        self._follows_redis = follows_redis

    def live(self) -> Response:
        """Tell that this process answers; Redis has no part in it."""
        return self._answer("pass")

    def ready(self) -> Response:
        """Tell whether this process can serve; costs no round trip.

        A shared dependency that is away is no reason to take every instance out of the load
        balancer at once: it would answer instead of us, for the routes without Redis too. So
        ``warn`` says that what needs Redis is refused, unless the settings want a failure.
        """
        refused = "fail" if self._follows_redis else "warn"
        return self._answer("pass" if self._report.ready else refused)

    def detailed(self) -> Response:
        """Tell the five fields, and the rest to those who may see it."""
        return self._tell(everything=self._authorization.granted())

    def status_data(self) -> Response:
        """Tell the status page all there is."""
        if not self._authorization.granted():
            return self._not_authorized()
        response = self._tell(everything=True, history=True)
        response.status_code = 200  # that Redis is down is what the page has to show
        return response

    def status(self) -> Response:
        """Give the status page; all that it shows it asks for itself."""
        if not self._authorization.granted():
            return self._not_authorized()
        response = make_response(render_template("redis_guard/status.html", app=current_app.name))
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def breaker(self) -> Response:
        """Command all workers of this host: ``{"action": "reset"}``, ``force-open``, ``disable``.

        A page of another site can neither send the header that is wanted here nor the type of the
        body, without asking first, and is not allowed to.
        """
        if not self._authorization.granted():
            return self._not_authorized()
        if not _is_own_page():
            return _said("Send it from the status page, or with the header X-Redis-Guard.\n", 403)
        body = request.get_json(silent=True)
        action = body.get("action") if isinstance(body, dict) else None
        if action not in ACTIONS or self._operators is None:
            return _said(f"The action is one of {', '.join(ACTIONS)}.\n", 400)
        try:
            self._operators.give(action, f"the status page, asked from {request.remote_addr}")
        except BoardRefused as error:
            logger.warning("A command from the status page reaches no worker (%s)", error)
            return _said("No worker can be reached; the log says why.\n", 409)
        return _said("", 204)

    def metrics(self) -> Response:
        """Give the metrics to a Prometheus that brings the token."""
        if self._scrape is None or not self._authorization.granted():
            return self._not_authorized()
        text, media_type = self._scrape()
        return Response(text, 200, {"Cache-Control": "no-store"}, content_type=media_type)

    def _tell(self, *, everything: bool, history: bool = False) -> Response:
        redis = self._report.summary()
        fields: dict[str, Any] = {"redis": redis}
        if everything:
            fields["process"] = self._report.process()
            fields["details"] = self._report.details()
            fields["workers"] = self._workers()
        if history:
            fields["history"] = self._report.history()
        return self._answer(self._report.status(redis, ready=self._report.ready), **fields)

    def _workers(self) -> list[dict[str, Any]]:
        try:
            reports = [] if self._operators is None else self._operators.workers()
        except BoardRefused:  # the log has said so
            return []
        return [report.as_dict() for report in reports]

    def _answer(self, status: str, **fields: Any) -> Response:
        body = {"status": status, **fields}
        headers = {"Cache-Control": "no-store"}
        if status == "fail":
            headers["Retry-After"] = str(max(1, math.ceil(self._report.retry_after)))
        text = current_app.json.dumps(body) + "\n"
        return Response(text, 503 if status == "fail" else 200, headers, mimetype=MEDIA_TYPE)

    def _not_authorized(self) -> Response:
        """Refuse; a browser asks for the token where there is one to give."""
        response = Response("Not authorised.\n", 403, {"Cache-Control": "no-store"}, "text/plain")
        if self._authorization.takes_token:
            response.status_code = 401
            response.headers["WWW-Authenticate"] = 'Basic realm="health", charset="UTF-8"'
        return response
