"""The HTTP routes: each module in this folder that defines a Blueprint is registered when the service starts.

Requests below /api/ need a session, unless service/limits.py gives them another limit. docs/extension-points.md shows
a route.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module

from flask import Blueprint, Flask

# A variable in a path, such as <uuid:invoice_id>: paths that differ only in its name are the same.
VARIABLE = re.compile(r"<((?:[^<>]*:)?)[^<>:]+>")


class RouteInvalid(Exception):
    """A module in service/routes has no Blueprint, or two of them have the same route."""


class LocalBlueprint(Blueprint):
    """Routes for development: registered only where ENVIRONMENT is local."""


def register(app: Flask, *, is_local: bool) -> None:
    """Registers the routes of every module. Raises RouteInvalid."""
    blueprints = list(_find_blueprints())
    # Flask registers these with their parent, below its path and behind its checks.
    nested = {child for each in blueprints for child, _ in each._blueprints}
    for blueprint in blueprints:
        if blueprint not in nested and (is_local or not isinstance(blueprint, LocalBlueprint)):
            app.register_blueprint(blueprint)
    owners: dict[tuple[str, str], str] = {}
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            other = owners.setdefault((VARIABLE.sub(r"<\1>", rule.rule), method), rule.endpoint)
            if other != rule.endpoint:
                raise RouteInvalid(f"{method} {rule.rule} has two functions: {other} and {rule.endpoint}. Rename one.")


def _find_blueprints() -> Iterator[Blueprint]:
    for found in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{found.name}")
        own = [
            each
            for each in vars(module).values()
            if isinstance(each, Blueprint) and each.import_name == module.__name__
        ]
        if not own:
            raise RouteInvalid(f"service/routes/{found.name}.py has no route: define a Blueprint.")
        yield from own
