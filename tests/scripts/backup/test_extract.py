"""`ballast backup extract`: lost rows of one tenant come back, nothing else changes, and no other data is revealed."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.backup import programs
from scripts.backup.checksum import add_checksum
from scripts.backup.extract import Reference, TableGraph
from service.erasure_ledger import LedgerStore
from tests import people
from tests.conftest import Database
from tests.scripts.conftest import StoredBackup, Vault
from tests.tenant_tables import TABLES

# test_csv_is_one_file_per_table_with_parents_first runs the command as a process, which starts its own server.
pytestmark = pytest.mark.usefixtures("scratch_at_hand")

STRANGERS = ("Globex", "Initech", "org_globex", "org_initech")
IDS_OF_OTHERS = """
    select id::text from public.organizations where clerk_org_id <> 'org_acme'
    union all select id::text from public.specimens where organization_id <> (select id from public.organizations where clerk_org_id = 'org_acme')
    union all select id::text from public.organization_memberships where organization_id <> (select id from public.organizations where clerk_org_id = 'org_acme')
    union all select id::text from public.organization_invitations where organization_id <> (select id from public.organizations where clerk_org_id = 'org_acme')
    union all select id::text from public.audit_logs where organization_id is distinct from (select id from public.organizations where clerk_org_id = 'org_acme')
