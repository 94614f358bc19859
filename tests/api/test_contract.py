"""The Data API answers like PostgREST: postgrest_answers.json has requests, and the answers of a real PostgREST.

PostgREST 14.17 gave the answers in this order, on the seeded database; later requests see the rows of earlier ones. Adapt an
answer when the schema changes. That server did not load the extension safeupdate, which hosted projects have: the two answers
`requires a WHERE clause` are from its source.

In the file, `as` is the caller (see tests/api/data_api.py). {acme} and {globex} are the ids of the two tenants. U0, U1 …
replace ids in the order of their appearance in an answer, and T replaces a time before its zone. … ends a shortened list.
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
import psycopg
import pytest

from tests.api.data_api import DataApi, Json, running_data_api
from tests.conftest import own_database
from tests.servers import TestRun
from tests.tenant_tables import DECLARED, TABLES

REQUESTS: list[Json] = json.loads(Path(__file__).with_name("postgrest_answers.json").read_text())
HEADERS = (
    "content-type", "content-range", "content-location", "content-profile", "preference-applied", "proxy-status",
    "location", "allow", "www-authenticate",
)  # fmt: skip

SYNTAX = "The details of a syntax error differ; status, code and message are the same."
OPENAPI = "Lite does not describe the tables. Types come from `supabase gen types`, which reads the database."
# The answers of the local stack that differ, and why no client depends on them.
DIFFERENCES = {
    "GET projects?order=title.nope": SYNTAX,
    "GET projects?title=badop.x": SYNTAX,
    "GET projects?or=()": SYNTAX,
    "GET projects?select=title,organizations!inner(name,nope)&limit=1":
        "The message names the column with the wrong table. Status and code are the same.",
    "GET projects?select=title&title=eq.%00":
        "Postgres refuses a NUL in a filter with 400; PostgREST truncates the text there. Texts in Postgres have no NUL.",
    "W PUT": "Both refuse a PUT without the key in its body with 400, but with different codes.",
    "geojson": "Both refuse it, because there is no PostGIS.",
    "openapi root": OPENAPI,
    "openapi root anon": OPENAPI,
}  # fmt: skip

# The answers list permissions. PostgREST gave them without those that a product adds, and without its roles.
OF_A_PRODUCT = [
    (role, permission)
    for permission, roles in DECLARED
    for role in roles
    if role not in TABLES["projects"].permissions.get(permission, [])
]


@pytest.fixture(scope="module")
def data_api(request: pytest.FixtureRequest, test_run: TestRun) -> Iterator[DataApi]:
    """The PostgREST of --data-api-url, or the local stack's Data API."""
    if address := request.config.getoption("--data-api-url"):
        yield DataApi(address.rstrip("/"), os.environ["JWT_SECRET"])
        return
    server = test_run.postgres("server", request.config.getoption("--postgres"), is_migrated=True)
    with own_database(server) as database:
        with psycopg.connect(database.url()) as connection:
            connection.cursor().executemany(
                "delete from public.role_permissions where (role, permission) = (%s, %s)", OF_A_PRODUCT
            )
        with running_data_api(database) as api:
            yield api


def test_every_answer_is_the_same_as_postgrests(data_api: DataApi, request: pytest.FixtureRequest) -> None:
    known = {} if request.config.getoption("--data-api-url") else DIFFERENCES
    ids = tenant_ids(data_api)
    found: dict[str, str] = {}
    for each in REQUESTS:
        sent = fill_in(each, ids)
        body = {kind: sent[kind] for kind in ("headers", "json", "text") if kind in sent}
        answer = answer_of(data_api.ask(sent["method"], sent["path"], sent["as"], **body), each["answer"])
        if answer != each["answer"]:
            found[each["name"]] = f"PostgREST {json.dumps(each['answer'])}\n  here      {json.dumps(answer)}"
    new = [f"{name}:\n  {answers}" for name, answers in found.items() if name not in known]
    assert not new, f"{len(new)} answers differ from PostgREST's:\n" + "\n".join(new)
    assert not known.keys() - found.keys(), "These answers no longer differ: remove them from DIFFERENCES."


def tenant_ids(api: DataApi) -> dict[str, str]:
    return {row["slug"]: row["id"] for row in api.ask("GET", "/organizations?select=slug,id", "ada").json()}


def fill_in(request: Json, ids: dict[str, str]) -> Json:
    """Replaces the placeholders of ids and long texts in a request."""
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
    """The answer in the format of the file."""
    headers = {name: mask_random_values(response.headers[name]) for name in HEADERS if name in response.headers}
    return {"status": response.status_code, "headers": headers, "body": body_of(response, expected["body"])}


def body_of(response: httpx.Response, expected: Any) -> Any:
    kind = response.headers.get("content-type", "")
    if "openapi" in kind:
        return "(the OpenAPI document)"
    if "json" not in kind or not response.text:
        return response.text
    body = json.loads(mask_random_values(response.text))
    is_cut = isinstance(body, list) and isinstance(expected, list) and expected[-1:] == ["…"]
    return [*body[: len(expected) - 1], "…"] if is_cut else body


def mask_random_values(text: str) -> str:
    """Replaces ids by U0, U1 …, and times by T."""
    ids: dict[str, str] = {}
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda m: ids.setdefault(m[0], f"U{len(ids)}"), text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-])\d\d:\d\d", r"T\2", text)
