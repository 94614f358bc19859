"""`ballast person`: exports, erases, and reaches the same end after a crash at any moment."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast
from scripts.scratch.postgres import Postgres, stop
from tests import events, people
from tests.conftest import Database, free_port_block
from tests.people import ADA, ADA_EMAILS
from tests.schema import migrate
from tests.service.outside import Outside, running_outside

Clerk = Outside
# Rows that remain after an erasure, without the values that differ between erasures.
REMAINS = {
    "profiles": "select clerk_user_id, email, full_name from public.profiles order by 1",
    "specimens": "select id, title, created_by from public.specimens order by 1",
    "members": "select id, user_id, role from public.organization_memberships order by 1",
    "audit": "select id, user_id, impersonator, ip_address, subject_ids, resource_id, metadata, changes from public.audit_logs where actor is null order by 1",
    "messages": "select message_id, event, outcome from app.webhook_events order by 1",
    "records": "select kind, clerk_id, fields from app.clerk_records order by 1, 2",
    "erasures": "select state, counts ->> 'public.specimens' from app.erasure_log",
}


@dataclass(frozen=True)
class World:
    """A database with people, a Clerk and a ledger, and the command on them."""

    url: str
    home: Path
    clerk: Clerk
    person_id: str

    @classmethod
    def of(cls, url: str, home: Path, clerk: Clerk) -> World:
        """Creates a world in which Ada is not erased."""
        with psycopg.connect(url) as connection:
            [[person_id]] = connection.execute(
                "select id::text from public.profiles where clerk_user_id = %s", [ADA]
            ).fetchall()
        return cls(url, home, clerk, person_id)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "BALLAST_HOME": str(self.home), "DATABASE_URL": self.url, "CLERK_API_URL": self.clerk.url,
            "CLERK_SECRET_KEY": "sk_test_person", "BACKUP_URL": self.home.as_uri(),
        }  # fmt: skip

    def run(self, *words: str, **changes: str | None) -> Result:
        return CliRunner().invoke(ballast, ["person", *words], env=self.environment | changes)

    def database(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True)

    def scan(self) -> dict[str, int]:
        """Returns what a scan of the database finds of Ada."""
        with self.database() as connection:
            return people.scan(Database(connection), self.person_id, ADA, *ADA_EMAILS)

    def remains(self) -> dict[str, list[tuple[Any, ...]]]:
        with self.database() as connection:
            return {name: connection.execute(query.encode()).fetchall() for name, query in REMAINS.items()}


@pytest.fixture(scope="module")
def adas_database(lasting_database: Callable[..., str], migrated_database: str) -> str:
    """A database with data of Ada in every table. Copy it."""
    url = lasting_database(migrated_database)
    settle(url)
    return url


@pytest.fixture(scope="module")
def adas_large_database(lasting_database: Callable[..., str], adas_database: str) -> str:
    """The same with 6,000 more audit entries and 3,000 specimens of Ada, so that an erasure takes many steps. Copy it."""
    url = lasting_database(adas_database)
    crowd(url)
    return url


def settle(url: str) -> None:
    with psycopg.connect(url) as connection:
        people.fill_database(Database(connection))
    people.delete_broadcasts(url)


def crowd(url: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in (
            "insert into public.audit_logs (user_id, action, resource_type, changes, ip_address) select p.id, 'client.done', 'test', "
            "jsonb_build_object('after', jsonb_build_object('by', p.id, 'n', n)), '203.0.113.1' "
            "from public.profiles as p, generate_series(1, 6000) as n where p.clerk_user_id = %s",
            "insert into public.specimens (organization_id, created_by, title) select o.id, p.id, 'Hers ' || n "
            "from public.profiles as p, public.organizations as o, generate_series(1, 3000) as n where o.name = 'Acme' and p.clerk_user_id = %s",
        ):  # fmt: skip
            connection.execute(statement, [ADA])
    people.delete_broadcasts(url)


@pytest.fixture
def clerk() -> Iterator[Clerk]:
    with running_outside() as server:
        server.answer = lambda *_: (200, {}, b'{"deleted": true}')
        yield server


@pytest.fixture
def world(adas_database: str, new_database: Callable[..., str], tmp_path: Path, clerk: Clerk) -> World:
    return World.of(new_database(adas_database), tmp_path, clerk)


@pytest.fixture
def large_world(adas_large_database: str, new_database: Callable[..., str], tmp_path: Path, clerk: Clerk) -> World:
    return World.of(new_database(adas_large_database), tmp_path, clerk)


# --- export


@pytest.mark.parametrize("suffix", [".zip", ".json"])
def test_an_export_is_complete_and_only_the_caller_may_read_it(large_world: World, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"ada{suffix}"
    result = large_world.run("export", ADA, "--output", str(file))
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    if suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            records = {name: json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")}
            counted = sum(each["records"] for each in records.pop("manifest.json")["files"].values())
            titles = {row["title"] for row in records["specimens.json"]}
    else:
        document = json.loads(file.read_text())
        counted = sum(len(rows) for rows in document.values() if isinstance(rows, list))
        titles = {row["title"] for row in document["specimens"]}
    assert result.stdout == f"{file}: {counted:,} records\n"
    assert counted > 9000
    assert {f"Hers {n}" for n in range(1, 3001)} <= titles


def test_the_person_can_see_an_export_by_an_administrator(world: World, tmp_path: Path) -> None:
    world.run("export", ADA, "--output", str(tmp_path / "one.json"))
    world.run("export", ADA, "--output", str(tmp_path / "two.json"))
    document = json.loads((tmp_path / "two.json").read_text())
    assert "administrator" in {row["requested_by"] for row in document["exports"]}
    assert "personal_data.exported" in {row["action"] for row in document["activity_about_you"]}


def test_a_failed_export_leaves_no_file(world: World, tmp_path: Path) -> None:
    with world.database() as connection:
        connection.execute(
            "update app.personal_data set subject = '1 / (random() * 0)::integer = 1' where domain = 'messages_from_clerk'"
        )
    result = world.run("export", ADA, "--output", str(tmp_path / "ada.json"))
    assert result.exit_code == 1
    assert list(tmp_path.glob("ada.json*")) == []


@pytest.mark.parametrize(("words", "message"), [
    (("export", "user_unknown"), "No data about this person is stored"), (("erase", "user_unknown", "--yes"), "No data about this person is stored"),
    (("export", ADA, "--output", "ada.txt"), "neither .zip nor .json"),
])  # fmt: skip
def test_a_usage_error_is_one_line(world: World, words: tuple[str, ...], message: str) -> None:
    result = world.run(*words)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [("export", ADA), ("erase", ADA, "--yes"), ("resume",)])
def test_a_database_that_was_never_migrated_gets_advice(
    world: World, new_database: Callable[..., str], words: tuple[str, ...]
) -> None:
    assert "ballast migrate up" in world.run(*words, DATABASE_URL=new_database()).stderr


# --- erasure


def test_a_person_is_erased_here_at_clerk_and_in_the_ledger(world: World) -> None:
    result = world.run("erase", ADA, "--json", "--yes")
    assert result.exit_code == 0, result.output
    [receipt] = json.loads(result.stdout)
    assert receipt["state"] == "complete"
    assert world.clerk.requests == [f"/v1/users/{ADA}"]
    assert world.scan() == {}
    assert [file.stem for file in (world.home / "erasures").iterdir()] == [receipt["receipt"]]
    assert "Nothing to erase" in world.run("resume").stdout


def test_without_confirmation_the_person_is_not_erased(world: World) -> None:
    assert world.run("erase", ADA).exit_code == 1
    assert world.scan()


def refuse_to_erase(world: World, error: str) -> None:
    """Adds a trigger that refuses to unlink one of Ada's specimens. So her profile cannot be deleted either."""
    with world.database() as connection:
        connection.execute(
            "create function public.test_refuse() returns trigger language plpgsql as $$ begin "
            f"if old.title = 'Hers in Globex' then {error}; end if; return new; end $$".encode()
        )
        connection.execute(
            "create trigger refuse before update on public.specimens for each row execute function public.test_refuse()"
        )


