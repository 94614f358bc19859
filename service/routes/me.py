"""The signed-in person's own view of their session."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from service.components import components
from service.identity import current_caller
from service.session import fetch_session

me = Blueprint("me", __name__, url_prefix="/api/v1")


@me.get("/me")
def show() -> ResponseReturnValue:
    """Who the caller is and what they may do where, as of now or at most a minute ago: see docs/limits.md."""
    caller = current_caller(components().session_tokens)
    return jsonify(fetch_session(caller, refresh=bool(request.cache_control.no_cache)))
