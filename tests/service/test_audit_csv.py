"""`GET /api/v1/organizations/{id}/audit.csv`: permissions, content, and that a partial file never looks complete."""

from __future__ import annotations

import csv
import io
import json
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st

from service.audit_csv import BYTE_ORDER_MARK, COLUMNS, PAGE, SEPARATORS, as_csv
from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.outside import HANG_UP, Answer, Issuer, Outside, rest_answer
from tests.service.test_gunicorn import start_gunicorn

UNKNOWN_ORGANIZATION_URL = "/api/v1/organizations/00000000-0000-4000-8000-000000000000/audit.csv"


def as_caller(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def rows(text: str) -> list[dict[str, str]]:
    assert text.startswith(BYTE_ORDER_MARK)
    return list(csv.DictReader(io.StringIO(text[1:], newline="")))


# --- on the running stack ---


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


@pytest.fixture
def acme(database: psycopg.Connection[Any]) -> str:
    found = database.execute("select id::text from public.organizations where clerk_org_id = 'org_acme'").fetchone()
    assert found
    return str(found[0])


@pytest.fixture
def url(acme: str) -> str:
    return f"/api/v1/organizations/{acme}/audit.csv"


@pytest.mark.parametrize("person", ["user_ada", "user_ben"])
def test_owners_and_admins_read_the_audit_trail(
    online: FlaskClient, stack: Stack, acme: str, url: str, person: str
) -> None:
    response = online.get(url, headers=as_caller(stack.token(person, "org_acme")))
    assert (response.status_code, response.content_type) == (200, "text/csv; charset=utf-8")
    assert response.headers["Content-Disposition"].startswith('attachment; filename="audit-')
    entries = rows(response.text)
    assert tuple(entries[0]) == COLUMNS
    assert {entry["organization_id"] for entry in entries} == {acme}
    assert {("Cleo Santos", "project.created", "Rocket skates"), ("clerk", "organization.created", None)} <= {
        (entry["actor"], entry["action"], json.loads(entry["metadata"]).get("title")) for entry in entries
    }
    moments = [(datetime.fromisoformat(entry["created_at"]), entry["id"]) for entry in entries]
    assert moments == sorted(moments, reverse=True)


@pytest.mark.parametrize(
    ("person", "tenant", "second_factor"),
    [
        ("user_cleo", "org_acme", True),
        ("user_dee", "org_acme", True),
        ("user_ada", "org_acme", False),
        ("user_eve", "org_globex", True),
    ],
)
def test_other_roles_cannot_read_the_audit_trail(
    online: FlaskClient, stack: Stack, url: str, person: str, tenant: str, second_factor: bool
) -> None:
    response = online.get(url, headers=as_caller(stack.token(person, tenant, second_factor=second_factor)))
    assert (response.status_code, response.json["type"]) == (403, "urn:problem:ballast:not-permitted")
    assert response.json["permission"] == "audit:read"


def test_another_tenant_and_a_missing_one_get_the_same_answer(online: FlaskClient, stack: Stack, url: str) -> None:
    headers = as_caller(stack.token("user_eve", "org_globex"))
    another, nowhere = (online.get(each, headers=headers).json for each in (url, UNKNOWN_ORGANIZATION_URL))
    assert another | {"request_id": ""} == nowhere | {"request_id": ""}


def test_spreadsheet_formulas_are_escaped(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any], acme: str, url: str
) -> None:
    formula, spaced, harmless = '=HYPERLINK("http://evil.example","Click")', " '=1+1", 'say "no", twice'
    for text in (formula, spaced, harmless):
        database.execute(
            "insert into public.audit_logs (organization_id, action, resource_type) values (%s, 'client.done', %s)",
            [acme, text],
        )
    database.execute("insert into public.projects (organization_id, title) values (%s, %s)", [acme, formula])
    database.execute("delete from public.projects where title = %s", [formula])
    response = online.get(url, headers=as_caller(stack.token("user_ada", "org_acme")))
    assert (
        response.text.count(f"{json.dumps({'title': formula})}".replace('"', '""')) == 2
    )  # JSON cells, which no spreadsheet runs
    kinds = {entry["resource_type"] for entry in rows(response.text)}
    assert {f"'{formula}", " ''=1+1", harmless} <= kinds
    assert not {formula, spaced} & kinds


def test_no_user_agent_begins_a_formula_with_another_separator(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any], acme: str, url: str
) -> None:
    database.execute(
        "insert into public.audit_logs (organization_id, action, resource_type, user_agent) values (%s, 'client.done', 'test', %s)",
        [acme, "Mozilla;=HYPERLINK(0)"],
    )
    response = online.get(url, headers=as_caller(stack.token("user_ada", "org_acme")))
    cells = [cell for row in csv.reader(io.StringIO(response.text, newline=""), delimiter=";") for cell in row]
    assert any(cell.startswith("'=HYPERLINK(0)") for cell in cells)
    assert not [cell for cell in cells if cell.startswith("=")]