@pytest.mark.parametrize("error", ["raise 'no'", "raise sqlstate '57014'"], ids=["error", "timeout"])
def test_a_row_that_cannot_be_erased_is_named_and_everything_else_is_erased(world: World, error: str) -> None:
    refuse_to_erase(world, error)
    result = world.run("erase", ADA, "--yes")
    if error != "raise 'no'":  # each timeout is tried again with half the batch
        result = world.run("resume")
    assert result.exit_code == 1
    assert "2 rows could not be erased" in result.stderr
    assert "ops.erasure_failures" in result.stderr
    assert world.clerk.requests == [f"/v1/users/{ADA}"]
    assert [file.stem for file in (world.home / "erasures").iterdir()] != []
    assert world.scan().keys() == {"app.erasure_failures", "app.erasure_log", "public.profiles", "public.specimens"}
    with world.database() as connection:
        failures = connection.execute("select relation from ops.erasure_failures order by 1").fetchall()
        assert failures == [("public.profiles",), ("public.specimens",)]
        connection.execute("drop trigger refuse on public.specimens")
    assert world.run("resume").exit_code == 0
    assert world.scan() == {}


def test_an_erasure_that_clerk_fails_is_resumed(world: World) -> None:
    world.clerk.answer = lambda *_: (500, {}, b"{}")
    result = world.run("erase", ADA, "--yes")
    assert (result.exit_code, "ballast person resume" in result.stderr) == (1, True)
    assert world.scan() == {"app.erasure_log": 1}
    world.clerk.answer = lambda *_: (404, {}, b'{"errors": [{"code": "resource_not_found"}]}')
    assert world.run("resume").exit_code == 0
    assert world.scan() == {}