"""


def contents(vault: Vault, condition: str = "true", besides: tuple[str, ...] = ()) -> dict[str, set[str]]:
    """Returns every row of schema public as text, by table."""
    tables = [
        "organizations",
        "profiles",
        "organization_memberships",
        "organization_invitations",
        "specimens",
        *TABLES,
        "audit_logs",
    ]
    with vault.connect() as connection:
        return {
            table: {
                text for (text,) in connection.execute(f"select t::text from public.{table} as t where {condition}")
            }
            for table in tables
            if table not in besides
        }


def execute(vault: Vault, *statements: str) -> None:
    with vault.connect() as connection:
        for statement in statements:
            connection.execute(statement.encode())


def extract(vault: Vault, backup: str, output: Path, *options: str) -> dict[str, Any]:
    words = ["extract", backup, "--organization", "org_acme", "--output", str(output), "--json", *options]
    report: dict[str, Any] = json.loads(vault.run_to_end(*words).stdout)
    return report


def try_to_put_back(vault: Vault, output: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script with psql, in the folder of the extract."""
    with vault.connect() as connection:
        psql = programs.choose_programs(connection)["psql"]
    folder, script = (output, "put-back.sql") if output.is_dir() else (output.parent, output.name)
    return subprocess.run(
        [psql, "--no-psqlrc", "--quiet", f"--dbname={vault.url}", f"--file={script}"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def run_put_back(vault: Vault, output: Path) -> None:
    """Puts the rows back."""
    done = try_to_put_back(vault, output)
    assert (done.returncode, done.stderr) == (0, "")


def text_of(output: Path) -> str:
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return "".join(file.read_text() for file in files)


def acme(table: str) -> str:
    return f"delete from public.{table} where organization_id = (select id from public.organizations where clerk_org_id = 'org_acme')"


# The audit trail records that rows were put back, so it may have new rows.
RECORD = ("audit_logs",)


@pytest.mark.parametrize("output_format", ["sql", "csv"])
def test_deleted_rows_come_back_unchanged(folder_vault: Vault, tmp_path: Path, output_format: str) -> None:
    execute(
        folder_vault,
        "update public.specimens set description = E'a\\tb\\nc\\\\d \"quoted\", ü', metadata = '{\"deep\": [1, null, \"x\\\\ny\"]}' where title = 'Not hers'",
        "update public.specimens set description = '' where title = 'For support'",
        "update public.profiles as p set current_organization_id = m.organization_id from public.organization_memberships as m"
        " join public.organizations as o on o.id = m.organization_id where m.user_id = p.id and o.clerk_org_id = 'org_acme'",
    )
    before = contents(folder_vault, besides=RECORD)
    backup = folder_vault.back_up()
    execute(folder_vault, acme("specimens"), acme("organization_memberships"),
        f"delete from public.profiles where clerk_user_id = '{people.ADA}s'")  # fmt: skip
    # Deleting a membership clears current_organization_id of the profile. The row still exists, so it is not restored.
    lost = contents(folder_vault, besides=RECORD)
    assert lost != before
    extract(folder_vault, backup, tmp_path / "acme", "--format", output_format)
    run_put_back(folder_vault, tmp_path / "acme")
    after = contents(folder_vault, besides=(*RECORD, "profiles"))
    assert after == {table: rows for table, rows in before.items() if table != "profiles"}
    profile = f"clerk_user_id = '{people.ADA}s'"
    with folder_vault.connect() as connection:
        back = connection.execute(f"select t::text from public.profiles as t where {profile}".encode()).fetchall()
    assert {text for (text,) in back} <= before["profiles"]
    assert len(back) == 1


@pytest.mark.parametrize("output_format", ["sql", "csv"])
def test_a_whole_organization_comes_back(
    folder_vault: Vault, tmp_path: Path, output_format: str, backup: StoredBackup
) -> None:
    before = contents(folder_vault)
    name = folder_vault.keep(backup)
    execute(folder_vault, "delete from public.organizations where clerk_org_id = 'org_acme'")
    extract(folder_vault, name, tmp_path / "acme", "--format", output_format)
    run_put_back(folder_vault, tmp_path / "acme")
    after = contents(folder_vault)
    # Its audit entries were never deleted. The trail also records the deletion and the return.
    assert after.pop("audit_logs") > before.pop("audit_logs")
    assert after == before


def test_later_changes_and_other_tenants_rows_stay(folder_vault: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    name = folder_vault.keep(backup)
    execute(
        folder_vault,
        "update public.organizations set name = name || ' renamed'",
        "update public.specimens set title = title || ' changed' where title = 'Not hers'",
        "update public.profiles set full_name = full_name || ' changed'",
        "delete from public.specimens where title = 'For support'",
        "delete from public.specimens where title = 'Hers in Globex'",
    )
    before = contents(folder_vault, besides=RECORD)
    extract(folder_vault, name, tmp_path / "acme.sql")
    run_put_back(folder_vault, tmp_path / "acme.sql")
    after = contents(folder_vault, besides=RECORD)
    [back] = after.pop("specimens") - before.pop("specimens")
    assert "For support" in back
    assert after == before


FOREIGN_KEYS = """
    select k.conrelid::regclass::text, k.conname, pg_get_constraintdef(k.oid) from pg_constraint as k
    where k.contype = 'f' and k.conparentid = 0 and k.connamespace = 'public'::regnamespace
"""
DEEDS = """
    select a.organization_id = o.id, a.user_id, a.action, count(*) from public.audit_logs as a
    join public.organizations as o on o.clerk_org_id = 'org_acme'
    where a.created_at > %s and a.changes::text not like '%%Concurrent%%' and a.metadata::text not like '%%Concurrent%%'
    group by 1, 2, 3
"""
INSERTS = """
    select m.topic like '%%' || o.id || '%%', count(*) from realtime.messages as m
    join public.organizations as o on o.clerk_org_id = 'org_acme'
    where m.inserted_at > %s::timestamptz at time zone 'UTC' and m.event = 'INSERT' and m.payload::text not like '%%Concurrent%%'
    group by 1
"""


@contextlib.contextmanager
def others_write(vault: Vault) -> Iterator[Callable[[], None]]:
    """Another tenant inserts, changes and deletes rows until the block ends. Provides a function that waits for it."""
    rounds, ended, failures = list[int](), threading.Event(), list[Exception]()

    def write() -> None:
        try:
            with vault.connect() as connection:
                while not ended.is_set():
                    connection.execute(
                        "insert into public.specimens (organization_id, title) select id, 'Concurrent' from public.organizations"
                        " where clerk_org_id = 'org_globex'"
                    )
                    connection.execute("update public.specimens set status = 'archived' where title = 'Concurrent'")
                    connection.execute("delete from public.specimens where title = 'Concurrent'")
                    rounds.append(1)
        except Exception as failure:
            failures.append(failure)

    writer = threading.Thread(target=write)
    writer.start()

    def wait_for_next_round() -> None:
        before = len(rounds)
        while len(rounds) == before and writer.is_alive():
            time.sleep(0.01)

    try:
        yield wait_for_next_round
    finally:
        ended.set()
        writer.join()
    assert failures == []


def test_one_tenant_is_put_back_into_a_live_database(folder_vault: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    name, original = folder_vault.keep(backup), contents(folder_vault, besides=RECORD)
    execute(
        folder_vault,
        "delete from public.specimens where title in ('For support', 'Ada as support')",
        acme("organization_memberships"),
        "update public.specimens set title = title || ' changed', metadata = '{\"newer\": true}' where title = 'Not hers'",
        "update public.organizations set name = name || ' renamed'",
        "insert into public.specimens (organization_id, title) select id, 'New since' from public.organizations",
    )
    damaged = contents(folder_vault, besides=RECORD)
    lost = {table: {row for row in rows if row not in damaged[table]} for table, rows in original.items()}
    # Rows that were deleted. Of rows that were changed, the newer version stays.
    lost = {
        "organization_memberships": lost["organization_memberships"],
        "specimens": {row for row in lost["specimens"] if "Not hers" not in row},
    }
    assert all(lost.values())
    extract(folder_vault, name, tmp_path / "acme.sql")
    with folder_vault.connect() as connection:
        [[began]] = connection.execute("select clock_timestamp()").fetchall()
    with others_write(folder_vault) as wait_for_next_round:
        wait_for_next_round()
        run_put_back(folder_vault, tmp_path / "acme.sql")
        wait_for_next_round()
    expected = {table: rows | lost.get(table, set()) for table, rows in damaged.items()}
    assert contents(folder_vault, besides=RECORD) == expected
    with folder_vault.connect() as connection:
        deeds = connection.execute(DEEDS, [began]).fetchall()
        assert {(is_acme, author) for is_acme, author, *_ in deeds} == {(True, None)}
        assert {action: number for *_, action, number in deeds} == {
            "specimen.created": len(lost["specimens"]),
            "member.joined": len(lost["organization_memberships"]),
        }
        [(is_acme, number)] = connection.execute(INSERTS, [began]).fetchall()
        assert (is_acme, number >= len(lost["specimens"])) == (True, True)
        with connection.transaction(force_rollback=True):
            for table, key, definition in connection.execute(FOREIGN_KEYS).fetchall():
                connection.execute(
                    f'alter table {table} drop constraint "{key}", add constraint "{key}" {definition}'.encode()
                )
    once = contents(folder_vault)
    run_put_back(folder_vault, tmp_path / "acme.sql")
    assert contents(folder_vault) == once


def test_an_organization_that_was_created_again_is_not_mixed_with_the_old_one(
    folder_vault: Vault, tmp_path: Path, backup: StoredBackup
) -> None:
    """Its rows have another id now: the script is refused as a whole."""
    name = folder_vault.keep(backup)
    execute(
        folder_vault,
        "delete from public.organizations where clerk_org_id = 'org_acme'",
        "insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme again')",
    )
    before = contents(folder_vault)
    extract(folder_vault, name, tmp_path / "acme.sql")
    refused = try_to_put_back(folder_vault, tmp_path / "acme.sql")
    assert (refused.returncode, "violates foreign key constraint" in refused.stderr) == (3, True)
    assert contents(folder_vault) == before


def test_putting_back_twice_changes_nothing(folder_vault: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    name = folder_vault.keep(backup)
    execute(folder_vault, acme("specimens"), acme("organization_memberships"))
    extract(folder_vault, name, tmp_path / "acme.sql")
    run_put_back(folder_vault, tmp_path / "acme.sql")
    once = contents(folder_vault)
    run_put_back(folder_vault, tmp_path / "acme.sql")
    assert contents(folder_vault) == once


@pytest.mark.parametrize("output_format", ["sql", "csv"])
def test_an_extract_has_no_data_of_another_tenant(folder_vault: Vault, tmp_path: Path, output_format: str) -> None:
    # A member of both organizations currently works in the other one.
    execute(
        folder_vault,
        "update public.profiles as p set current_organization_id = m.organization_id from public.organization_memberships as m"
        " join public.organizations as o on o.id = m.organization_id where m.user_id = p.id and o.clerk_org_id = 'org_globex'",
        "insert into public.profiles (clerk_user_id, email) values ('user_alone', 'alone@example.net')",
    )
    with folder_vault.connect() as connection:
        others = [name for (name,) in connection.execute(IDS_OF_OTHERS)]
    extract(folder_vault, folder_vault.back_up(), tmp_path / "acme", "--format", output_format)
    text = text_of(tmp_path / "acme")
    assert "Not hers" in text
    assert others
    assert [each for each in (*STRANGERS, "user_alone", *others) if each in text] == []


def test_a_member_who_works_elsewhere_can_be_put_back(folder_vault: Vault, tmp_path: Path) -> None:
    execute(
        folder_vault,
        "update public.profiles as p set current_organization_id = m.organization_id from public.organization_memberships as m"
        " join public.organizations as o on o.id = m.organization_id where m.user_id = p.id and o.clerk_org_id = 'org_globex'",
    )
    backup = folder_vault.back_up()
    execute(folder_vault, f"delete from public.profiles where clerk_user_id = '{people.BEN}'")
    extract(folder_vault, backup, tmp_path / "acme.sql")
    run_put_back(folder_vault, tmp_path / "acme.sql")
    with folder_vault.connect() as connection:
        found = connection.execute(
            "select o.clerk_org_id, p.current_organization_id from public.profiles as p"
            " join public.organization_memberships as m on m.user_id = p.id join public.organizations as o on o.id = m.organization_id"
            " where p.clerk_user_id = %s", [people.BEN],
        ).fetchall()  # fmt: skip
    assert found == [("org_acme", None)]


def test_people_erased_since_the_backup_are_not_extracted(
    folder_vault: Vault, tmp_path: Path, backup: StoredBackup
) -> None:
    name = folder_vault.keep(backup)
    with folder_vault.connect() as connection:
        database = Database(connection)
        names = people.identifiers(database)
        receipt = people.call(database, "app.begin_erasure", clerk_user_id=people.ADA, requested_by="administrator")
        while (step := people.call(database, "continue_erasure", receipt=receipt))["state"] == "running":
            pass
        LedgerStore(folder_vault.backup_url).put(str(receipt), step)
    extract(folder_vault, name, tmp_path / "acme.sql")
    text = text_of(tmp_path / "acme.sql").lower()
    for alike in map(str.lower, (*people.SIMILAR, *people.SIMILAR.values())):
        text = text.replace(alike, "")
    assert "not hers" in text
    assert [name for name in names if name.lower() in text] == []
    # Audit entries of the temporary database are not extracted either.
    before = contents(folder_vault)["audit_logs"]
    run_put_back(folder_vault, tmp_path / "acme.sql")
    assert contents(folder_vault)["audit_logs"] == before


def test_only_the_caller_may_read_an_extract(folder_shelf: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    name = folder_shelf.keep(backup)
    old = os.umask(0)
    try:
        extract(folder_shelf, name, tmp_path / "acme.sql")
        extract(folder_shelf, name, tmp_path / "acme", "--format", "csv")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "acme.sql").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "acme").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "acme").iterdir()} == {0o600}


def test_csv_is_one_file_per_table_with_parents_first(
    bucket_vault: Vault, tmp_path: Path, backup: StoredBackup
) -> None:
    with bucket_vault.connect() as connection:
        [[acme_id]] = connection.execute(
            "select id::text from public.organizations where clerk_org_id = 'org_acme'"
        ).fetchall()
    extracting = bucket_vault.start(
        "extract", bucket_vault.keep(backup), "--organization", acme_id.upper(), "--output", str(tmp_path / "a b"), "--format", "csv"
    )  # fmt: skip
    printed, errors = extracting.communicate(timeout=60)
    assert extracting.returncode == 0, errors
    names = sorted(file.name for file in (tmp_path / "a b").iterdir())
    assert names[0] == "01-organizations.csv"
    assert names[-1] == "put-back.sql"
    assert {name[3:] for name in names[:-1]} == {
        "organizations.csv", "organization_invitations.csv", "organization_memberships.csv", "profiles.csv", "specimens.csv",
        *(f"{table}.csv" for table in TABLES),
    }  # fmt: skip
    assert (tmp_path / "a b" / names[0]).read_text().startswith("id,clerk_org_id,name,")
    assert "public.specimens" in printed
    assert "audit entries (public.audit_logs) are not in it" in " ".join(printed.split())
    assert "-- Without the organization's rows of public.audit_logs." in (tmp_path / "a b" / "put-back.sql").read_text()


@pytest.mark.parametrize("output_format", ["sql", "csv"])
def test_an_extract_says_that_it_has_no_audit_entries(
    folder_vault: Vault, tmp_path: Path, output_format: str, backup: StoredBackup
) -> None:
    with folder_vault.connect() as connection:
        entries = connection.execute(
            "select a.id::text from public.audit_logs as a join public.organizations as o on o.id = a.organization_id"
            " where o.clerk_org_id = 'org_acme'"
        ).fetchall()
    report = extract(folder_vault, folder_vault.keep(backup), tmp_path / "acme", "--format", output_format)
    assert report["left_out"] == ["public.audit_logs"]
    assert "public.audit_logs" not in report["rows"]
    text = text_of(tmp_path / "acme")
    assert entries
    assert [identifier for (identifier,) in entries if identifier in text] == []


def test_an_unknown_organization_leaves_no_file(folder_shelf: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    name = folder_shelf.keep(backup)
    output = tmp_path / "x.sql"
    result = folder_shelf.run("extract", name, "--organization", "org_unknown", "--output", str(output))
    assert result.exit_code == 1
    assert "no organization 'org_unknown'" in result.stderr
    assert not output.exists()
    assert not list(tmp_path.glob(".extract-*"))


def test_an_existing_file_is_never_overwritten(folder_shelf: Vault, tmp_path: Path) -> None:
    output = tmp_path / "x.sql"
    output.write_text("mine")
    result = folder_shelf.run("extract", "latest", "--organization", "org_acme", "--output", str(output))
    assert result.exit_code == 2
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("part", "kind", "name"),
    [
        ("rows", None, "public.specimens"),
        ("structure", "column", "public.specimens.title"),
        ("structure", "column", "public.specimens.gone"),
    ],
)
def test_an_extract_refuses_what_makes_its_rows_wrong(
    folder_shelf: Vault, tmp_path: Path, backup: StoredBackup, part: str, kind: str | None, name: str
) -> None:
    differ(folder_shelf, folder_shelf.keep(backup), part, kind, name)
    result = folder_shelf.run("extract", "latest", "--organization", "org_acme", "--output", str(tmp_path / "x.sql"))
    assert result.exit_code == 1
    assert f"Nothing was extracted: the check {'structure' if kind else 'row counts'!r} of" in result.stderr
    assert name in result.stderr
    assert not (tmp_path / "x.sql").exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("policy", "gone on public.specimens"),
        ("index", "specimens_pkey on public.specimens"),
        ("options of column", "public.specimens.title"),
        ("column", "app.settings.operator_email"),
    ],
)
def test_an_extract_warns_of_any_other_difference(
    folder_shelf: Vault, tmp_path: Path, backup: StoredBackup, kind: str, name: str
) -> None:
    differ(folder_shelf, folder_shelf.keep(backup), "structure", kind, name)
    arguments = ("--organization", "org_acme", "--output", str(tmp_path / "x.sql"))
    result = folder_shelf.run_to_end("extract", "latest", *arguments)
    assert f"{kind} {name}" in result.stderr
    assert "The rows are complete" in result.stderr
    assert (tmp_path / "x.sql").exists()


