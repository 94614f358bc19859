"""The Flask application: `create_app()` puts settings, components, routes and errors together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus

from flask import Flask, Response

from service import cors, limits, logs, metrics, problems, routes, sentry
from service.components import build_components
from service.jobs import find_jobs
from service.json_levels import LimitedRequest
from service.settings import Settings, load

MAX_BODY_BYTES = 64 * 1024  # a route that accepts more raises its own limit
# A response has these headers unless its route sets another value.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Browsers then use https only, for a year. Where everything is https, a proxy ends it, so requests come here by http.
HTTPS_ONLY = {"Strict-Transport-Security": "max-age=31536000"}


def create_app(settings: Settings | None = None) -> Flask:
    """The service, with the environment's settings unless others are given.

    Raises SettingsInvalid, JobInvalid, RouteInvalid and DescriptionInvalid.
    """
    find_jobs()
    logs.configure()
    app = Flask(__name__, static_folder=None, template_folder="pages")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.request_class = LimitedRequest
    app.url_map.merge_slashes = False  # its redirect would go to the host that the request names
    settings = settings or load()
    sentry.start(settings)
    components = build_components(app, settings)
    logs.register(app)
    problems.register(app)
    metrics.register(app)
    # Before the limits: browsers send preflights by themselves, so they must not count.
    cors.register(app, settings.clerk_authorized_parties)
    limits.register(app, components.limits, components.threads, components.session_tokens, settings.trusted_proxies)
    app.after_request(partial(_set_headers, HEADERS | (HTTPS_ONLY if settings.is_guarded else {})))
    routes.register(app, is_local=settings.environment == "local")
    return app


def _set_headers(headers: Mapping[str, str], response: Response) -> Response:
    for name, value in headers.items():
        response.headers.setdefault(name, value)
    if response.status_code == HTTPStatus.NO_CONTENT:
        del response.headers["Content-Type"]  # Flask sends text/html even without content
    return response
