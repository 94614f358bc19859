"""`/openapi.json`: the OpenAPI 3.1 description of the routes, written by hand. Tests compare it with the routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service.jobs import find_jobs

openapi = Blueprint("openapi", __name__)

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "openapi.json").read_text())
DOCUMENT["paths"]["/jobs/{name}"]["post"]["parameters"][0]["schema"]["enum"] = list(find_jobs())


@openapi.get("/openapi.json")
def show() -> ResponseReturnValue:
    """Serves this document."""
    return jsonify(DOCUMENT)
