"""The demo page: `GET /` and its files. `create_app` registers it only where ENVIRONMENT is local."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, jsonify, redirect, request, send_from_directory
from flask.typing import ResponseReturnValue

from service.components import components
from service.problems import Problem
from service.settings import Settings

FOLDER = Path(__file__).parents[1] / "demo_page"
# The lock file's package as npm installs it: the browser gets the file that its authors built.
SUPABASE_JS = Path(__file__).parents[2] / "node_modules/@supabase/supabase-js/dist/umd"

demo = Blueprint("demo", __name__)


class DemoIncomplete(Problem, status=503, slug="demo-incomplete", title="The demo page is not complete"):
    """The page needs supabase-js, which npm has not installed."""


@demo.get("/")
def page() -> ResponseReturnValue:
    """The page, at the one origin for which Clerk issues tokens."""
    settings = components().settings
    origins = settings.clerk_authorized_parties
    if origins and request.host_url.rstrip("/") not in origins:
        return redirect(f"{origins[0]}/")  # people type localhost
    _require_supabase_js()
    response = send_from_directory(FOLDER, "index.html")
    response.headers["Content-Security-Policy"] = _content_security_policy(settings)
    return _forbid_caching(response)


@demo.get("/demo/config.json")
def config() -> ResponseReturnValue:
    """What a browser may know of the settings."""
    settings = components().settings
    return jsonify(
        supabase_url=settings.supabase_url,
        supabase_publishable_key=settings.supabase_publishable_key.get_secret_value(),
        clerk_issuer=settings.clerk_issuer,
    )


@demo.get("/demo/supabase.js")
def supabase_js() -> ResponseReturnValue:
    """supabase-js, which puts itself into the global `supabase`."""
    _require_supabase_js()
    return send_from_directory(SUPABASE_JS, "supabase.js")


@demo.get("/demo/<name>")
def file(name: str) -> ResponseReturnValue:
    """One of the page's own files."""
    return send_from_directory(FOLDER, name)


def _require_supabase_js() -> None:
    if not (SUPABASE_JS / "supabase.js").is_file():
        raise DemoIncomplete("supabase-js is not installed: run ./scripts/setup.")


def _forbid_caching(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def _content_security_policy(settings: Settings) -> str:
    """Nothing but the page's own files, and connections to Supabase and Clerk."""
    supabase = settings.supabase_url
    connections = ("'self'", supabase, supabase.replace("http", "ws", 1), settings.clerk_issuer)
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            f"connect-src {' '.join(connections)}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
