"""JSON from clients has at most 64 levels, as in the database (functions/1_caller/depth.sql)."""

from __future__ import annotations

from typing import Any

from flask import Request

from service.problems import Problem

LEVELS = 64


class JsonTooDeep(Problem, status=400, slug="json-too-deep", title="The JSON has too many levels"):
    """The body has more than 64 levels. Python reads JSON by recursion, so a deeper body could exhaust its stack."""

    def __init__(self) -> None:
        super().__init__(f"Send JSON with at most {LEVELS} levels.")


class LimitedRequest(Request):
    """A request that reads no body with too many levels."""

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """As in Flask. Raises JsonTooDeep, also if it is `silent`."""
        try:
            value = super().get_json(force, silent, cache)
        except RecursionError:
            raise JsonTooDeep from None
        if _has_more_levels(value):
            raise JsonTooDeep
        return value


def _has_more_levels(value: object) -> bool:
    level = [value]
    for _ in range(LEVELS):
        level = [child for each in level if isinstance(each, dict | list) for child in _children(each)]
    return bool(level)


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