def test_cells_are_separated_by_semicolons_on_request(online: FlaskClient, stack: Stack, url: str) -> None:
    headers = as_caller(stack.token("user_ada", "org_acme"))
    with_commas, with_semicolons = (
        online.get(f"{url}?to=2100-01-01T00:00:00Z&separator={each}", headers=headers).text.removeprefix(
            BYTE_ORDER_MARK
        )
        for each in ("comma", "semicolon")
    )
    semicolons = csv.reader(io.StringIO(with_semicolons, newline=""), delimiter=";")
    commas = csv.reader(io.StringIO(with_commas, newline=""))
    assert with_semicolons.startswith(";".join(COLUMNS))
    assert list(semicolons) == list(commas)


def test_a_range_includes_its_start_and_excludes_its_end(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any], acme: str, url: str
) -> None:
    database.execute(
        "insert into public.audit_logs (organization_id, action, resource_type, resource_id, created_at)"
        " select %s, 'client.done', 'test', n, '2021-05-01Z'::timestamptz + n * interval '1 hour' from generate_series(0, 4) as n",
        [acme],
    )
    asked = f"{url}?from={quote('2021-05-01T03:00:00+02:00')}&to=2021-05-01T03:00:00Z"
    response = online.get(asked, headers=as_caller(stack.token("user_ada", "org_acme")))
    assert [entry["resource_id"] for entry in rows(response.text)] == ["2", "1"]
    assert 'filename="audit-20210501T010000Z-20210501T030000Z.csv"' in response.headers["Content-Disposition"]


def test_2500_entries_with_equal_times_come_once_each_and_in_order(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any], acme: str, url: str
) -> None:
    database.execute(
        "insert into public.audit_logs (organization_id, action, resource_type, created_at)"
        " select %s, 'client.done', 'test', '2020-02-29Z'::timestamptz + n / 700 * interval '1 microsecond'"
        " from generate_series(1, 2500) as n",
        [acme],
    )
    asked = f"{url}?from=2020-01-01T00:00:00Z&to=2020-12-31T00:00:00Z"
    response = online.get(asked, headers=as_caller(stack.token("user_ada", "org_acme")))
    expected = database.execute(
        "select id::text from public.audit_logs where organization_id = %s and created_at between '2020-01-01Z' and '2020-12-31Z'"
        " order by created_at desc, id desc",
        [acme],
    ).fetchall()
    assert len(expected) >= 2500
    assert [entry["id"] for entry in rows(response.text)] == [each for (each,) in expected]


def test_no_member_can_make_the_file_unreadable_with_long_numbers(
    online: FlaskClient, stack: Stack, acme: str, url: str
) -> None:
    """A number of 5,001 digits takes six characters to write."""
    event = (
        f'{{"p_organization_id": "{acme}", "p_action": "client.x", "p_resource_type": "t", "p_metadata": {{"n": %s}}}}'
    )
    headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"], "Content-Type": "application/json"}
    for number in ("1e5000", "-" + "9" * 5000, "1e-5000"):
        logged = httpx.post(
            f"{stack.environment['SUPABASE_URL']}/rest/v1/rpc/log_audit_event", content=event % number,
            headers=headers | as_caller(stack.token("user_dee", "org_acme")),
        )  # fmt: skip
        assert logged.status_code == 200, logged.text
    response = online.get(url, headers=as_caller(stack.token("user_ada", "org_acme")))
    assert response.status_code == 200
    assert {f'{{"n": 1{"0" * 5000}}}', f'{{"n": -{"9" * 5000}}}'} <= {
        entry["metadata"] for entry in rows(response.text)
    }


@pytest.mark.thorough
def test_no_member_can_make_the_file_unreadable_with_large_entries(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any], acme: str, url: str
) -> None:
    """A change of a project's metadata is an entry of up to 128 kB. A page of a thousand would take too long."""
    database.execute(
        "insert into public.audit_logs (organization_id, action, resource_type, created_at, changes)"
        " select %s, 'client.large', 'test', '2021-02-28Z', jsonb_build_object('after', repeat(md5(n::text), 4000))"
        " from generate_series(1, 1200) as n",
        [acme],
    )
    asked = f"{url}?from=2021-01-01T00:00:00Z&to=2021-12-31T00:00:00Z"
    response = online.get(asked, headers=as_caller(stack.token("user_ada", "org_acme")))
    assert response.status_code == 200
    assert response.text.count("client.large") == 1200
    page = "select count(*) from public.audit_page(%s, '2021-02-28Z', '2021-02-28T00:00:01Z', gen_random_uuid(), 1000)"
    assert database.execute(page, [acme]).fetchone() == (16,)


