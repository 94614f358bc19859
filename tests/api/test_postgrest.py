"""PostgREST's behaviour that the requests of test_contract.py do not cover, on tables and functions of this test."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from tests.api.data_api import DataApi, running_data_api
from tests.conftest import own_database
from tests.servers import TestRun

OBJECT = {"Accept": "application/vnd.pgrst.object+json"}
MEASURES = """
create table public.test_measures (id bigint primary key, amount numeric, notes json, title text, parts bigint[],
  status text not null default 'active');
create table public.test_readings (id int primary key, measure_id bigint references public.test_measures);
create function public.test_echo_numbers(big bigint, exact numeric, document jsonb, words text) returns jsonb stable
language sql as $$ select jsonb_build_object('big', big, 'exact', exact, 'document', document, 'words', words) $$;
create function public.test_add_measures(first bigint, last bigint) returns setof public.test_measures volatile
language sql as $$ insert into public.test_measures (id) select generate_series(first, last) returning * $$;
create function public.test_add_measure(id bigint) returns bigint volatile
language sql as $$ insert into public.test_measures (id) values (test_add_measure.id) returning 1::bigint $$;
create function public.test_fail_with(code text) returns void volatile
language plpgsql as $$ begin raise exception using errcode = code, message = 'on purpose'; end $$;
create function public.test_misspell() returns void volatile
language plpgsql as $$ begin perform nope from public.test_measures; end $$;
create function public.test_choose_status(status text) returns jsonb volatile
language plpgsql as $$ begin perform set_config('response.status', status, true); return '{"code": "mine"}'; end $$;
create function public.test_timezone() returns text stable language sql as $$ select current_setting('timezone') $$;
create table public.test_authors (id int primary key);
create table public.test_drafts (id int primary key, measure_id bigint references public.test_measures, author_id int references public.test_authors);
create table public.test_fans (id int primary key);
create table public.test_likes (measure_id bigint references public.test_measures, fan_id int references public.test_fans, primary key (measure_id, fan_id));
create table public.test_sizes (a int, b int, primary key (a, b));
create table public.test_boxes (id int primary key, a int, b int, constraint test_boxes_size foreign key (a, b) references public.test_sizes);
create schema hidden;
create table hidden.junction (box_id int references public.test_boxes, fan_id int references public.test_fans, primary key (box_id, fan_id));
grant all on all tables in schema public to authenticated;
grant execute on all functions in schema public to authenticated;
"""


@pytest.fixture(scope="module")
def data_api(request: pytest.FixtureRequest, test_run: TestRun) -> Iterator[DataApi]:
    server = test_run.postgres("server", request.config.getoption("--postgres"), is_migrated=True)
    with own_database(server) as database:
        with psycopg.connect(database.url()) as connection:
            connection.execute(MEASURES.encode())
        with running_data_api(database) as api:
            yield api


@pytest.fixture
def ids(data_api: DataApi) -> list[int]:
    """The ids of three new measures."""
    ids = [uuid.uuid4().int % 2**40 + number for number in range(3)]
    created = data_api.ask("POST", "/test_measures", json=[{"id": id_, "title": "new"} for id_ in ids])
    assert created.status_code == 201, created.text
    return ids


def titles(data_api: DataApi, ids: list[int]) -> set[str]:
    rows = data_api.ask("GET", f"/test_measures?{matching(ids)}&select=title").json()
    return {row["title"] for row in rows}


def matching(ids: list[int]) -> str:
    return f"id=in.({','.join(map(str, ids))})"


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_change_without_a_filter_is_refused(data_api: DataApi, ids: list[int], method: str) -> None:
    refused = data_api.ask(method, "/test_measures", json={"title": "all"})
    assert (refused.status_code, refused.json()["code"]) == (400, "21000")
    assert titles(data_api, ids) == {"new"}


def test_an_update_without_columns_needs_no_filter(data_api: DataApi) -> None:
    assert data_api.ask("PATCH", "/test_measures", json={}).status_code == 204


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("prefer", ["return=representation", "return=minimal"])
def test_a_change_of_several_rows_as_one_object_is_rolled_back(
    data_api: DataApi, ids: list[int], method: str, prefer: str
) -> None:
    headers = OBJECT | {"Prefer": prefer}
    refused = data_api.ask(method, f"/test_measures?{matching(ids)}", headers=headers, json={"title": "changed"})
    assert (refused.status_code, refused.json()["details"]) == (406, "The result contains 3 rows")
    assert titles(data_api, ids) == {"new"}


def test_a_change_of_one_row_as_one_object_is_committed(data_api: DataApi, ids: list[int]) -> None:
    headers = OBJECT | {"Prefer": "return=minimal"}
    answer = data_api.ask("PATCH", f"/test_measures?id=eq.{ids[0]}", headers=headers, json={"title": "changed"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (204, "return=minimal")
    assert titles(data_api, ids) == {"new", "changed"}


def test_a_change_of_more_rows_than_the_limit_is_rolled_back(data_api: DataApi, ids: list[int]) -> None:
    headers = {"Prefer": "handling=strict, max-affected=2"}
    refused = data_api.ask("PATCH", f"/test_measures?{matching(ids)}", headers=headers, json={"title": "changed"})
    assert (refused.status_code, refused.json()["code"]) == (400, "PGRST124")
    assert titles(data_api, ids) == {"new"}


def test_a_function_that_affects_more_rows_than_the_limit_is_rolled_back(data_api: DataApi) -> None:
    headers = {"Prefer": "handling=strict, max-affected=2"}
    first = uuid.uuid4().int % 2**40
    rows = {"first": first, "last": first + 2}
    refused = data_api.ask("POST", "/rpc/test_add_measures", headers=headers, json=rows)
    assert (refused.status_code, refused.json()["code"]) == (400, "PGRST124")
    assert refused.json()["details"] == "The query affects 3 rows"
    assert titles(data_api, [first]) == set()
    assert data_api.ask("POST", "/rpc/test_add_measures", headers=headers, json=rows | {"last": first + 1}).is_success


def test_a_limit_needs_a_function_that_returns_rows(data_api: DataApi) -> None:
    headers = {"Prefer": "handling=strict, max-affected=2"}
    number = uuid.uuid4().int % 2**40
    refused = data_api.ask("POST", "/rpc/test_add_measure", headers=headers, json={"id": number})
    assert (refused.status_code, refused.json()["code"]) == (400, "PGRST128")
    assert titles(data_api, [number]) == set()


@pytest.mark.parametrize(
    ("code", "status"),
    [("54001", 500), ("53100", 503), ("40P01", 500), ("21000", 500), ("22023", 400), ("PT418", 418), ("P0001", 400)],
)
def test_the_status_follows_the_sqlstate(data_api: DataApi, code: str, status: int) -> None:
    answer = data_api.ask("POST", "/rpc/test_fail_with", json={"code": code})
    assert (answer.status_code, answer.headers["proxy-status"]) == (status, f"PostgREST; error={code}")


@pytest.mark.parametrize("kind", ["text", "xml", "bytea"])
def test_a_body_that_is_not_json_needs_a_function_with_such_a_parameter(data_api: DataApi, kind: str) -> None:
    types = {"text": "text/plain", "xml": "text/xml", "bytea": "application/octet-stream"}
    refused = data_api.ask("POST", "/rpc/test_timezone", headers={"Content-Type": types[kind]})
    assert (refused.status_code, refused.json()["code"]) == (404, "PGRST202")
    assert f"a single unnamed {kind} parameter" in refused.json()["details"]


NUMBERS = '"id": 9223372036854775807, "amount": 12345678901234567890.10, "parts": [9223372036854775806]'
DOCUMENT = '{"big": 12345678901234567890, "one": 1.10, "text": "1.10", "tiny": 1e-300}'


def test_numbers_keep_their_digits_in_tables(data_api: DataApi) -> None:
    headers = {"Prefer": "return=representation"}
    created = data_api.ask("POST", "/test_measures", headers=headers, text=f'{{{NUMBERS}, "notes": {DOCUMENT}}}')
    for answer in (created, data_api.ask("GET", "/test_measures?id=eq.9223372036854775807")):
        assert f'"amount":12345678901234567890.10,"notes":{DOCUMENT}'.replace(" ", "") in answer.text.replace(" ", "")
        assert '"parts":[9223372036854775806]' in answer.text
    as_text = data_api.ask(
        "GET", "/test_measures?id=eq.9223372036854775807&select=id,amount", headers={"Accept": "text/csv"}
    )
    assert as_text.text == "id,amount\n9223372036854775807,12345678901234567890.10"
    changed = data_api.ask(
        "PATCH", "/test_measures?amount=eq.12345678901234567890.1", headers=headers, json={"amount": "0.10"}
    )
    assert '"amount":0.10' in changed.text
    data_api.ask("POST", "/test_readings", json={"id": 1, "measure_id": 9223372036854775807})
    embedded = data_api.ask("GET", "/test_readings?select=measure_id,test_measures(id,amount)")
    assert '"test_measures":{"id":9223372036854775807,"amount":0.10}' in embedded.text.replace(" ", "").replace(
        ", ", ","
    )
    assert data_api.ask("DELETE", "/test_readings?id=eq.1").is_success
    assert data_api.ask("DELETE", "/test_measures?id=eq.9223372036854775807").is_success


def test_numbers_keep_their_digits_in_functions(data_api: DataApi) -> None:
    given = f'{{"big": 9223372036854775807, "exact": 1.10, "document": {DOCUMENT}, "words": "2.50"}}'
    answer = data_api.ask("POST", "/rpc/test_echo_numbers", text=given)
    assert '"big":9223372036854775807' in answer.text.replace(" ", "")
    assert '"exact":1.10' in answer.text.replace(" ", "")
    assert '"one":1.10' in answer.text.replace(" ", "")
    assert '"words":"2.50"' in answer.text.replace(" ", "")


@pytest.mark.parametrize(
    "value", ['"{\\"a\\": 1}"', '"text"', '"1"', "5", "12345678901234567890", "[1]", "{}", "true", "null"]
)
def test_json_columns_and_arguments_are_stored_unchanged(data_api: DataApi, ids: list[int], value: str) -> None:
    headers = {"Prefer": "return=representation"}
    row = data_api.ask(
        "PATCH", f"/test_measures?id=eq.{ids[0]}&select=notes", headers=headers, text=f'{{"notes": {value}}}'
    )
    assert row.text == f'[{{"notes":{value}}}]'
    answer = data_api.ask(
        "POST", "/rpc/test_echo_numbers", text=f'{{"big": 1, "exact": 1, "document": {value}, "words": ""}}'
    )
    assert f'"document":{value}'.replace(" ", "") in answer.text.replace(" ", "")


@pytest.mark.parametrize("text", ["true", "12", "12.50", '{"a":1}', "as is", "*", "\\\\u0041", "null"])
def test_texts_are_stored_unchanged(data_api: DataApi, ids: list[int], text: str) -> None:
    headers = {"Prefer": "return=representation"}
    row = data_api.ask("PATCH", f"/test_measures?id=eq.{ids[0]}&select=title", headers=headers, json={"title": text})
    assert row.json() == [{"title": text}]


@pytest.mark.parametrize(
    ("path", "is_related"),
    [
        ("test_measures?select=id,test_drafts(id,test_authors(id))", True),
        ("test_measures?select=id,test_authors(id)", False),  # drafts has a key of its own
        ("test_measures?select=id,test_fans(id)", True),
        ("test_boxes?select=id,test_fans(id)", False),  # the junction is in another schema
        ("test_boxes?select=id,test_sizes(a)", True),
        ("test_boxes?select=id,test_sizes!test_boxes_size(a)", True),
        ("test_boxes?select=id,test_sizes!a(b)", False),
        ("test_sizes?select=a,test_boxes(id,test_sizes!a(b))", False),
    ],
)
def test_tables_are_embedded_by_their_foreign_keys(data_api: DataApi, path: str, is_related: bool) -> None:
    answer = data_api.ask("GET", f"/{path}")
    code = None if answer.is_success else answer.json()["code"]
    assert (answer.status_code, code) == ((200, None) if is_related else (400, "PGRST200"))


@pytest.mark.parametrize("text", ["null", "true", "false", '"quoted"', '"'])
def test_texts_in_filters_are_compared_unchanged(data_api: DataApi, ids: list[int], text: str) -> None:
    assert data_api.ask("PATCH", f"/test_measures?id=eq.{ids[0]}", json={"title": text}).is_success
    for condition, found in (("eq", {text}), ("neq", {"new"}), ("not.eq", {"new"})):
        answer = data_api.ask("GET", f"/test_measures?{matching(ids)}&select=title&title={condition}.{text}")
        assert {row["title"] for row in answer.json()} == found, condition


def test_null_is_no_value_of_a_number(data_api: DataApi) -> None:
    refused = data_api.ask("GET", "/test_measures?id=eq.null")
    assert (refused.status_code, refused.json()["code"]) == (400, "22P02")


def test_a_missing_column_is_null_unless_the_default_is_preferred(data_api: DataApi, ids: list[int]) -> None:
    rows = [{"id": ids[0] + 10}, {"id": ids[0] + 11, "status": "archived"}]
    path = "/test_measures?columns=id,status&select=status"
    refused = data_api.ask("POST", path, json=rows)
    assert (refused.status_code, refused.json()["code"]) == (400, "23502")
    created = data_api.ask("POST", path, headers={"Prefer": "return=representation, missing=default"}, json=rows)
    assert created.json() == [{"status": "active"}, {"status": "archived"}]


def test_put_replaces_a_row(data_api: DataApi, ids: list[int]) -> None:
    headers = {"Prefer": "return=representation"}
    row = {"id": ids[0], "amount": None, "notes": {"a": "1"}, "title": "12", "parts": None, "status": "new"}
    changed = data_api.ask("PUT", f"/test_measures?id=eq.{ids[0]}", headers=headers, json=row)
    assert (changed.status_code, changed.json()) == (200, [row])


def test_one_object_has_a_content_location(data_api: DataApi, ids: list[int]) -> None:
    answer = data_api.ask("GET", f"/test_measures?id=eq.{ids[0]}", headers=OBJECT)
    assert answer.headers["content-location"] == f"/test_measures?id=eq.{ids[0]}"


def test_applied_preferences_are_listed_in_the_answer(data_api: DataApi, ids: list[int]) -> None:
    headers = {"Prefer": "timezone=Europe/Berlin, handling=strict, max-affected=1, count=exact, return=minimal"}
    answer = data_api.ask("PATCH", f"/test_measures?id=eq.{ids[0]}", headers=headers, json={"title": "named"})
    assert answer.headers["preference-applied"] == (
        "return=minimal, count=exact, handling=strict, timezone=Europe/Berlin, max-affected=1"
    )


def test_an_error_inside_a_function_keeps_its_message(data_api: DataApi) -> None:
    assert data_api.ask("POST", "/rpc/test_misspell").json()["message"] == 'column "nope" does not exist'
    assert data_api.ask("PATCH", "/test_measures?nope=eq.1", json={"title": "x"}).json()["message"] == (
        "column test_measures.nope does not exist"
    )


def test_a_function_may_set_the_status(data_api: DataApi) -> None:
    answer = data_api.ask("POST", "/rpc/test_choose_status", json={"status": 422})
    assert (answer.status_code, answer.json()) == (422, {"code": "mine"})
    assert "proxy-status" not in answer.headers


def test_like_any_accepts_a_star(data_api: DataApi, ids: list[int]) -> None:
    found = data_api.ask("GET", f"/test_measures?{matching(ids)}&title=like(any).{{*e*,x}}&select=title")
    assert len(found.json()) == 3
    nested = data_api.ask(
        "GET", f"/test_measures?{matching(ids)}&or=(title.ilike(all).{{N*,*W}},title.is.null)&select=title"
    )
    assert len(nested.json()) == 3


def test_long_numbers_keep_their_digits_in_urls(data_api: DataApi) -> None:
    exact = [9223372036854775805, 9223372036854775806]
    assert data_api.ask("POST", "/test_measures", text=json.dumps([{"id": number} for number in exact])).is_success
    assert f'[{{"id":{exact[0]}}}]' == data_api.ask("GET", f"/test_measures?id=in.({exact[0]},1)&select=id").text
    assert (
        f'[{{"id":{exact[1]}}}]' == data_api.ask("GET", f"/test_measures?or=(id.eq.{exact[1]},id.eq.1)&select=id").text
    )
    answer = data_api.ask(
        "GET", f'/rpc/test_echo_numbers?big={exact[0]}&exact=-1.10&words=5&document={{"a":{exact[1]}}}'
    )
    assert f'"a":{exact[1]}' in answer.text.replace(" ", "")
    assert f'"big":{exact[0]}' in answer.text.replace(" ", "")
    assert data_api.ask("DELETE", f"/test_measures?id=gte.{exact[0]}").is_success


@pytest.mark.parametrize(
    ("alternatives", "found"),
    [
        ("test_readings.is.null,title.eq.none", {"new"}),
        ("test_readings.not.is.null,title.eq.none", {"read"}),
        ("title.eq.none,and(test_readings.is.null,title.eq.new)", {"new"}),
        ("title.eq.read,and(test_readings.is.null,title.eq.none)", {"read"}),
    ],
)
def test_a_null_check_of_an_embedded_table_can_be_an_alternative(
    data_api: DataApi, ids: list[int], alternatives: str, found: set[str]
) -> None:
    assert data_api.ask("PATCH", f"/test_measures?id=eq.{ids[0]}", json={"title": "read"}).is_success
    assert data_api.ask("POST", "/test_readings", json={"id": ids[0] % 2**31, "measure_id": ids[0]}).is_success
    rows = data_api.ask(
        "GET", f"/test_measures?{matching(ids)}&select=title,test_readings(id)&or=({alternatives})"
    ).json()
    assert {row["title"] for row in rows} == found
    readings = data_api.ask(
        "GET",
        f"/test_readings?measure_id=eq.{ids[0]}&select=test_measures(title)&or=(test_measures.not.is.null,id.eq.0)",
    )
    assert readings.json() == [{"test_measures": {"title": "read"}}]


def test_head_on_a_function_accepts_arguments(data_api: DataApi) -> None:
    answer = data_api.ask("HEAD", "/rpc/test_echo_numbers?big=1&exact=1&document={}&words=x")
    assert (answer.status_code, answer.text) == (200, "")


def test_the_preferred_time_zone_is_applied(data_api: DataApi) -> None:
    assert data_api.ask("GET", "/rpc/test_timezone").json() == "UTC"
    answer = data_api.ask("GET", "/rpc/test_timezone", headers={"Prefer": "timezone=America/New_York"})
    assert (answer.json(), answer.headers["preference-applied"]) == ("America/New_York", "timezone=America/New_York")


@pytest.mark.parametrize("text", ['{"title": "\\ud800"}', b'{"title": "\xff"}', '{"title": '])
def test_a_body_that_is_not_utf8_json_is_refused(data_api: DataApi, ids: list[int], text: str | bytes) -> None:
    refused = data_api.ask("PATCH", f"/test_measures?{matching(ids)}", text=text)
    assert (refused.status_code, refused.json()["code"]) == (400, "PGRST102")
    assert titles(data_api, ids) == {"new"}
