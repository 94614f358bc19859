"""The Data API answers as PostgREST does: postgrest_answers.json has requests and a real PostgREST's answers.

PostgREST 14.17 answered in this order, on the seeded database; later requests see what earlier ones wrote. Adapt an answer
when the schema changes. Unlike hosted projects, that server did not load the extension safeupdate: the two answers
`requires a WHERE clause` are from its source.

In the file, `as` names the caller (see tests/api/data_api.py). {acme} and {globex} stand for the ids of the two tenants,
U0, U1 … for ids in the order of their appearance in an answer, and T for a moment before its zone. … ends a list that was cut.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.data_api import DataApi, Json, running_data_api
from tests.conftest import own_database
from tests.servers import TestRun

REQUESTS: list[Json] = json.loads(Path(__file__).with_name("postgrest_answers.json").read_text())
HEADERS = (
    "content-type", "content-range", "content-location", "content-profile", "preference-applied", "proxy-status",
    "location", "allow", "www-authenticate",
)  # fmt: skip

SYNTAX = "The details of a syntax error are worded differently; status, code and message agree."
OPENAPI = "Lite does not describe the tables. Types come from `supabase gen types`, which reads the database."
# Where the local stack answers differently, and why no client depends on it.
DIFFERENCES = {
    "GET projects?order=title.nope": SYNTAX,
    "GET projects?title=badop.x": SYNTAX,
    "GET projects?or=()": SYNTAX,
    "GET projects?select=title,organizations!inner(name,nope)&limit=1":
        "The message names the column with the wrong table. Status and code agree.",
    "GET projects?select=title&title=eq.%00":
        "Postgres refuses a NUL in a filter with 400; PostgREST cuts the text there. No text in Postgres has one.",
    "W PUT": "PUT without the key in its body is refused with 400 by both, with another code.",
    "geojson": "Refused by both: there is no PostGIS.",
    "openapi root": OPENAPI,
    "openapi root anon": OPENAPI,
}  # fmt: skip


@pytest.fixture(scope="module")
def data_api(request: pytest.FixtureRequest, test_run: TestRun) -> Iterator[DataApi]:
    """The PostgREST of --data-api-url, or the local stack's Data API."""
    if address := request.config.getoption("--data-api-url"):
        yield DataApi(address.rstrip("/"), os.environ["JWT_SECRET"])
        return
    server = test_run.postgres("server", request.config.getoption("--postgres"), is_migrated=True)
    with own_database(server) as database, running_data_api(database) as api:
        yield api


def test_every_answer_is_that_of_postgrest(data_api: DataApi, request: pytest.FixtureRequest) -> None:
    listed = {} if request.config.getoption("--data-api-url") else DIFFERENCES
    ids = tenant_ids(data_api)
    found: dict[str, str] = {}
    for each in REQUESTS:
        asked = with_values(each, ids)
        body = {kind: asked[kind] for kind in ("headers", "json", "text") if kind in asked}
        answer = answer_of(data_api.ask(asked["method"], asked["path"], asked["as"], **body), each["answer"])
        if answer != each["answer"]:
            found[each["name"]] = f"PostgREST {json.dumps(each['answer'])}\n  here      {json.dumps(answer)}"
    new = [f"{name}:\n  {answers}" for name, answers in found.items() if name not in listed]
    assert not new, f"{len(new)} answers differ from PostgREST's:\n" + "\n".join(new)
    assert not listed.keys() - found.keys(), "These answers are PostgREST's now: remove them from DIFFERENCES."


def tenant_ids(api: DataApi) -> dict[str, str]:
    return {row["slug"]: row["id"] for row in api.ask("GET", "/organizations?select=slug,id", "ada").json()}


def with_values(request: Json, ids: dict[str, str]) -> Json:
    """The request with ids and long texts in place of what stands for them."""
    many = ",".join(str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))) for number in range(300))
    text = json.dumps(request).replace("{300 ids}", many)
    for name, tenant_id in ids.items():
        text = text.replace(f"{{{name}}}", tenant_id)
    prepared: Json = json.loads(text, object_hook=_expand)
    return prepared


def _expand(value: Json) -> Json | str:
    if value.keys() != {"repeat"}:
        return value
    text, times = value["repeat"]
    return str(text * times)


def answer_of(response: httpx.Response, expected: Json) -> Json:
    """The answer in the file's form."""
    headers = {name: without_chance(response.headers[name]) for name in HEADERS if name in response.headers}
    return {"status": response.status_code, "headers": headers, "body": body_of(response, expected["body"])}


def body_of(response: httpx.Response, expected: Any) -> Any:
    kind = response.headers.get("content-type", "")
    if "openapi" in kind:
        return "(the OpenAPI document)"
    if "json" not in kind or not response.text:
        return response.text
    body = json.loads(without_chance(response.text))
    is_cut = isinstance(body, list) and isinstance(expected, list) and expected[-1:] == ["…"]
    return [*body[: len(expected) - 1], "…"] if is_cut else body


def without_chance(text: str) -> str:
    """The text with U0, U1 … in place of ids and T in place of moments."""
    ids: dict[str, str] = {}
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda m: ids.setdefault(m[0], f"U{len(ids)}"), text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-])\d\d:\d\d", r"T\2", text)
