"""The Flask application: `create_app()` puts settings, parts, routes and errors together."""

from __future__ import annotations

from flask import Flask, Response

from service import logs, problems, sentry
from service.audit import audit
from service.backup_routes import backup_routes
from service.demo import demo
from service.health import health
from service.jobs import jobs
from service.legal import legal
from service.me import me
from service.openapi import openapi
from service.parts import assemble
from service.personal_data import personal_data
from service.settings import Settings, load
from service.webhooks import webhooks

MAX_BODY_BYTES = 64 * 1024  # a route that takes more says so itself


def create_app(settings: Settings | None = None) -> Flask:
    """The service, with the environment's settings unless others are given. Raises SettingsInvalid."""
    logs.configure()
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False  # it redirects to whatever host the request names
    settings = settings or load()
    sentry.start(settings)
    assemble(app, settings)
    logs.register(app)
    problems.register(app)
    app.after_request(_guard)
    for blueprint in (health, webhooks, me, audit, personal_data, backup_routes, legal, jobs, openapi):
        app.register_blueprint(blueprint)
    if settings.environment == "local":
        app.register_blueprint(demo)
    return app


def _guard(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
