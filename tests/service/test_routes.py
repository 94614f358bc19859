"""Modules in service/routes are registered by themselves, and their routes are closed by default."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from service import openapi, routes
from service.limits import find_limit
from tests.service.conftest import MakeApp
from tests.service.outside import Issuer, Outside, rest_answer

AUDIT = "/api/v1/organizations"
ROUTE = """
from flask import Blueprint
NAME = Blueprint("NAME", __name__)
@NAME.get("PATH")
def show(**_):
    return {}
"""


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"empty.py": '"""Nothing."""'}, "service/routes/empty.py has no route: define a Blueprint."),
        ({"other.py": ROUTE.replace("NAME", "other").replace("PATH", "/healthz")}, "GET /healthz has two functions: "),
        (
            {"other.py": ROUTE.replace("NAME", "other").replace("PATH", f"{AUDIT}/<uuid:org>/audit.csv")},
            f"GET {AUDIT}/<uuid:.*>/audit.csv has two functions: ",
        ),
    ],
    ids=["without a route", "a route that exists", "a route that exists with another name of its variable"],
)
def test_a_module_that_cannot_be_registered_stops_the_start(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], error: str
) -> None:
    add_routes(monkeypatch, tmp_path, files)
    with pytest.raises(routes.RouteInvalid, match=error):
        make_app()


def test_a_path_that_two_files_describe_and_a_file_that_is_not_json_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        described = {"paths": {"/jobs/{name}": {"post": {"parameters": [{"schema": {}}], "responses": {}}}}}
        (tmp_path / f"{name}.openapi.json").write_text(json.dumps(described))
    monkeypatch.setattr(openapi, "ROUTES", tmp_path)
    with pytest.raises(openapi.DescriptionInvalid, match=r"two.openapi.json .* another file describes: /jobs/{name}\."):
        openapi.build_document()
    (tmp_path / "one.openapi.json").write_text("{,}")
    with pytest.raises(openapi.DescriptionInvalid, match=r"^one.openapi.json is not JSON: .*line 1 column 2"):
        openapi.build_document()


def test_a_new_route_below_api_needs_a_session_and_one_elsewhere_does_not(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = {"closed": "/api/v1/closed", "open": "/hooks/open", "both": "/<place>/either"}
    add_routes(
        monkeypatch,
        tmp_path,
        {f"{name}.py": ROUTE.replace("NAME", name).replace("PATH", path) for name, path in paths.items()},
    )
    app = make_app()
    client = app.test_client()
    asked = ("/api/v1/closed", "//api/v1/closed", "/hooks/open", "/api/either", "//api/either", "/hooks/either")
    # A path in PATH_INFO: the client would take the first word after // for a host.
    assert {path: client.get("/", environ_overrides={"PATH_INFO": path}).status_code for path in asked} == {
        "/api/v1/closed": 401, "//api/v1/closed": 401, "/hooks/open": 200,
        "/api/either": 401, "//api/either": 401, "/hooks/either": 200,
    }  # fmt: skip
    assert {rule.endpoint: find_limit(rule.endpoint, rule.rule) for rule in app.url_map.iter_rules()}[
        "closed.show"
    ] == "person"


NESTED = """
from flask import Blueprint, abort
child = Blueprint("child", __name__, url_prefix="/child")
parent = Blueprint("parent", __name__, url_prefix="/parent")
@child.get("")
def show():
    return {}
@parent.before_request
def refuse():
    abort(403)
parent.register_blueprint(child)
"""


def test_the_routes_of_a_nested_blueprint_exist_only_below_their_parent(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_routes(monkeypatch, tmp_path, {"nested.py": NESTED})
    client = make_app().test_client()
    assert [client.get(path).status_code for path in ("/parent/child", "/child")] == [403, 404]


WRITE_OFF = """
from flask import Blueprint
from service.components import components
from service.identity import current_caller
from service.session import call_as_caller
write_off = Blueprint("write_off", __name__)
@write_off.post("/api/v1/write-off")
def run():
    return {"answer": call_as_caller(current_caller(components().session_tokens), "write_off", {})}
"""


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("PT403", (403, "call-refused", "Of Ada. Ask.")),
        ("PT404", (404, "call-refused", "Of Ada. Ask.")),
        ("23505", (409, "call-refused", "There is a row with this value.")),
        ("42501", (403, "call-refused", "You may not do this: a privilege or a policy forbids it.")),
        ("PGRST303", (401, "token-invalid", "Of Ada. Ask.")),
        ("57014", (503, "database-unavailable", "Try again in a few seconds.")),
    ],
)
def test_a_refusal_by_a_function_that_a_route_calls_has_its_status_and_is_not_one_of_the_session(
    make_app: MakeApp,
    outside: Outside,
    issuer: Issuer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: str,
    problem: tuple[int, str, str],
) -> None:
    add_routes(monkeypatch, tmp_path, {"write_off.py": WRITE_OFF})
    refusal = {"code": code, "message": "Of Ada.", "hint": "Ask.", "details": None}
    outside.answer = lambda *_: rest_answer(refusal, 400)
    client = make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url).test_client()
    answer = client.post("/api/v1/write-off", headers={"Authorization": f"Bearer {issuer.token()}"})
    kind = answer.json["type"].removeprefix("urn:problem:ballast:")
    assert (answer.status_code, kind, answer.json["detail"]) == problem


def add_routes(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
        monkeypatch.delitem(sys.modules, f"service.routes.{name.removesuffix('.py')}", raising=False)
    monkeypatch.setattr(routes, "__path__", [*routes.__path__, str(folder)])