@pytest.mark.parametrize("key", ["SUPABASE_PUBLISHABLE_KEY", "a person's token"])
def test_only_the_service_may_read_pages(stack: Stack, acme: str, key: str) -> None:
    headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"]}
    if key == "a person's token":
        headers |= as_caller(stack.token("user_ada", "org_acme"))
    page = {"organization_id": acme, "since": "-infinity", "before_time": "infinity", "before_id": acme, "page": 1}
    refused = httpx.post(f"{stack.environment['SUPABASE_URL']}/rest/v1/rpc/audit_page", json=page, headers=headers)
    assert (refused.is_success, refused.json()["code"]) == (False, "42501")


# --- on stand-ins ---


@pytest.fixture
def client(make_app: MakeApp, outside: Outside, issuer: Issuer) -> FlaskClient:
    return make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url).test_client()


def data_api(pages: int, last: Answer | None = HANG_UP) -> Callable[[str, Any, bytes], Answer | None]:
    """A stand-in for the database: permits every caller, returns `pages` full pages, then the last answer."""
    served = 0

    def answer(path: str, headers: Any, body: bytes) -> Answer | None:
        nonlocal served
        if path.endswith("start_session"):
            return rest_answer(SESSION)
        served += 1
        return rest_answer(FULL_PAGE) if served <= pages else last

    return answer


SESSION = {
    "profile": {"clerk_user_id": "user_test"},
    "second_factor": True,
    "organizations": [
        {"id": UNKNOWN_ORGANIZATION_URL.split("/")[4], "clerk_org_id": "org_test", "permissions": ["audit:read"]}
    ],
}
START = datetime(2026, 1, 1, tzinfo=UTC)
FULL_PAGE = [
    dict.fromkeys(COLUMNS) | {"id": str(n), "created_at": (START - timedelta(seconds=n)).isoformat()}
    for n in range(PAGE)
]


def test_without_a_token_the_database_is_not_called(client: FlaskClient, outside: Outside) -> None:
    assert client.get(UNKNOWN_ORGANIZATION_URL).status_code == 401
    assert outside.requests == []


@pytest.mark.parametrize(
    "query",
    [
        "from=yesterday", "from=", "to=2026-01-01", "to=2026-01-01T00:00:00", "from=2026-01-01T00:00:00+01:00",
        "from=2026-02-30T00:00:00Z", "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "from=9999-01-01T00:00:00Z",
        "to=0001-01-01T00:00:00Z", "from=0001-01-01T00:00:00%2B14:00", "from=%00",
    ],
)  # fmt: skip
def test_an_invalid_range_is_a_client_error(client: FlaskClient, outside: Outside, issuer: Issuer, query: str) -> None:
    outside.answer = data_api(1)
    response = client.get(f"{UNKNOWN_ORGANIZATION_URL}?{query}", headers=as_caller(issuer.token()))
    assert (response.status_code, response.json["type"]) == (400, "urn:problem:ballast:range-invalid")
    assert outside.requests == ["/rest/v1/rpc/start_session"]


@pytest.mark.parametrize("separator", ["", ";", ",", "tab", "SEMICOLON", "comma,semicolon"])
def test_any_other_separator_is_a_client_error(
    client: FlaskClient, outside: Outside, issuer: Issuer, separator: str
) -> None:
    outside.answer = data_api(1)
    url = f"{UNKNOWN_ORGANIZATION_URL}?separator={quote(separator)}"
    response = client.get(url, headers=as_caller(issuer.token()))
    assert (response.status_code, response.json["type"]) == (400, "urn:problem:ballast:separator-invalid")
    assert outside.requests == ["/rest/v1/rpc/start_session"]


# --- any content, opened with any separator ---

SPECIAL = ["=", "+", "-", "@", "＝", "＋", "－", "＠", ",", ";", "\t", "|", "\n", "\r", "\r\n", '"', "'", "`", " ", "\u3000", "\x0b", "\u2028", "x"]  # fmt: skip  # noqa: RUF001
TEXT = st.lists(st.sampled_from(SPECIAL) | st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).map(
    "".join
)
CELL = TEXT | st.none() | st.recursive(
    TEXT | st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)  # fmt: skip
FORMULA_START = re.compile(r"[\s\"'`]*?[=+\-@＝＋－＠]")  # noqa: RUF001
HARMLESS_START = re.compile(r"[\s\"`]*'")