def differ(vault: Vault, name: str, part: str, kind: str | None, entry: str) -> None:
    """Makes the manifest of a backup differ in one entry."""
    place = vault.store.path(name, "manifest.json")
    assert place is not None
    body = json.loads(place.read_text())
    if kind is None:
        body[part][entry] += 1
    else:
        body[part][kind][entry] = "0" * 16
    place.write_bytes(add_checksum(json.dumps(body).encode()))


# A tenant table with unusual names, types, references and partitions.
HARD = """
    create table public.test_colours (name text primary key);
    insert into public.test_colours values ('red'), ('blue');
    create table public."Odd tasks" (
        id bigint generated always as identity primary key,
        organization_id uuid not null references public.organizations on delete cascade,
        partner_id uuid references public.organizations on delete set null,
        parent_id bigint references public."Odd tasks" on delete set null,
        colour text references public.test_colours on delete set null,
        "the 'name'" text not null,
        shout text generated always as (upper("the 'name'")) stored not null,
        due interval, at timestamptz, day date, bytes bytea, words text[], ratio double precision
    );
    insert into public."Odd tasks" (organization_id, partner_id, parent_id, colour, "the 'name'", due, at, day, bytes, words, ratio)
    select o.id, p.id, null, c.name, 'task ' || c.name || ' of ' || o.name, '-1 day 02:03', now(), '2026-02-01', '\\x00ff', array['a,b', null, '"'], 0.1
    from public.organizations as o cross join public.test_colours as c join public.organizations as p on p.name = 'Globex';
    update public."Odd tasks" as t set parent_id = (
        select u.id from public."Odd tasks" as u where u.organization_id = t.organization_id and u.colour = 'blue'
    ) where t.colour = 'red';
    create table public.test_visits (
        id uuid default gen_random_uuid(), organization_id uuid not null references public.organizations on delete cascade,
        at date, task bigint references public."Odd tasks" on delete cascade, primary key (id, at)
    ) partition by range (at);
    create table public.test_visits_2025 partition of public.test_visits for values from ('2025-01-01') to ('2026-01-01');
    create table app.visits_else partition of public.test_visits default;
    insert into public.test_visits (organization_id, at, task)
    select t.organization_id, d.day, t.id from public."Odd tasks" as t cross join unnest('{2025-05-05,2026-05-05}'::date[]) as d (day);
"""


