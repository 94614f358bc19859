"""The Flask application: `create_app()` puts settings, parts, routes and errors together."""

from __future__ import annotations

from flask import Flask, Response

from service import limits, logs, metrics, problems, sentry
from service.audit import audit
from service.backup_routes import backup_routes
from service.demo import demo
from service.health import health
from service.jobs import jobs
from service.legal import legal
from service.mail_routes import dev_mail, mail_routes
from service.me import me
from service.members import members
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
    metrics.register(app)
    limits.register(app, settings.trusted_proxies)
    app.after_request(_guard)
    for blueprint in (
        health, webhooks, me, members, audit, personal_data, backup_routes, legal, mail_routes, jobs,
        metrics.metrics, openapi,
    ):  # fmt: skip
        app.register_blueprint(blueprint)
    if settings.environment == "local":
        app.register_blueprint(demo)
        app.register_blueprint(dev_mail)
    return app


def _guard(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
