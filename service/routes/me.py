"""`GET /api/v1/me`: the caller's own session."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from service.components import components
from service.identity import current_caller
from service.session import fetch_session

me = Blueprint("me", __name__, url_prefix="/api/v1")


@me.get("/me")
def show() -> ResponseReturnValue:
    """The caller's profile, organizations and permissions, at most about a minute old: see docs/limits.md."""
    caller = current_caller(components().session_tokens)
    return jsonify(fetch_session(caller, refresh=bool(request.cache_control.no_cache)))
