"""The legal pages, made from templates, settings and the registry of personal data; and the consent banner."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, make_response, render_template, send_from_directory
from flask.typing import ResponseReturnValue

from service.components import components
from service.privacy_notice import PROCESSORS
from service.settings import LEGAL_SETTINGS

FOLDER = Path(__file__).parents[1] / "pages"
LIFE_SECONDS = 3600

legal = Blueprint("legal", __name__)


@legal.get("/legal/privacy")
def privacy() -> ResponseReturnValue:
    """Serves the privacy page: which data, why, on which legal basis, how long, who processes it, and the rights."""
    return _render_page("privacy.html", categories=components().privacy_notice.categories(), processors=PROCESSORS)


@legal.get("/legal/terms")
def terms() -> ResponseReturnValue:
    """Serves the terms of service, a template to adapt."""
    return _render_page("terms.html")


@legal.get("/style.css")
def style() -> ResponseReturnValue:
    """Serves the stylesheet of all pages."""
    return _allow_caching(send_from_directory(FOLDER, "style.css"))


@legal.get("/consent.js")
def consent() -> ResponseReturnValue:
    """Serves the banner: `<script src="…/consent.js" defer data-categories="analytics" data-version="1">`."""
    response = _allow_caching(send_from_directory(FOLDER, "consent.js", mimetype="text/javascript"))
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return response


def _render_page(template: str, **context: object) -> Response:
    settings = components().settings
    missing = [name.upper() for name in LEGAL_SETTINGS if not getattr(settings, name)]
    response = make_response(render_template(template, settings=settings, missing=missing, **context))
    response.headers["Content-Security-Policy"] = "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    return response


def _allow_caching(response: Response) -> Response:
    """Lets shared caches store the response, which contains nothing about the caller."""
    response.headers["Cache-Control"] = f"public, max-age={LIFE_SECONDS}"
    return response