def test_a_sole_owner_is_not_erased(world: World) -> None:
    with world.database() as connection:
        connection.execute(
            "delete from public.organization_memberships where role = 'owner' and user_id in (select id from public.profiles where clerk_user_id = %s)",
            [people.BEN],
        )
    result = world.run("erase", ADA, "--yes")
    assert (result.exit_code, "Acme (org_acme)" in result.stderr) == (1, True)
    assert world.clerk.requests == []


def test_another_database_never_uses_the_stand_in(world: World) -> None:
    result = world.run("erase", ADA, "--yes", CLERK_SECRET_KEY=None)
    assert (result.exit_code, "Set CLERK_SECRET_KEY" in result.stderr) == (1, True)
    assert world.scan().keys() >= {"public.profiles"}


def test_replay_erases_again_in_a_restored_backup(
    world: World, adas_database: str, new_database: Callable[..., str]
) -> None:
    assert world.run("erase", ADA, "--yes").exit_code == 0
    restored = World.of(new_database(adas_database), world.home, world.clerk)
    assert restored.scan()
    with restored.database() as connection, world.database() as original:
        [[salt]] = original.execute("select erasure_salt from app.settings").fetchall()
        assert connection.execute("select erasure_salt from app.settings").fetchall() == [(salt,)]
    result = restored.run("replay", "--json")
    assert result.exit_code == 0, result.output
    assert "1 in the ledger, 1 of them in this database" in result.stderr
    assert restored.scan() == {}
    again = restored.run("replay")
    assert "1 in the ledger, 0 of them" in again.stderr


def test_a_missing_ledger_is_not_an_empty_ledger(world: World) -> None:
    assert "Set BACKUP_URL" in world.run("replay", BACKUP_URL=None).stderr
    missing = world.run("replay", BACKUP_URL=(world.home / "missing").as_uri())
    assert (missing.exit_code, "Nothing was erased" in missing.stderr) == (1, True)


# --- concurrent changes


def test_rows_of_a_request_that_began_earlier_are_erased_too(world: World) -> None:
    with world.database() as request, world.database() as eraser:
        with request.transaction():
            claims = json.dumps({"sub": ADA, "role": "authenticated", "fva": [0, 0]})
            request.execute("select set_config('request.jwt.claims', %s, true)", [claims])
            request.execute("set local role authenticated")
            request.execute(
                "select public.log_audit_event(id, 'client.done', 'test') from public.organizations where name = 'Globex'"
            )
            ask(world)
            [[receipt]] = eraser.execute("select receipt from app.erasure_log").fetchall()
            for _ in range(20):  # long enough to finish
                [[step]] = eraser.execute("select public.continue_erasure(%s)", [receipt]).fetchall()
                assert step["state"] == "running"
            assert world.scan().keys() == {"app.erasure_log"}
        assert "public.audit_logs" in world.scan()
    assert world.run("resume").exit_code == 0
    assert world.scan() == {}


@pytest.mark.thorough
def test_clerk_events_during_an_erasure_leave_no_trace(large_world: World) -> None:
    acme = events.organization("org_acme", created_by=ADA, updated_at=people.FAR_FUTURE)
    user = events.user(ADA, email=ADA_EMAILS[0], updated_at=people.FAR_FUTURE)
    member = events.membership("orgmem_0", acme, user, "org:admin", updated_at=people.FAR_FUTURE)
    clerk_events = [
        events.event("user.updated", user), events.event("organization.updated", acme), events.deletion_event("user", ADA, people.FAR_FUTURE),
        events.event("organizationMembership.updated", member), events.event("organizationMembership.deleted", member),
        events.event("session.created", {"id": "sess_9", "user_id": ADA}, people.FAR_FUTURE),
    ]  # fmt: skip

    def send_events(number: int) -> None:
        with large_world.database() as connection:
            for turn in range(15):
                event = json.dumps(clerk_events[(turn + number) % len(clerk_events)])
                connection.execute("select public.receive_clerk_event(%s, %s)", [f"msg_{number}_{turn}", event])

    ask(large_world)
    with ThreadPoolExecutor(3) as threads:
        sending = [threads.submit(send_events, number) for number in range(3)]
        erasing = resuming(large_world)
        for each in sending:
            each.result()
        erasing.wait()
    assert large_world.run("resume").exit_code == 0
    assert large_world.scan() == {}


