"""The demo page: `GET /` and its files. They exist only where ENVIRONMENT is local."""

from __future__ import annotations

from pathlib import Path

from flask import Response, jsonify, redirect, request, send_from_directory
from flask.typing import ResponseReturnValue

from service.components import components
from service.problems import Problem
from service.routes import LocalBlueprint
from service.settings import Settings

FOLDER = Path(__file__).parents[1] / "demo_page"
CLIENTS = Path(__file__).parents[2] / "clients"
# The browser gets the file that the package's authors built, in the version of the lock file.
SUPABASE_JS = Path(__file__).parents[2] / "node_modules/@supabase/supabase-js/dist/umd"

demo = LocalBlueprint("demo", __name__)


class DemoIncomplete(Problem, status=503, slug="demo-incomplete", title="The demo page is incomplete"):
    """The page needs supabase-js, which is not installed."""


@demo.get("/")
def page() -> ResponseReturnValue:
    """Serves the page, only at the origin that Clerk issues tokens for."""
    settings = components().settings
    origins = settings.clerk_authorized_parties
    if origins and request.host_url.rstrip("/") not in origins:
        return redirect(f"{origins[0]}/")  # such as from localhost to 127.0.0.1
    _require_supabase_js()
    response = send_from_directory(FOLDER, "index.html")
    response.headers["Content-Security-Policy"] = _build_security_policy(settings)
    return _forbid_caching(response)


@demo.get("/demo/config.json")
def config() -> ResponseReturnValue:
    """Serves the settings that a browser needs. None is secret."""
    settings = components().settings
    return jsonify(
        supabase_url=settings.supabase_url,
        supabase_publishable_key=settings.supabase_publishable_key.get_secret_value(),
        clerk_issuer=settings.clerk_issuer,
    )


@demo.get("/demo/supabase.js")
def supabase_js() -> ResponseReturnValue:
    """Serves supabase-js, which sets the global `supabase`."""
    _require_supabase_js()
    return send_from_directory(SUPABASE_JS, "supabase.js")


@demo.get("/demo/ballast.js")
def ballast_js() -> ResponseReturnValue:
    """Serves Ballast's client, the file that a product's front end uses."""
    return send_from_directory(CLIENTS, "ballast.js")


@demo.get("/demo/<name>")
def file(name: str) -> ResponseReturnValue:
    """Serves one of the page's own files."""
    return send_from_directory(FOLDER, name)


def _require_supabase_js() -> None:
    if not (SUPABASE_JS / "supabase.js").is_file():
        raise DemoIncomplete("supabase-js is not installed: run ./scripts/setup.")


def _forbid_caching(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def _build_security_policy(settings: Settings) -> str:
    """Allows only the page's own files, and connections to Supabase and Clerk."""
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
