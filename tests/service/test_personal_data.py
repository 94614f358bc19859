"""`/api/v1/gdpr`: permissions, that a partial export never looks complete, and that erasures survive crashes."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from flask.testing import FlaskClient

from service import erasure
from service.data_api import CallFailed
from service.erasure import MAX_PAUSES, Eraser
from service.routes.personal_data import CONFIRMATION, FIRST_FACTOR_MINUTES
from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.outside import HANG_UP, Issuer, Outside, rest_answer
from tests.service.test_gunicorn import start_gunicorn

EXPORT, ERASURE = "/api/v1/gdpr/export", "/api/v1/gdpr/erasure"
CONFIRMED_BODY = {"confirmation": CONFIRMATION}
Connection = psycopg.Connection[Any]
NewPerson = Callable[..., str]


def as_caller(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} | headers


@pytest.fixture
def database(stack: Stack) -> Iterator[Connection]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


@pytest.fixture
def new_person(stack: Stack) -> NewPerson:
    """Signs up a person at Clerk, as a member of an organization with some projects, and returns the Clerk id."""

    def sign_up(projects: int = 3) -> str:
        user_id = f"user_{secrets.token_hex(8)}"
        membership = {"organization": {"id": "org_rights"}, "public_user_data": {"user_id": user_id}}
        for kind, data in [("user.created", {"id": user_id}), ("organizationMembership.created", membership)]:
            sent = stack.ballast("clerk", "send", kind, "--data", json.dumps(data))
            assert sent.returncode == 0, sent.stderr
        with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(
                "insert into public.projects (organization_id, created_by, title) select o.id, p.id, 'Hers ' || n "
                "from public.organizations as o, public.profiles as p, generate_series(1, %s) as n "
                "where o.clerk_org_id = 'org_rights' and p.clerk_user_id = %s",
                [projects, user_id],
            )
        return user_id

    return sign_up


def mentions(database: Connection, *texts: str) -> dict[str, int]:
    """How many rows of each table contain one of the texts."""
    tables = database.execute(
        "select c.oid::regclass::text from pg_class as c where c.relkind in ('r', 'p') and not c.relispartition "
        "and c.relnamespace = any('{public,app}'::regnamespace[])"
    ).fetchall()
    query = "select count(*) from {} as t where exists (select from unnest(%s::text[]) as x where position(x in t::text) > 0)"
    counts = {
        table: database.execute(query.format(table).encode(), [list(texts)]).fetchall()[0][0] for (table,) in tables
    }
    return {table: count for table, count in counts.items() if count}


def wait_until_complete(client: FlaskClient, receipt: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        shown: dict[str, Any] = client.get(f"{ERASURE}/{receipt}").json
        if shown["state"] == "complete":
            return shown
        time.sleep(0.05)
    raise AssertionError(shown)


def wait_for_webhook(database: Connection, receipt: str) -> None:
    """Waits until Clerk's own event about the deletion has arrived."""
    query = """
        select from app.webhook_events as e, app.erasure_log as l
        where e.type = 'user.deleted' and e.received_at >= l.erased_at and l.receipt = %s
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not database.execute(query, [receipt]).rowcount:
        time.sleep(0.1)


# --- export, on the running stack


def test_a_person_gets_all_their_data(online: FlaskClient, stack: Stack, new_person: NewPerson) -> None:
    person = new_person()
    response = online.get(EXPORT, headers=as_caller(stack.token(person)))
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.headers["Content-Disposition"].startswith('attachment; filename="user-data-')
    document = response.json
    assert list(document)[:3] == ["schema_version", "generated_at", "profile"]
    assert [row["clerk_user_id"] for row in document["profile"]] == [person]
    assert sorted(row["title"] for row in document["projects"]) == ["Hers 1", "Hers 2", "Hers 3"]
    assert [row["organization"] for row in document["memberships"]] == ["Rights"]
    assert {row["action"] for row in document["activity_about_you"]} >= {
        "profile.created",
        "member.joined",
        "project.created",
    }
    assert "personal_data.exported" in {row["action"] for row in document["activity"]}


def test_a_zip_contains_a_file_per_kind_a_manifest_and_a_readme(
    online: FlaskClient, stack: Stack, new_person: NewPerson
) -> None:
    person = new_person()
    response = online.get(EXPORT, headers=as_caller(stack.token(person), Accept="application/zip"))
    assert (response.status_code, response.content_type) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(response.data)) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        assert set(archive.namelist()) == {*manifest["files"], "manifest.json", "README.txt"}
        for name, calls in manifest["files"].items():
            content = archive.read(name)
            assert (len(json.loads(content)), hashlib.sha256(content).hexdigest()) == (
                calls["records"],
                calls["sha256"],
            )
        assert manifest["files"]["projects.json"]["records"] == 3
        readme = archive.read("README.txt").decode()
    assert "projects.json" in readme
    assert manifest["generated_at"] in readme


def test_an_export_is_recorded_with_the_address_and_the_browser_of_the_person(
    make_app: MakeApp, stack: Stack, database: Connection, new_person: NewPerson
) -> None:
    """A stolen session can be recognized by them."""
    person = new_person()
    client = make_app(**(stack.environment | {"ENVIRONMENT": "test", "TRUSTED_PROXIES": "0"})).test_client()
    browser = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    headers = as_caller(stack.token(person), **{"User-Agent": browser, "X-Forwarded-For": "127.9.9.9"})
    assert client.get(EXPORT, headers=headers, environ_overrides={"REMOTE_ADDR": "203.0.113.77"}).status_code == 200
    recorded = database.execute(
        "select host(a.ip_address), a.user_agent from public.audit_logs as a join public.profiles as p on p.id = a.user_id"
        " where a.action = 'personal_data.exported' and p.clerk_user_id = %s", [person],
    ).fetchall()  # fmt: skip
    assert recorded == [("203.0.113.77", browser)]


def test_only_one_export_per_hour_is_allowed(online: FlaskClient, stack: Stack, new_person: NewPerson) -> None:
    token = stack.token(new_person())
    assert online.get(EXPORT, headers=as_caller(token)).json["profile"]
    refused = online.get(EXPORT, headers=as_caller(token))
    assert (refused.status_code, refused.json["type"]) == (429, "urn:problem:ballast:export-too-soon")
    assert 3500 < int(refused.headers["Retry-After"]) <= 3600


def test_an_aborted_download_can_be_repeated_at_once(online: FlaskClient, stack: Stack, new_person: NewPerson) -> None:
    token = stack.token(new_person())
    broken_off = online.get(EXPORT, headers=as_caller(token), buffered=False)
    next(iter(broken_off.response))
    broken_off.close()
    assert online.get(EXPORT, headers=as_caller(token)).status_code == 200


def test_there_is_no_data_about_a_stranger(make_app: MakeApp, stack: Stack, issuer: Issuer) -> None:
    client = make_app(
        **(stack.environment | {"CLERK_ISSUER": issuer.url, "CLERK_AUTHORIZED_PARTIES": ""})
    ).test_client()
    for response in (
        client.get(EXPORT, headers=as_caller(issuer.token(sub="user_unknown"))),
        client.post(ERASURE, headers=as_caller(issuer.token(sub="user_unknown", fva=[0, -1])), json=CONFIRMED_BODY),
    ):
        assert (response.status_code, response.json["type"]) == (404, "urn:problem:ballast:nothing-held")


# --- permission


@pytest.fixture
def refusing(make_app: MakeApp, outside: Outside, issuer: Issuer) -> Callable[..., Any]:
    """Sends requests with claims to a service whose database would permit everything."""
    outside.answer = lambda *_: pytest.fail("the database was asked")
    client = make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url).test_client()

    def ask(method: str, path: str, body: object = None, **claims: object) -> Any:
        return client.open(path, method=method, headers=as_caller(issuer.token(**claims)), json=body)

    return ask


@pytest.mark.parametrize("fva", [[FIRST_FACTOR_MINUTES + 1, 0], [-1, -1], None, "0", [0]])
def test_a_stale_first_factor_is_refused_in_clerks_reverification_format(refusing: Any, fva: object) -> None:
    response = refusing("POST", ERASURE, CONFIRMED_BODY, fva=fva)
    assert (response.status_code, response.json["type"]) == (403, "urn:problem:ballast:reverification-required")
    assert response.json["clerk_error"] == {
        "type": "forbidden", "reason": "reverification-error",
        "metadata": {"reverification": {"level": "first_factor", "afterMinutes": FIRST_FACTOR_MINUTES}},
    }  # fmt: skip


@pytest.mark.parametrize("body", [None, {}, [], "erase my account", {"confirmation": True}, {"confirmation": "yes"}])
def test_without_the_confirmation_nothing_is_erased(refusing: Any, body: object) -> None:
    response = refusing("POST", ERASURE, body, fva=[FIRST_FACTOR_MINUTES, -1])
    assert (response.status_code, response.json["type"]) == (400, "urn:problem:ballast:confirmation-missing")
    assert CONFIRMATION in response.json["detail"]


@pytest.mark.parametrize(("method", "path"), [("GET", EXPORT), ("POST", ERASURE)])
def test_an_impersonator_can_neither_export_nor_erase(refusing: Any, method: str, path: str) -> None:
    response = refusing(method, path, CONFIRMED_BODY, act={"sub": "user_support"}, fva=[0, 0])
    assert (response.status_code, response.json["type"]) == (403, "urn:problem:ballast:impersonated")


@pytest.mark.parametrize(("method", "path"), [("GET", EXPORT), ("POST", ERASURE)])
def test_without_a_token_every_route_is_refused(offline: FlaskClient, method: str, path: str) -> None:
    assert offline.open(path, method=method, json=CONFIRMED_BODY).status_code == 401


def test_an_unknown_receipt_reveals_nothing(online: FlaskClient) -> None:
    assert (
        online.get(f"{ERASURE}/00000000-0000-4000-8000-000000000000").json["type"]
        == "urn:problem:ballast:receipt-unknown"
    )
    assert online.get(f"{ERASURE}/not-a-receipt").status_code == 404


def test_a_head_request_makes_no_export(refusing: Any) -> None:
    assert refusing("HEAD", EXPORT).status_code == 405


def test_an_erasure_that_waits_for_transactions_is_left_to_the_next_run() -> None:
    steps: list[str] = []

    def call(function: str, _arguments: dict[str, Any]) -> Any:
        steps.append(function)
        return {"state": "running"}

    waiting: Any = None  # neither Clerk nor the ledger is called
    assert Eraser(call, waiting, None).carry_out("00000000-0000-4000-8000-000000000000") == "running"
    assert steps == ["continue_erasure"] * (MAX_PAUSES + 1)


def test_a_failed_step_is_reported_and_the_erasure_goes_on() -> None:
    calls: list[tuple[str, Any]] = []

    def call(function: str, arguments: dict[str, Any]) -> Any:
        calls.append((function, arguments.get("error")))
        if calls[-1][0] == "continue_erasure" and len(calls) < 4:
            raise CallFailed(function, "57014")
        return {"state": "complete"}

    unused: Any = None
    assert Eraser(call, unused, None).carry_out("00000000-0000-4000-8000-000000000000") == "complete"
    failed = [("continue_erasure", None), ("postpone_erasure", "CallFailed: 57014")]
    assert calls == [*failed, *failed, ("continue_erasure", None)]


# --- erasure, on the running stack


def test_a_person_is_erased_here_and_at_clerk(
    online: FlaskClient, stack: Stack, database: Connection, new_person: NewPerson
) -> None:
    person = new_person()
    [[profile_id]] = database.execute(
        "select id::text from public.profiles where clerk_user_id = %s", [person]
    ).fetchall()
    assert len(mentions(database, person, profile_id)) >= 6
    response = online.post(ERASURE, headers=as_caller(stack.token(person)), json=CONFIRMED_BODY)
    assert response.status_code == 202
    receipt = response.json["receipt"]
    assert response.headers["Location"] == f"{ERASURE}/{receipt}"
    shown = wait_until_complete(online, receipt)
    assert shown["counts"]["public.projects"] == 3
    asked = httpx.get(
        f"{stack.environment['CLERK_API_URL']}/v1/users/{person}", headers={"Authorization": f"Bearer {stack.environment['CLERK_SECRET_KEY']}"}
    )  # fmt: skip
    assert asked.status_code == 404
    wait_for_webhook(database, receipt)
    assert mentions(database, person, profile_id) == {}
    entry = json.loads((stack.home / "backups/erasures" / f"{receipt}.json").read_text())
    assert entry.keys() == {"receipt", "subject_hash", "salt", "requested_at", "erased_at", "counts"}
    assert person not in json.dumps(entry)


def test_a_sole_owner_must_first_transfer_the_organization(online: FlaskClient, stack: Stack) -> None:
    response = online.post(ERASURE, headers=as_caller(stack.token("user_eve", "org_globex")), json=CONFIRMED_BODY)
    assert (response.status_code, response.json["type"]) == (409, "urn:problem:ballast:sole-owner")
    assert [each["name"] for each in response.json["organizations"]] == ["Globex"]


def test_the_log_names_no_person(online: FlaskClient, stack: Stack, new_person: NewPerson, log: io.StringIO) -> None:
    person = new_person()
    online.get(EXPORT, headers=as_caller(stack.token(person)))
    erasing = online.post(ERASURE, headers=as_caller(stack.token(person)), json=CONFIRMED_BODY)
    wait_until_complete(online, erasing.json["receipt"])
    assert person not in log.getvalue()
    assert "@example.com" not in log.getvalue()


# --- failures


def database_with(pages: Callable[[dict[str, Any]], object], calls: list[str]) -> Callable[[str, Any, bytes], Any]:
    """The answers of a database in which an export has begun, with the given pages."""

    def answer(path: str, _headers: Any, body: bytes) -> Any:
        function, arguments = path.rpartition("/")[2], json.loads(body or b"{}")
        calls.append(f"{function} {arguments.get('failed', '')}".strip())
        if function == "begin_export":
            domains = [{"name": name, "description": ""} for name in ("profile", "projects")]
            return rest_answer(
                {"export_id": "x", "schema_version": 1, "generated_at": "2026-01-01T00:00:00+00:00", "domains": domains}
            )
        return pages(arguments) if function == "export_page" else rest_answer(None)

    return answer


def page(entries: int, following: object) -> Any:
    content = ",\n".join(['{"a":1}'] * entries)
    return rest_answer([{"domain": "profile", "content": content, "entries": entries, "next": following}])


def test_an_export_that_fails_on_its_first_page_is_an_ordinary_problem(
    make_app: MakeApp, outside: Outside, issuer: Issuer
) -> None:
    calls: list[str] = []
    outside.answer = database_with(lambda _: HANG_UP, calls)
    client = make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url).test_client()
    response = client.get(EXPORT, headers=as_caller(issuer.token()))
    assert (response.status_code, response.content_type) == (503, "application/problem+json")
    assert calls[-1] == "end_export True"


@pytest.mark.parametrize("accept", ["application/json", "application/zip"])
def test_an_export_that_fails_midway_is_an_incomplete_transfer(tmp_path: Path, issuer: Issuer, accept: str) -> None:
    calls: list[str] = []
    with start_gunicorn(tmp_path, CLERK_ISSUER=issuer.url) as running:
        running.database.answer = database_with(
            lambda asked: HANG_UP if asked["after"] else page(2, {"domain": "projects", "key": None}), calls
        )
        headers = as_caller(issuer.token(), Accept=accept)
        with httpx.stream("GET", f"{running.url}{EXPORT}", headers=headers) as response:
            assert response.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
    assert calls[-1] == "end_export True"


def test_an_erasure_that_clerk_or_the_store_refuses_is_postponed(
    make_app: MakeApp, stack: Stack, database: Connection, new_person: NewPerson, outside: Outside
) -> None:
    person = new_person()
    outside.answer = lambda *_: (503, {}, b"{}")
    client = make_app(**(stack.environment | {"CLERK_API_URL": outside.url})).test_client()
    response = client.post(ERASURE, headers=as_caller(stack.token(person)), json=CONFIRMED_BODY)
    receipt = response.json["receipt"]
    attempted = "select from app.erasure_log where receipt = %s and attempts = 1"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not database.execute(attempted, [receipt]).rowcount:
        time.sleep(0.05)
    assert client.get(f"{ERASURE}/{receipt}").json["state"] == "erased"
    assert outside.requests == [f"/v1/users/{person}"]
    [[error, attempts]] = database.execute(
        "select error, attempts from ops.erasures where receipt = %s", [receipt]
    ).fetchall()
    assert (error, attempts) == ("ClerkCallFailed: 503", 1)
    # Only the Clerk id is left, in the row that needs it for the deletion.
    assert mentions(database, person) == {"app.erasure_log": 1}

    database.execute("update app.erasure_log set next_attempt_at = now() where receipt = %s", [receipt])
    whole = make_app(**stack.environment).test_client()
    job = whole.post("/jobs/erasures", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert job.json["complete"] >= 1
    assert wait_until_complete(whole, receipt)["clerk_deleted_at"]
    assert mentions(database, person) == {}


@pytest.mark.parametrize("count", [120, pytest.param(300, marks=pytest.mark.thorough)])
def test_one_run_of_the_job_carries_out_all_erasures_that_arrived_in_the_database(
    online: FlaskClient, stack: Stack, database: Connection, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """More than a run can wait for: the rest goes on in the background, and a second run does not double the work."""
    monkeypatch.setattr(erasure, "JOB_SECONDS", 0.1)
    receipts = [
        row[0]
        for number in range(count)
        for row in database.execute("select app.begin_erasure(%s, 'clerk')", [f"user_{secrets.token_hex(8)}{number}"])
    ]
    database.execute(
        "update app.erasure_log set clerk_deleted_at = now() where receipt = any(%s)", [receipts]
    )  # as after the event user.deleted
    runs = [online.post("/jobs/erasures", headers=as_caller(stack.environment["JOBS_TOKEN"])).json for _ in range(2)]
    assert [run["done"] for run in runs] == [False, False]
    waiting = "select count(*) from app.erasure_log where state <> 'complete' and receipt = any(%s)"
    deadline = time.monotonic() + 120
    while database.execute(waiting, [receipts]).fetchone() != (0,):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    attempts = "select max(attempts) from app.erasure_log where receipt = any(%s)"
    assert database.execute(attempts, [receipts]).fetchone() == (0,)


@pytest.mark.parametrize("delay", [0.6, *(pytest.param(each, marks=pytest.mark.thorough) for each in (0.05, 1.2))])
def test_a_service_killed_midway_reaches_the_same_state(
    tmp_path: Path, online: FlaskClient, stack: Stack, database: Connection, new_person: NewPerson, delay: float
) -> None:
    person = new_person(projects=4000)
    [[profile_id]] = database.execute(
        "select id::text from public.profiles where clerk_user_id = %s", [person]
    ).fetchall()
    elsewhere = {name: value for name, value in stack.environment.items() if name != "SERVICE_URL"}
    with start_gunicorn(tmp_path, **elsewhere) as running:
        response = httpx.post(f"{running.url}{ERASURE}", headers=as_caller(stack.token(person)), json=CONFIRMED_BODY)
        receipt = response.json()["receipt"]
        time.sleep(delay)
        for process in [running.process, *psutil.Process(running.process.pid).children()]:
            process.kill()
    assert response.status_code == 202
    for _ in range(3):  # the scheduler runs the job again, later
        database.execute("update app.erasure_log set next_attempt_at = now() where receipt = %s", [receipt])
        assert online.post("/jobs/erasures", headers=as_caller(stack.environment["JOBS_TOKEN"])).status_code == 200
    assert wait_until_complete(online, receipt)["counts"]["public.projects"] == 4000
    wait_for_webhook(database, receipt)
    assert mentions(database, person, profile_id) == {}