@pytest.mark.parametrize("output_format", ["sql", "csv"])
def test_any_tenant_table_is_found_by_its_foreign_key(folder_vault: Vault, tmp_path: Path, output_format: str) -> None:
    execute(folder_vault, HARD)
    query = """
        select id, parent_id, shout, due, at, day, bytes, words, ratio, colour from public."Odd tasks" order by id
    """
    visits = "select tableoid, id, organization_id, at, task from public.test_visits order by id"
    with folder_vault.connect() as connection:
        before, visits_before = connection.execute(query).fetchall(), connection.execute(visits).fetchall()
        backup = folder_vault.back_up()
        execute(folder_vault, acme('"Odd tasks"'))
        connection.execute("delete from public.test_colours where name = 'red'")
        connection.execute("update public.\"Odd tasks\" set colour = 'blue'")
        report = extract(folder_vault, backup, tmp_path / "acme", "--format", output_format)
        run_put_back(folder_vault, tmp_path / "acme")
        after = connection.execute(query).fetchall()
        [[partners]] = connection.execute(
            "select count(t.partner_id) from public.\"Odd tasks\" as t join public.organizations as o on o.id = t.organization_id where o.name = 'Acme'"
        ).fetchall()
        assert connection.execute(visits).fetchall() == visits_before
    assert report["rows"]["Odd tasks"] == 2
    assert report["rows"]["test_visits"] == 4
    assert list(report["rows"]).index("test_visits") > list(report["rows"]).index("Odd tasks")
    assert "test_visits_2025" not in report["rows"]
    assert [row[:-1] for row in after] == [row[:-1] for row in before]
    assert {row[-1] for row in after} == {"blue", None}
    assert partners == 0


def reference(table: str, target: str) -> Reference:
    return Reference(table, "public", target, ["x"], ["id"], [])


def test_parents_come_before_children_and_a_cycle_is_one_group() -> None:
    names = ["organizations", "profiles", "memberships", "a_leaf", "z_root"]
    links = [("memberships", "organizations"), ("memberships", "profiles"), ("profiles", "memberships"),
        ("a_leaf", "z_root"), ("a_leaf", "a_leaf"), ("z_root", "organizations"), ("a_leaf", "profiles")]  # fmt: skip
    shape = TableGraph({name: ["id"] for name in names}, [reference(*link) for link in links])
    assert shape.groups() == [["organizations"], ["z_root"], ["memberships", "profiles"], ["a_leaf"]]