def test_if_two_owners_leave_at_once_one_remains(world: World) -> None:
    query = "select public.request_erasure(%s, 'person')"
    with world.database() as one, world.database() as two, ThreadPoolExecutor(1) as threads:
        with one.transaction():
            assert "receipt" in one.execute(query, [ADA]).fetchall()[0][0]
            second = threads.submit(lambda: two.execute(query, [people.BEN]).fetchall()[0][0])
            time.sleep(0.3)
            assert not second.done()
        assert "Acme" in [each["name"] for each in second.result()["sole_owner_of"]]


def test_retention_does_not_make_writers_wait_for_readers(world: World) -> None:
    with world.database() as reader, world.database() as job:
        job.execute("update app.settings set audit_retention = '31 days'")
        job.execute("select app.make_audit_partition(now() - interval '3 months')")
        with reader.transaction():
            reader.execute("select from public.audit_logs limit 1")
            assert job.execute("select public.run_retention()").fetchall()[0][0]["dropped_audit_months"] is None
        assert job.execute("select public.run_retention()").fetchall()[0][0]["dropped_audit_months"] == 1


# --- crashes


@pytest.fixture(scope="module")
def expected_remains(
    adas_large_database: str, lasting_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[Any, ...]]]:
    """The remaining rows after an undisturbed erasure."""
    with running_outside() as clerk:
        clerk.answer = lambda *_: (200, {}, b"{}")
        world = World.of(lasting_database(adas_large_database), tmp_path_factory.mktemp("uninterrupted"), clerk)
        assert world.run("erase", ADA, "--yes").exit_code == 0
        return world.remains()


@pytest.mark.parametrize("seed", [0, *(pytest.param(more, marks=pytest.mark.thorough) for more in (1, 2))])
def test_a_repeatedly_killed_command_ends_in_the_same_rows(
    large_world: World, expected_remains: dict[str, list[tuple[Any, ...]]], seed: int
) -> None:
    moments = random.Random(seed)  # noqa: S311 - no secret
    ask(large_world)
    for _ in range(3):
        command = resuming(large_world)
        wait_for_progress(large_world, command)
        time.sleep(moments.uniform(0, 0.4))
        command.kill()
        command.wait()
    wait_for_others(large_world)
    assert large_world.run("resume").exit_code == 0
    assert large_world.scan() == {}
    assert large_world.remains() == expected_remains


@pytest.mark.thorough
def test_a_repeatedly_killed_database_ends_in_the_same_rows(
    home: Path, tmp_path: Path, clerk: Clerk, request: pytest.FixtureRequest
) -> None:
    moments = random.Random(7)  # noqa: S311 - no secret
    postgres = Postgres(home / "crashing", free_port_block(), "test", request.config.getoption("--postgres"))
    server = postgres.start()
    try:
        migrate(postgres.url())
        settle(postgres.url())
        crowd(postgres.url())
        with psycopg.connect(postgres.url(database="template1"), autocommit=True) as connection:
            connection.execute("create database undisturbed template postgres")
        undisturbed = World.of(postgres.url(database="undisturbed"), tmp_path, clerk)
        assert undisturbed.run("erase", ADA, "--yes").exit_code == 0
        world = World.of(postgres.url(), tmp_path, clerk)
        ask(world)
        for _ in range(3):
            command = resuming(world)
            wait_for_progress(world, command)
            time.sleep(moments.uniform(0, 0.4))
            for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children()]:
                process.kill()
            server.wait()
            assert command.wait() in (0, 1)
            server = postgres.start()
        wait_for_others(world)
        assert world.run("resume").exit_code == 0
        assert world.scan() == {}
        assert world.remains() == undisturbed.remains()
    finally:
        stop(server)


def ask(world: World) -> None:
    with world.database() as connection:
        connection.execute("select public.request_erasure(%s, 'administrator')", [ADA])


def resuming(world: World) -> subprocess.Popen[bytes]:
    command = [Path(sys.executable).with_name("ballast"), "person", "resume"]
    return subprocess.Popen(
        command, env=os.environ | world.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for_progress(world: World, command: subprocess.Popen[bytes]) -> None:
    """Waits until a step has erased something, or the command has ended."""
    query = "select counts from app.erasure_log"
    with world.database() as connection:
        before = connection.execute(query).fetchall()
        while command.poll() is None and connection.execute(query).fetchall() == before:
            time.sleep(0.01)


def wait_for_others(world: World) -> None:
    """Waits until the server has closed the sessions of killed clients."""
    others = (
        "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and backend_type = 'client backend'"
    )
    with world.database() as connection:
        while connection.execute(others).rowcount:
            time.sleep(0.05)
