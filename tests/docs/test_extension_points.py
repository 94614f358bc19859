"""docs/extension-points.md: its blocks are files of the example product in tests/product, and they work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scripts.local.stack import product_variables
from scripts.schema import migrations
from scripts.schema.new_table import parse_table, write
from tests.conftest import ROOT, Claims, Database
from tests.scripts.schema.test_new_table import SOURCES, copy_to, run_script
from tests.service.conftest import ENVIRONMENT

PRODUCT = ROOT / "tests/product"
PAGE = (ROOT / "docs/extension-points.md").read_text()
BLOCKS = re.findall(r"^```\w+ (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COLUMNS = "number:text amount:numeric is_settled:boolean"
JOB = "example-write-off-old-invoices"
CHECKOUT = (
    "service",
    "scripts",
    "tests",
    "docs",
    "supabase",
    "pyproject.toml",
    "gunicorn.conf.py",
    ".env.example",
    ".sqlfluff",
)
# The tests that compare a list with what they find, and those of the product.
TESTS = (
    *(f"tests/db/test_{name}.py" for name in ("lookups", "schema_rules", "job_schedule", "advisors")),
    *(f"tests/service/test_{name}.py" for name in ("limits", "problems", "settings", "invoice_routes")),
    "tests/scripts/local/test_scheduler.py",
)


@pytest.mark.parametrize(("path", "block"), BLOCKS, ids=[path for path, _ in BLOCKS])
def test_a_block_is_a_file_of_the_example_product(path: str, block: str) -> None:
    assert (PRODUCT / path).read_text() == block


def rename(text: str) -> str:
    """Gives the example's objects, files and settings names that a product does not have, and its role a free rank."""
    text = re.sub(
        r"\b(?<!-)(invoices|invoice_|invoicing|settle_invoice|write_off|newsletter|bookkeeper)", r"example_\1", text
    )
    return (
        text.replace("write-off", "example-write-off").replace("WRITE_OFF", "EXAMPLE_WRITE_OFF").replace(" 23,", " 97,")
    )


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the product's files under other names, and none of Ballast's files changed."""
    folder = copy_to(tmp_path_factory.mktemp("product"), *SOURCES, *CHECKOUT)
    write(parse_table("example_invoices", COLUMNS), root=folder)
    for number, file in enumerate(sorted((PRODUCT / "migrations").iterdir())):
        (folder / f"migrations/2099010100000{number}_{rename(file.name)}").write_text(rename(file.read_text()))
    for file in PRODUCT.rglob("*.*"):
        path = file.relative_to(PRODUCT)
        if path.parts[0] in ("functions", "service", "tests") and file.is_file():
            (folder / rename(str(path))).parent.mkdir(exist_ok=True)
            (folder / rename(str(path))).write_text(rename(file.read_text()))
    return folder


@pytest.fixture(scope="module")
def url(product: Path, lasting_database: Callable[..., str]) -> str:
    url = lasting_database()
    migrations.up(url, root=product)
    return url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with psycopg.connect(url) as connection, connection.transaction(force_rollback=True):
        yield Database(connection)


@pytest.fixture
def invoice(database: Database) -> str:
    """The id of an old invoice of Acme, which has a person of each role. user_stranger owns another organization."""
    database.execute(
        "insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme'), ('org_globex', 'Globex')"
    )
    for role in ("owner", "admin", "member", "viewer", "stranger"):
        database.execute("insert into public.profiles (clerk_user_id) values (%s)", f"user_{role}")
        database.execute(
            "insert into public.organization_memberships (organization_id, user_id, role) "
            "select o.id, p.id, %s from public.organizations as o, public.profiles as p where o.name = %s and p.clerk_user_id = %s",
            "owner" if role == "stranger" else role, "Globex" if role == "stranger" else "Acme", f"user_{role}",
        )  # fmt: skip
    return str(
        database.value(
            "insert into public.example_invoices (organization_id, number, amount, is_settled, created_at) "
            "select id, '1', 119, false, now() - interval '2 years' from public.organizations where name = 'Acme' returning id"
        )
    )


def claims(role: str, *, second_factor: bool = True) -> Claims:
    return {"sub": f"user_{role}", "role": "authenticated", "fva": [0, 0 if second_factor else -1]}


def is_written_off(database: Database, invoice: str) -> bool:
    return bool(database.value("select amount = 0 and is_settled from public.example_invoices where id = %s", invoice))


def test_an_admin_writes_off_an_invoice_which_is_recorded_and_broadcast(database: Database, invoice: str) -> None:
    with database.acting("authenticated", claims("admin")):
        database.execute("select public.example_write_off_invoice(%s)", invoice)
    assert is_written_off(database, invoice)
    entry = "select p.clerk_user_id from public.audit_logs as a join public.profiles as p on p.id = a.user_id where a.resource_id = %s"
    assert database.rows(f"{entry} and a.action = 'example_invoice.updated'", invoice) == [("user_admin",)]
    topics = database.rows("select topic from realtime.messages where payload ->> 'operation' = 'UPDATE'")
    assert [topic.partition(":")[2].partition(":")[2] for (topic,) in topics] == ["example_invoices:read"]


@pytest.mark.parametrize(
    "refused",
    [claims("member"), claims("viewer"), claims("stranger"), claims("admin", second_factor=False)],
    ids=["member", "viewer", "stranger", "admin without a second factor"],
)
def test_other_callers_do_not_write_it_off(database: Database, invoice: str, refused: Claims) -> None:
    with (
        pytest.raises(psycopg.DatabaseError, match="no such invoice") as answer,
        database.connection.transaction(),
        database.acting("authenticated", refused),
    ):
        database.execute("select public.example_write_off_invoice(%s)", invoice)
    assert answer.value.sqlstate == "PT404"
    assert not is_written_off(database, invoice)


def test_the_step_of_the_job_is_for_the_service_only(database: Database, invoice: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting("authenticated", claims("owner")):
        database.execute("select public.example_write_off_old_invoices(1)")
    with database.acting("authenticated", claims("owner")):
        assert database.value("select amount from public.example_invoices where id = %s", invoice) == 119
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="Clerk"), database.connection.transaction():
        database.execute("select public.example_write_off_old_invoices(1)")  # the claims of the block are still set
    with database.acting("service_role", {"role": "service_role"}):
        assert database.value("select public.example_write_off_old_invoices(3650)") == 0
        assert database.value("select public.example_write_off_old_invoices(365)") == 1
    assert is_written_off(database, invoice)


def test_the_job_is_scheduled(database: Database) -> None:
    found = database.rows("select every = '1 day', schedule from ops.job_schedule where name = %s", JOB)
    assert found == [(True, "17 3 * * *")]
    assert (
        database.value("select purpose from ops.jobs where name = %s", JOB)
        == "Writes off old unsettled example_invoices."
    )


# Prints what the service of the product answers without a database, and why it does not start without its setting.
ASK = f"""
import json, os
from service.app import create_app
from service.settings import SettingsInvalid
client = create_app().test_client()
token = {{"Authorization": "Bearer " + os.environ["JOBS_TOKEN"]}}
path = "/api/v1/example_invoices/00000000-0000-4000-8000-000000000000/example-write-off"
origin = {{"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}}
answers = {{
    "route": client.post(path), "preflight": client.options(path, headers=origin), "job without token": client.post("/jobs/{JOB}"),
    "job": client.post("/jobs/{JOB}", headers=token),
}}
described = client.get("/openapi.json").json["paths"]
del os.environ["EXAMPLE_WRITE_OFF_DAYS"]
try:
    stopped = create_app()
except SettingsInvalid as error:
    stopped = str(error)
print(json.dumps({{
    "answers": {{name: answer.status_code for name, answer in answers.items()}},
    "limit": answers["route"].headers.get("Access-Control-Allow-Origin"),
    "described": sorted(described["/api/v1/example_invoices/{{example_invoice_id}}/example-write-off"]["post"]["responses"]),
    "jobs": described["/jobs/{{name}}"]["post"]["parameters"][0]["schema"]["enum"],
    "stopped": stopped,
}}))
"""


@pytest.fixture(scope="module")
def answers(product: Path) -> dict[str, Any]:
    variables = product_variables() | {
        "PYTHONPATH": str(product),
        "CLERK_AUTHORIZED_PARTIES": "https://app.example",
        "EXAMPLE_WRITE_OFF_DAYS": "365",
    }
    ran = subprocess.run(
        [sys.executable, "-c", ASK], cwd=product, env=os.environ | ENVIRONMENT | variables, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_the_service_of_the_product_has_the_route_and_the_job_and_both_are_closed(answers: dict[str, Any]) -> None:
    assert answers["answers"] == {"route": 401, "preflight": 204, "job without token": 401, "job": 503}
    assert answers["described"] == ["204", "401", "403", "404", "429", "431", "503"]
    assert JOB in answers["jobs"]


def test_the_service_of_the_product_does_not_start_without_its_setting(answers: dict[str, Any]) -> None:
    assert answers["stopped"] == "The service cannot start: EXAMPLE_WRITE_OFF_DAYS is missing. See .env.example."


@pytest.mark.thorough
def test_the_checks_of_ballast_accept_the_product(product: Path) -> None:
    """Linters, types and tests, with none of Ballast's files changed."""
    settings = ".env.invoicing.example"
    (product / rename(settings)).write_text(rename((PRODUCT / settings).read_text()))
    (product / "node_modules").symlink_to(ROOT / "node_modules")
    run_script(
        product,
        "mypy && lint-imports --no-cache && ruff check service && sqlfluff lint functions/9_tables/example_*.sql",
    )
    run_script(product, "ballast types")
    printed = run_script(product, f"python -m pytest -q -p no:cacheprovider {' '.join(TESTS)}")
    assert "failed" not in printed
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 300
