"""`/openapi.json`: the OpenAPI 3.1 description of the routes. Tests compare it with the routes."""

from __future__ import annotations

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service.openapi import build_document

openapi = Blueprint("openapi", __name__)

DOCUMENT = build_document()


@openapi.get("/openapi.json")
def show() -> ResponseReturnValue:
    """Serves this document."""
    return jsonify(DOCUMENT)
