"""The OpenAPI description of the service: service/openapi.json, and a file `<module>.openapi.json` next to each route.

A route's file has its paths and its own schemas. The responses that every such route can give are added here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.jobs import find_jobs
from service.limits import EXEMPT

Description = dict[str, Any]

BASE = Path(__file__).with_name("openapi.json")
ROUTES = Path(__file__).with_name("routes")
SUFFIX = ".openapi.json"

# The problems that a route with this security can answer with, unless its file describes them otherwise.
PROBLEMS = {
    "clerk": {
        "401": "The session token is missing or not valid.",
        "403": "The person is banned or deleted, or the session has unfinished tasks.",
        "431": "The session token has more than 8 kB of claims.",
        "503": "The database or Clerk does not answer.",
    },
    "jobs": {"401": "The jobs token is missing or wrong."},
    "metrics": {"401": "The metrics token is missing or wrong."},
    "operator": {"401": "The operator's token is missing or wrong."},
}
LIMITED = "Too many requests: try again after Retry-After seconds."
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


class DescriptionInvalid(Exception):
    """A file is not JSON, or two files describe the same path or schema."""


def build_document() -> Description:
    """The whole document. Raises DescriptionInvalid."""
    document: Description = json.loads(BASE.read_text()) | {"paths": {}}
    for file in sorted(ROUTES.glob(f"*{SUFFIX}")):
        try:
            described: Description = json.loads(file.read_text())
        except ValueError as error:
            raise DescriptionInvalid(f"{file.name} is not JSON: {error}.") from None
        is_limited = file.name.removesuffix(SUFFIX) not in EXEMPT
        for operations in described["paths"].values():
            for operation in operations.values():
                _add_problems(operation, is_limited=is_limited)
        _merge(document["paths"], described["paths"], file)
        _merge(document["components"]["schemas"], described.get("components", {}).get("schemas", {}), file)
    document["paths"]["/jobs/{name}"]["post"]["parameters"][0]["schema"]["enum"] = list(find_jobs())
    return document


def _merge(into: Description, described: Description, file: Path) -> None:
    if twice := into.keys() & described.keys():
        raise DescriptionInvalid(f"{file.name} describes what another file describes: {', '.join(sorted(twice))}.")
    into.update(described)


def _add_problems(operation: Description, *, is_limited: bool) -> None:
    problems = {"429": LIMITED} if is_limited else {}
    for scheme in operation.get("security", []):
        for name in scheme:
            problems |= PROBLEMS.get(name, {})
    responses = {status: {"description": text, "content": PROBLEM} for status, text in problems.items()}
    operation["responses"] = dict(sorted((responses | operation["responses"]).items()))
