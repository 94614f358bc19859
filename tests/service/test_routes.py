"""Modules in service/routes are registered by themselves, and their routes are closed by default."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from service import openapi, routes
from service.limits import find_limit
from tests.service.conftest import MakeApp

ROUTE = """
from flask import Blueprint
NAME = Blueprint("NAME", __name__)
@NAME.get("PATH")
def show():
    return {}
"""


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"empty.py": '"""Nothing."""'}, "service/routes/empty.py has no route: define a Blueprint."),
        ({"other.py": ROUTE.replace("NAME", "other").replace("PATH", "/healthz")}, "GET /healthz has two functions: "),
    ],
    ids=["without a route", "a route that exists"],
)
def test_a_module_that_cannot_be_registered_stops_the_start(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], error: str
) -> None:
    add_routes(monkeypatch, tmp_path, files)
    with pytest.raises(routes.RouteInvalid, match=error):
        make_app()


def test_a_path_that_two_files_describe_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("one", "two"):
        described = {"paths": {"/jobs/{name}": {"post": {"parameters": [{"schema": {}}], "responses": {}}}}}
        (tmp_path / f"{name}.openapi.json").write_text(json.dumps(described))
    monkeypatch.setattr(openapi, "ROUTES", tmp_path)
    with pytest.raises(openapi.DescriptionInvalid, match=r"two.openapi.json .* another file describes: /jobs/{name}\."):
        openapi.build_document()


def test_a_new_route_below_api_needs_a_session_and_one_elsewhere_does_not(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = {"closed": "/api/v1/closed", "open": "/hooks/open"}
    add_routes(
        monkeypatch,
        tmp_path,
        {f"{name}.py": ROUTE.replace("NAME", name).replace("PATH", path) for name, path in paths.items()},
    )
    app = make_app()
    assert {name: app.test_client().get(path).status_code for name, path in paths.items()} == {
        "closed": 401,
        "open": 200,
    }
    assert {rule.endpoint: find_limit(rule) for rule in app.url_map.iter_rules()}["closed.show"] == "person"


def add_routes(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
        monkeypatch.delitem(sys.modules, f"service.routes.{name.removesuffix('.py')}", raising=False)
    monkeypatch.setattr(routes, "__path__", [*routes.__path__, str(folder)])