def written(cells: list[Any], separator: str) -> str:
    entries = [dict.fromkeys(COLUMNS) | {"id": "e1", "user_agent": cell} for cell in cells]
    text = b"".join(as_csv(iter([entries]), SEPARATORS[separator])).decode()
    return text.removeprefix(BYTE_ORDER_MARK)


def begins_formula(cell: str) -> bool:
    return bool(FORMULA_START.match(cell)) and not HARMLESS_START.match(cell)


@given(cells=st.lists(CELL, min_size=1, max_size=3), separator=st.sampled_from(sorted(SEPARATORS)))
@example(cells=["x;=1+1"], separator="comma")
@example(cells=['x;"=1+1'], separator="comma")
@example(cells=["x\n=1", "x\t +1", "a|-1", ",@x", ';"";=1'], separator="semicolon")
def test_no_cell_begins_a_formula_whichever_separator_the_file_is_opened_with(cells: list[Any], separator: str) -> None:
    file = written(cells, separator)
    for opened_with in (",", ";", "\t", "|"):
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
            parsed = csv.reader(io.StringIO(file, newline=""), delimiter=opened_with, quoting=quoting)
            assert not [cell for row in parsed for cell in row if begins_formula(cell)], (opened_with, quoting)


@given(cell=CELL, separator=st.sampled_from(sorted(SEPARATORS)))
def test_the_exact_text_can_be_restored(cell: Any, separator: str) -> None:
    parsed = list(csv.DictReader(io.StringIO(written([cell], separator), newline=""), delimiter=SEPARATORS[separator]))
    text = "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    restored = re.sub(
        r"((?:^|[,;|\t\n\v\f\r\x85\u2028\u2029])[,;|\s\"'`]*)'([=+\-@＝＋－＠])",  # noqa: RUF001
        r"\1\2",
        parsed[0]["user_agent"],
    )
    assert restored == text


def test_a_hostile_cell_is_written_in_linear_time() -> None:
    started = time.process_time()
    written(["\t" * 200_000, ", " * 200_000, "'" * 200_000, ";=" * 100_000], "comma")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("pages", [0, -1])
def test_a_failure_before_the_first_page_is_an_ordinary_problem(
    client: FlaskClient, outside: Outside, issuer: Issuer, pages: int
) -> None:
    outside.answer = data_api(0) if pages == 0 else lambda *_: HANG_UP
    response = client.get(UNKNOWN_ORGANIZATION_URL, headers=as_caller(issuer.token()))
    assert (response.status_code, response.json["type"]) == (503, "urn:problem:ballast:database-unavailable")


def test_pages_are_read_one_at_a_time_in_constant_memory(
    client: FlaskClient, outside: Outside, issuer: Issuer, log_lines: Callable[[], list[dict[str, object]]]
) -> None:
    outside.answer = data_api(95, rest_answer([]))
    answer = client.get(UNKNOWN_ORGANIZATION_URL, headers=as_caller(issuer.token()) | {"X-Request-Id": "mine"})
    pieces = iter(answer.response)
    assert len(outside.requests) == 2  # the permission, the first page
    for _ in range(5):
        next(pieces)
    assert len(outside.requests) == 2 + 4
    tracemalloc.start()
    try:
        for _ in range(10):
            next(pieces)
        _, most_of_ten_pages = tracemalloc.get_traced_memory()
        for _ in pieces:
            pass
        _, most_of_all = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_of_all < 3 * most_of_ten_pages  # for nine times as many pages
    assert [(line["message"], line["request_id"]) for line in log_lines()] == [
        ("request", "mine"),
        ("audit export", "mine"),
    ]
    assert log_lines()[-1]["entries"] == 95 * PAGE


def test_a_database_failure_midway_leaves_an_incomplete_body(tmp_path: Path, issuer: Issuer) -> None:
    with start_gunicorn(tmp_path, CLERK_ISSUER=issuer.url) as service:
        service.database.answer = data_api(2)
        received: list[bytes] = []
        with httpx.stream("GET", service.url + UNKNOWN_ORGANIZATION_URL, headers=as_caller(issuer.token())) as response:
            assert response.status_code == 200
            assert response.headers["Transfer-Encoding"] == "chunked"
            assert response.headers["Cache-Control"] == "no-store"
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                received.extend(response.iter_bytes())
        assert b"".join(received).count(b"\r\n") == 1 + 2 * PAGE
        [broken] = [line for line in service.lines() if line["message"] == "audit export aborted"]
        assert (broken["level"], broken["entries"], broken["request_id"]) == (
            "error", 2 * PAGE, response.headers["X-Request-Id"],
        )  # fmt: skip
