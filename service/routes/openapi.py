"""`/openapi.json`: the routes as OpenAPI 3.1 describes them. Kept by hand; tests compare it with the routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

openapi = Blueprint("openapi", __name__)

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "openapi.json").read_text())


@openapi.get("/openapi.json")
def show() -> ResponseReturnValue:
    """This document."""
    return jsonify(DOCUMENT)
