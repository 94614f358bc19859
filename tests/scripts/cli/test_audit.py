"""`ballast audit`: finds and names every change of the sealed trail, but permits erasures and retention.

The attacks are by `postgres`, as in Supabase's SQL editor: it owns the tables and functions, but is no superuser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict

from scripts.cli import ballast
from scripts.cli.person import make_call
from service.audit_store import AuditStore
from service.clerk_api import ClerkApi
from service.erasure import Eraser

PERSON = UUID("00000000-0000-4000-8000-000000000001")
RECEIPT = UUID("00000000-0000-4000-8000-0000000000aa")
# The fourth entry of March, the month in the middle; its seal is the second of five.
VICTIM = "id = (select id from public.audit_logs where resource_id = '2026-03-04')"
INTACT, TAMPERED, UNPROVEN = 0, 1, 3


@dataclass(frozen=True)
class Trail:
    """Runs the command on a separate migrated database with an audit trail, and a folder as its store."""

    url: str
    store: Path | None

    def run(self, *arguments: str) -> Result:
        environment = {"DATABASE_URL": self.url, "BACKUP_URL": self.store.as_uri() if self.store else None}
        return CliRunner().invoke(ballast, ["audit", *arguments], env=environment)

    def execute(self, *statements: str) -> list[Any]:
        """Executes statements as `postgres`, with the setting by which our own functions change the trail."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("set app.audit_intervention = 'on'")
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def seals(self) -> list[str]:
        """Seals the unsealed entries, and returns all seals in hex."""
        self.run("seal")
        return [seal for (seal,) in self.execute("select encode(seal, 'hex') from app.audit_seals order by sequence")]

    def verify(self, *arguments: str) -> dict[str, Any]:
        result = self.run("verify", "--json", *arguments)
        found: dict[str, Any] = json.loads(result.stdout)
        assert result.exit_code == (1 if found["problems"] else UNPROVEN if found["unproven"] else 0)
        return found | {"exit_code": result.exit_code}

    def list_problems(self, *arguments: str) -> list[str]:
        problems: list[str] = self.verify(*arguments)["problems"]
        return problems

    def states(self) -> list[str]:
        return [each["state"] for each in self.verify()["ranges"]]

    def seal_later(self, *, store: bool = True) -> int:
        """Seals the minute that is not complete yet, too. Returns how many seals are new."""
        [[count]] = self.execute(
            "create or replace function app.audit_complete_until() returns timestamptz language sql as 'select now()'",
            "select count(*) from app.seal_audit()",
        )
        if store:
            self.run("seal")
        return int(count)

    def erase(self, person: UUID = PERSON, receipt: UUID = RECEIPT) -> None:
        """Erases a person as the service does."""
        self.begin_erasure(person, receipt)
        self.continue_erasure(receipt)

    def begin_erasure(self, person: UUID = PERSON, receipt: UUID = RECEIPT) -> None:
        self.execute(
            "insert into app.erasure_log (receipt, subject_hash, person, requested_by, clerk_deleted_at) values "
            f"('{receipt}', app.person_hash('user_{receipt}'), ('{person}', 'user_{receipt}', '{{}}'), 'person', now())"
        )

    def continue_erasure(self, receipt: UUID = RECEIPT) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            store = AuditStore(self.store.as_uri()) if self.store else None
            eraser = Eraser(make_call(connection), ClerkApi("http://localhost:1", "sk_test"), None, store)
            assert eraser.carry_out(str(receipt)) == "complete"

    def without_store(self) -> Trail:
        return Trail(self.url, None)


@pytest.fixture
def empty(migrated_database: str, new_database: Callable[..., str], tmp_path: Path) -> Trail:
    """An empty trail with unlimited retention, and an empty store."""
    trail = Trail(new_database(migrated_database), tmp_path)
    trail.execute("update app.settings set audit_retention = '100 years'")
    trail.execute("truncate public.audit_logs")
    return trail


@pytest.fixture
def trail(empty: Trail) -> Trail:
    """Ten entries in each of February, March and April 2026, the first of each month by PERSON."""
    empty.execute(f"""
        insert into public.audit_logs (user_id, action, resource_type, resource_id, created_at)
        select case day when 1 then '{PERSON}'::uuid end, 'project.created', 'project', date::date, date
        from generate_series(2, 4) as month, generate_series(1, 10) as day,
            make_timestamptz(2026, month, day, 12, 0, 0, 'UTC') as date
    """)
    empty.execute("select app.make_audit_partitions()")
    return empty


@pytest.fixture
def sealed_trail(trail: Trail) -> Trail:
    assert trail.run("seal").exit_code == 0
    return trail


def test_seals_are_printed_to_be_stored_elsewhere(trail: Trail) -> None:
    result = trail.run("seal")
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    stored = sorted(file.name for file in (trail.store or Path()).glob("seals/*"))
    assert stored == [f"{line[0]:0>12}-{line[3]}.json" for line in lines]
    assert lines[1][:3] == ["2", "2026-03-01 00:00:00Z to 2026-04-01 00:00:00Z", "10 entries"]
    assert [seal for *_, seal in lines] == trail.seals()[: len(lines)]
    assert result.stderr == f"New seals stored in BACKUP_URL: {len(lines)}.\n"


def test_without_a_store_the_command_asks_to_keep_the_seals(trail: Trail) -> None:
    assert "Store them elsewhere" in trail.without_store().run("seal").stderr


def test_seals_have_a_json_form(trail: Trail) -> None:
    first, *_ = json.loads(trail.run("seal", "--json").stdout)
    assert list(first) == ["sequence", "range_start", "range_end", "entries", "seal"]
    assert (first["sequence"], first["entries"], len(first["seal"])) == (1, 10, 64)


def test_an_empty_trail_has_nothing_to_seal(empty: Trail) -> None:
    assert "Nothing to seal" in empty.run("seal").stdout
    verified = empty.run("verify")
    assert (verified.stdout, verified.exit_code) == (
        "0 entries and no seal yet: `ballast audit seal` creates the first.\n",
        0,
    )


def test_an_untouched_trail_is_intact(sealed_trail: Trail) -> None:
    result = sealed_trail.run("verify")
    assert result.exit_code == 0, result.output
    # All valid ranges share one row.
    assert [line.split("│")[3:6] for line in result.stdout.splitlines() if "intact" in line] == [
        [" 30      ", " 0      ", " intact "]
    ]
    assert "0 entries since the last seal" in result.stdout
    newest = sealed_trail.verify()["anchored"]
    assert newest == len(sealed_trail.verify()["ranges"])
    assert f"The newest seal that is stored outside the database is {newest}, " in result.stdout


def test_entries_after_the_last_seal_are_counted(sealed_trail: Trail) -> None:
    sealed_trail.execute("insert into public.audit_logs (action, resource_type) values ('project.created', 'project')")
    assert "1 entry since the last seal" in sealed_trail.run("verify").stdout


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        (f"update public.audit_logs set action = 'project.deleted' where {VICTIM}", 10),
        (f"update public.audit_logs set created_at = created_at + interval '1 second' where {VICTIM}", 10),
        (f"update public.audit_logs set user_id = null where user_id = '{PERSON}' and created_at >= '2026-03-01'", 10),
        (f"delete from public.audit_logs where {VICTIM}", 9),
        ("delete from public.audit_logs where created_at >= '2026-03-01' and created_at < '2026-04-01'", 0),
        (
            "insert into public.audit_logs (action, resource_type, created_at) "
            "values ('project.created', 'project', '2026-03-31 23:59:59Z')",
            11,
        ),
    ],
    ids=["changed", "moved in time", "erased by hand", "removed", "removed a month", "inserted"],
)
def test_tampering_with_entries_is_found_and_named(sealed_trail: Trail, tampering: str, found: int) -> None:
    sealed_trail.execute(tampering)
    assert sealed_trail.list_problems() == [
        "The first broken range is 2, 2026-03-01 00:00:00Z to 2026-04-01 00:00:00Z:"
        f" entries were changed, removed or inserted (sealed 10 entries, found {found})."
    ]
    shown = sealed_trail.run("verify")
    assert "broken: entries were changed" in shown.stdout
    assert "The first broken range is 2" in shown.stderr


@pytest.mark.parametrize(
    ("tampering", "first"),
    [
        ("delete from app.audit_seals where sequence = 1", 2),
        ("delete from app.audit_seals where sequence = 2", 3),
        ("update app.audit_seals set seal = sha256('x') where sequence = 2", 2),
        ("update app.audit_seals set entries = 11 where sequence = 2", 2),
        ("update app.audit_seals set range_end = range_end - interval '1 day' where sequence = 2", 2),
    ],
    ids=["first removed", "removed", "rewritten", "other entries", "other range"],
)
def test_tampering_with_seals_is_found_and_named(sealed_trail: Trail, tampering: str, first: int) -> None:
    sealed_trail.execute(tampering)
    problem, *_ = sealed_trail.list_problems()
    assert problem.startswith(f"The first broken range is {first}, ")
    assert "a seal was changed or removed" in problem


def test_an_entry_before_the_first_range_is_found(sealed_trail: Trail) -> None:
    sealed_trail.execute(
        "insert into public.audit_logs (action, resource_type, created_at) values ('x.y', 'x', '2025-12-31')"
    )
    assert sealed_trail.list_problems() == ["1 entry inserted before the first sealed range."]


def test_a_copy_proves_that_the_chain_was_rewritten(trail: Trail) -> None:
    alone = trail.without_store()
    _, kept, *_ = alone.seals()
    assert alone.list_problems("--seal", kept.upper()) == []
    alone.execute(
        f"update public.audit_logs set action = 'project.deleted' where {VICTIM}", "delete from app.audit_seals"
    )
    first, second, *_ = alone.seals()
    assert second != kept
    assert alone.list_problems("--seal", first) == []
    [problem] = alone.list_problems("--seal", first, "--seal", kept)
    assert problem.startswith(f"The seal {kept} is not in the chain")


# --- the store


def test_without_a_store_an_intact_trail_is_unproven(sealed_trail: Trail) -> None:
    alone = sealed_trail.without_store()
    result = alone.run("verify")
    assert result.exit_code == UNPROVEN
    assert "Unproven: No seal is stored outside the database" in result.stderr
    assert alone.verify()["anchored"] is None


def test_a_copy_of_a_seal_proves_the_trail_without_a_store(sealed_trail: Trail) -> None:
    kept = sealed_trail.seals()[2]
    found = sealed_trail.without_store().verify("--seal", kept)
    assert (found["exit_code"], found["anchored"]) == (INTACT, 3)


def test_the_help_names_the_exit_codes(empty: Trail) -> None:
    text = " ".join(empty.run("verify", "--help").stdout.split())
    assert "Exits with 1 if entries, seals or records were changed, or the store lacks" in text
    assert "Exits with 3 if the trail is unproven" in text


def test_a_store_without_seals_proves_nothing(trail: Trail) -> None:
    trail.without_store().run("seal")
    assert trail.verify()["exit_code"] == UNPROVEN
    trail.run("seal")
    assert trail.verify()["exit_code"] == INTACT


def test_a_store_that_cannot_be_read_is_not_an_empty_store(sealed_trail: Trail) -> None:
    elsewhere = Trail(sealed_trail.url, (sealed_trail.store or Path()) / "not-mounted")
    for verb in ("verify", "seal"):
        result = elsewhere.run(verb)
        assert (result.exit_code, "does not exist: create it" in result.stderr) == (1, True)


# --- erasures and retention


def test_an_erasure_with_its_receipt_is_proven(sealed_trail: Trail) -> None:
    sealed_trail.erase()
    found = sealed_trail.verify()
    assert [each["state"] for each in found["ranges"]][:4] == ["erased", "erased", "erased", "intact"]
    assert found["exit_code"] == INTACT
    [receipt] = [json.loads(file.read_text()) for file in (sealed_trail.store or Path()).glob("audit-receipts/*")]
    assert (receipt["kind"], receipt["erasure"], receipt["entries"]) == ("erasure", str(RECEIPT), 3)
    assert str(PERSON) not in json.dumps(receipt)


def test_an_erasure_before_the_seal_is_proven_too(trail: Trail) -> None:
    trail.erase()
    trail.run("seal")
    assert trail.states()[:4] == ["erased", "erased", "erased", "intact"]
    assert trail.verify()["exit_code"] == INTACT


def test_the_receipt_exists_before_the_erasure(sealed_trail: Trail, tmp_path: Path) -> None:
    """The store fails, so nothing is erased; a later run stores the receipt of the same plan and erases."""
    (tmp_path / "audit-receipts").write_text("a file where the folder should be")
    with pytest.raises(AssertionError):
        sealed_trail.erase()
    assert sealed_trail.execute(f"select count(*) from public.audit_logs where user_id = '{PERSON}'") == [(3,)]
    planned = "select id from app.audit_interventions where stored_at is null and happened_at is null"
    [[plan]] = sealed_trail.execute(planned)
    assert sealed_trail.verify()["exit_code"] == INTACT
    (tmp_path / "audit-receipts").unlink()
    sealed_trail.continue_erasure()
    assert sealed_trail.execute("select id from app.audit_interventions where happened_at is not null") == [(plan,)]
    assert sealed_trail.verify()["exit_code"] == INTACT


def test_a_crash_after_the_receipt_was_stored_loses_nothing(sealed_trail: Trail) -> None:
    """The receipt is in the store, but the process ended before the database knew. It is stored again, unchanged."""
    sealed_trail.begin_erasure()
    step = f"select public.continue_erasure('{RECEIPT}', has_store => true) -> 'receipt_to_store'"
    [[receipt]] = sealed_trail.execute(step)
    AuditStore((sealed_trail.store or Path()).as_uri()).put_receipt(receipt)
    assert sealed_trail.execute(step) == [(receipt,)]
    sealed_trail.continue_erasure()
    assert len(list((sealed_trail.store or Path()).glob("audit-receipts/*"))) == 1
    assert sealed_trail.verify()["exit_code"] == INTACT


def test_without_a_store_an_erasure_is_unproven(sealed_trail: Trail) -> None:
    """Also if a copy of a seal proves the rest."""
    alone = sealed_trail.without_store()
    kept = sealed_trail.seals()[-1]
    alone.erase()
    found = alone.verify("--seal", kept)
    assert (found["exit_code"], found["problems"]) == (UNPROVEN, [])
    assert [each["state"] for each in found["ranges"]][:4] == ["unproven", "unproven", "unproven", "intact"]


@pytest.mark.parametrize("is_sealed_first", [True, False])
@pytest.mark.parametrize("step", ["-1 day", "1 day"])
def test_erasures_of_one_entry_are_proven_even_if_the_clock_steps_back(
    trail: Trail, is_sealed_first: bool, step: str
) -> None:
    """The second erasure seems to happen before the first one, and before the third; the seal comes before or after them."""
    people = [PERSON, *(UUID(int=number, version=4) for number in (2, 3))]
    receipts = [RECEIPT, *(UUID(int=number, version=4) for number in (0xBB, 0xCC))]
    trail.execute(
        f"insert into public.audit_logs (user_id, subject_ids, action, resource_type, created_at) values "
        f"('{people[0]}', array['{people[1]}', '{people[2]}']::uuid[], 'project.created', 'project', now() - interval '1 hour')"
    )
    if is_sealed_first:
        trail.run("seal")
    for person, receipt in zip(people, receipts, strict=True):
        trail.erase(person, receipt)
    trail.execute(
        f"update app.audit_interventions set happened_at = happened_at + interval '{step}' where erasure = '{receipts[1]}'"
    )
    changed = trail.execute("select count(*) from app.audit_erasures group by entry_id having count(*) > 1")
    assert changed == [(3,)]
    trail.run("seal")
    found = trail.verify()
    assert (found["exit_code"], found["problems"]) == (INTACT, [])
    assert "erased" in [each["state"] for each in found["ranges"]]


def test_a_receipt_that_is_missing_in_the_store_is_a_problem(sealed_trail: Trail) -> None:
    sealed_trail.erase()
    for file in (sealed_trail.store or Path()).glob("audit-receipts/*"):
        file.unlink()
    [problem] = sealed_trail.list_problems()
    assert re.fullmatch(
        rf"The erasure {RECEIPT} \(3 entries, .*\) has no receipt in the store: it may be forged\."
        r" If it is from before BACKUP_URL was set, run `ballast audit accept`\.",
        problem,
    )


def test_erasures_from_before_the_store_can_be_accepted(sealed_trail: Trail) -> None:
    sealed_trail.without_store().erase()
    assert sealed_trail.verify()["exit_code"] == TAMPERED
    refused = sealed_trail.without_store().run("accept", "--reason", "x", "--yes")
    assert (refused.exit_code, "BACKUP_URL is not set" in refused.stderr) == (2, True)
    accepted = sealed_trail.run("accept", "--reason", "the store was added today", "--yes")
    assert accepted.stdout.endswith("Accepted.\n")
    assert sealed_trail.verify()["exit_code"] == INTACT
    assert sealed_trail.run("accept", "--reason", "again").stdout == "Nothing to accept.\n"
    sealed_trail.execute("update app.audit_interventions set retention = '1 day'")
    assert sealed_trail.verify()["exit_code"] == TAMPERED


def test_retention_with_its_receipts_is_proven(sealed_trail: Trail) -> None:
    kept = sealed_trail.seals()
    keep_from(sealed_trail, "2026-04-01")
    dropped = sealed_trail.run("maintain")
    assert [line for line in dropped.stdout.splitlines() if line.startswith("Dropped")] == [
        "Dropped app.audit_logs_2026_02",
        "Dropped app.audit_logs_2026_03",
    ]
    assert sealed_trail.states()[:3] == ["dropped", "dropped", "intact"]
    assert sealed_trail.list_problems("--seal", kept[0], "--seal", kept[2]) == []
    assert sealed_trail.verify()["exit_code"] == INTACT


def test_without_a_store_a_dropped_month_is_unproven(sealed_trail: Trail) -> None:
    alone = sealed_trail.without_store()
    keep_from(alone, "2026-04-01")
    alone.run("maintain")
    found = alone.verify()
    assert [each["state"] for each in found["ranges"]][:3] == ["unproven", "unproven", "intact"]
    assert found["exit_code"] == UNPROVEN


def test_a_month_is_dropped_only_after_its_receipt_is_stored(sealed_trail: Trail, tmp_path: Path) -> None:
    keep_from(sealed_trail, "2026-04-01")
    (tmp_path / "audit-receipts").write_text("a file where the folder should be")
    assert sealed_trail.run("maintain").exit_code == 1
    assert sealed_trail.execute("select count(*) from public.audit_logs") == [(30,)]
    (tmp_path / "audit-receipts").unlink()
    assert "Dropped app.audit_logs_2026_03" in sealed_trail.run("maintain").stdout
    assert sealed_trail.verify()["exit_code"] == INTACT


def test_a_month_that_is_not_sealed_is_sealed_before_it_is_dropped(trail: Trail) -> None:
    keep_from(trail, "2026-04-01")
    assert "Dropped app.audit_logs_2026_02" in trail.run("maintain").stdout
    trail.run("seal")
    assert trail.states()[:3] == ["dropped", "dropped", "intact"]


def test_an_entry_inserted_into_a_dropped_month_is_found(sealed_trail: Trail) -> None:
    keep_from(sealed_trail, "2026-04-01")
    sealed_trail.run("maintain")
    sealed_trail.execute(
        "insert into public.audit_logs (action, resource_type, created_at) values ('x.y', 'x', '2026-03-05')"
    )
    [problem] = sealed_trail.list_problems()
    assert "first broken range is 2" in problem
    assert "found 1" in problem


# --- what `postgres` can try


FORGED = f"""
    with victim as (select a.*, app.audit_hash(a) as original from public.audit_logs as a where {VICTIM}),
    changed as (
        update public.audit_logs as a set action = 'project.viewed' from victim as v where a.id = v.id
        returning a.id, a.created_at, v.original, app.audit_hash(a) as remaining
    ), intervention as (
        insert into app.audit_interventions (kind, erasure, range_start, range_end, entries, retention, contents, stored_at, happened_at)
        select 'erasure', '{RECEIPT}', c.created_at, c.created_at, 1, '400 days',
            sha256(uuid_send(c.id) || timestamptz_send(c.created_at) || c.original || c.remaining), now(), now()
        from changed as c returning id
    )
    insert into app.audit_erasures (entry_id, entry_created_at, original, remaining, intervention_id)
    select c.id, c.created_at, c.original, c.remaining, i.id from changed as c cross join intervention as i
"""
FORGED_DROP = (
    "insert into app.audit_interventions (kind, range_start, range_end, entries, retention, contents, stored_at, happened_at) "
    "select 'retention', '2026-03-01Z', '2026-04-01Z', 10, '31 days', sha256(string_agg(seal, '')), now(), now() "
    "from app.audit_seals where sequence = 2",
    "drop table app.audit_logs_2026_03",
)


@pytest.mark.parametrize("attack", [(FORGED,), FORGED_DROP], ids=["rewritten as an erasure", "dropped as retention"])
def test_a_forged_record_is_a_problem_with_a_store_and_unproven_without(
    sealed_trail: Trail, attack: tuple[str, ...]
) -> None:
    sealed_trail.execute(*attack)
    [problem] = sealed_trail.list_problems()
    assert "has no receipt in the store: it may be forged." in problem
    assert sealed_trail.without_store().verify()["exit_code"] == UNPROVEN
    assert sealed_trail.states()[1] == "unproven"
    sealed_trail.run("seal")
    assert sealed_trail.verify()["exit_code"] == TAMPERED


LEGAL = f"(select id from app.audit_interventions where erasure = '{RECEIPT}')"


@pytest.mark.parametrize(
    ("attack", "state"),
    [
        (f"delete from app.audit_interventions where id = {LEGAL}", "records broken"),
        (f"update app.audit_interventions set happened_at = null where id = {LEGAL}", "records broken"),
        (f"update app.audit_interventions set sealed_by = null where id = {LEGAL}", "records broken"),
        (f"update app.audit_interventions set entries = 2 where id = {LEGAL}", "records broken"),
        ("update app.audit_interventions set retention = '1 day'", "records broken"),
        ("delete from app.audit_erasures where entry_created_at < '2026-03-01'", "broken"),
        ("update app.audit_erasures set remaining = sha256('x')", "broken"),
    ],
)
def test_changed_records_of_an_erasure_are_found(sealed_trail: Trail, attack: str, state: str) -> None:
    sealed_trail.erase()
    assert sealed_trail.seal_later() > 0
    assert sealed_trail.verify()["exit_code"] == INTACT
    sealed_trail.execute(attack)
    assert state in sealed_trail.states()
    assert sealed_trail.verify()["exit_code"] == TAMPERED


@pytest.mark.parametrize("hashes", ["e.original, sha256('x')", "sha256('x'), e.remaining", "e.original, e.remaining"])
def test_erasures_of_one_entry_that_do_not_follow_each_other_are_found(sealed_trail: Trail, hashes: str) -> None:
    """A forged record begins or ends as the true erasure of the same entry does."""
    sealed_trail.erase()
    assert sealed_trail.without_store().states()[0] == "unproven"
    sealed_trail.execute(f"""
        with forged as (
            select e.entry_id, e.entry_created_at, gen_random_uuid() as id, f.original, f.remaining
            from (select * from app.audit_erasures order by entry_created_at limit 1) as e
            cross join lateral (values ({hashes})) as f (original, remaining)
        ), intervention as (
            insert into app.audit_interventions (id, kind, erasure, range_start, range_end, entries, retention, contents, happened_at)
            select f.id, 'erasure', f.id, f.entry_created_at, f.entry_created_at, 1, '400 days',
                sha256(uuid_send(f.entry_id) || timestamptz_send(f.entry_created_at) || f.original || f.remaining), now()
            from forged as f returning id
        )
        insert into app.audit_erasures (entry_id, entry_created_at, intervention_id, original, remaining)
        select f.entry_id, f.entry_created_at, i.id, f.original, f.remaining from forged as f join intervention as i on i.id = f.id
    """)
    assert sealed_trail.without_store().states()[0] == "broken"


def test_a_rewritten_entry_cannot_hide_in_a_true_erasure(sealed_trail: Trail) -> None:
    """The rows of an erasure that has its receipt are extended by one."""
    sealed_trail.erase()
    sealed_trail.execute(
        f"with victim as (select a.id, app.audit_hash(a) as original from public.audit_logs as a where {VICTIM}), "
        "changed as (update public.audit_logs as a set action = 'x.y' from victim as v where a.id = v.id "
        "returning a.id, a.created_at, v.original, app.audit_hash(a) as remaining) "
        f"insert into app.audit_erasures select c.id, c.created_at, {LEGAL}, c.original, c.remaining from changed as c"
    )
    assert any("does not describe the entries that it claims" in problem for problem in sealed_trail.list_problems())


RESEALED = "select app.seal_audit()"


@pytest.mark.parametrize(
    "attack",
    [
        ("delete from app.audit_seals where sequence = (select max(sequence) from app.audit_seals)",),
        ("truncate app.audit_seals cascade",),
        (f"update public.audit_logs set action = 'x.y' where {VICTIM}", "delete from app.audit_seals", RESEALED),
        (f"delete from public.audit_logs where {VICTIM}", "delete from app.audit_seals where sequence > 1", RESEALED),
        ("truncate public.audit_logs", "delete from app.audit_seals", RESEALED),
    ],
    ids=["newest removed", "all removed", "rewritten and sealed again", "cut and sealed again", "emptied"],
)
def test_a_chain_that_lost_a_stored_seal_is_found(sealed_trail: Trail, attack: tuple[str, ...]) -> None:
    sealed_trail.execute(*attack)
    assert any(
        " are not in the chain: seals were removed or rewritten" in each for each in sealed_trail.list_problems()
    )
    if attack[-1] == RESEALED:
        refused = sealed_trail.run("seal")
        assert (refused.exit_code, "No seal was stored" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    "attack",
    [
        ("truncate public.audit_logs",),
        ("alter table public.audit_logs detach partition app.audit_logs_2026_03",),
        ("drop table app.audit_logs_2026_03",),
        (
            "alter table public.audit_logs disable trigger append_only",
            f"update public.audit_logs set metadata = '{{}}', resource_id = 'x' where {VICTIM}",
        ),
        (f"update public.audit_logs set subject_ids = array['{PERSON}'::uuid] where {VICTIM}",),
    ],
    ids=["emptied", "a month detached", "a month dropped", "rewritten", "about another person"],
)
def test_changes_of_the_table_are_found(sealed_trail: Trail, attack: tuple[str, ...]) -> None:
    sealed_trail.execute(*attack)
    assert "The first broken range is " in sealed_trail.list_problems()[0]


def test_replaced_functions_hide_nothing(sealed_trail: Trail) -> None:
    sealed_trail.execute(
        "create or replace function app.audit_hash(entry public.audit_logs) returns bytea language sql immutable as "
        "$$ select case when entry.resource_id = '2026-03-04' then sha256('x') else sha256('y') end $$",
        f"update public.audit_logs set action = 'x.y' where {VICTIM}",
        f"alter role postgres in database {conninfo_to_dict(sealed_trail.url)['dbname']} set search_path = app, public",
    )
    assert "The first broken range is 2" in sealed_trail.list_problems()[0]


def test_a_view_in_place_of_the_table_is_found(sealed_trail: Trail) -> None:
    sealed_trail.execute(
        "alter table public.audit_logs rename to hidden",
        "create view public.audit_logs as select * from public.hidden where false",
    )
    assert "public.audit_logs is not the table that Ballast created" in sealed_trail.list_problems()[0]


def test_a_shorter_retention_is_shown(sealed_trail: Trail) -> None:
    """It is allowed, so it is no problem. But it is named, with what was dropped."""
    sealed_trail.execute("update app.settings set audit_retention = '31 days'")
    sealed_trail.run("maintain")
    assert sealed_trail.seal_later() > 0
    result = sealed_trail.run("verify")
    assert result.exit_code == INTACT, result.output
    assert re.search(r"The drop of 2026-03 \(10 entries, .*\) followed a retention period of 31 days\.", result.stdout)
    assert re.search(r"The retention period changed from 36525 to 31 days before seal \d+", result.stdout)


def test_what_comes_after_the_newest_stored_seal_can_be_rewritten(sealed_trail: Trail) -> None:
    """docs/audit.md says so, and the output names the seal."""
    anchored = sealed_trail.verify()["anchored"]
    sealed_trail.execute("insert into public.audit_logs (action, resource_type) values ('project.deleted', 'project')")
    sealed_trail.execute("delete from public.audit_logs where action = 'project.deleted'")
    assert sealed_trail.verify()["exit_code"] == INTACT
    shown = sealed_trail.run("verify").stdout
    assert f"The newest seal that is stored outside the database is {anchored}, " in shown
    assert shown.endswith("`postgres` can recompute what comes after it.\n")


# --- restores


def test_after_a_restore_an_operator_accepts_the_stored_seals_that_it_cut(
    sealed_trail: Trail, new_database: Callable[..., str]
) -> None:
    restored = Trail(new_database(sealed_trail.url), sealed_trail.store)
    sealed_trail.seal_later()
    assert sealed_trail.verify()["exit_code"] == INTACT
    restored.execute("insert into public.audit_logs (action, resource_type) values ('x.y', 'x')")
    assert restored.seal_later(store=False) > 0
    assert "a backup was restored" in restored.list_problems()[0]
    assert restored.run("seal").exit_code == 1
    accepted = restored.run("accept", "--reason", "restored after a crash", "--yes")
    assert accepted.exit_code == 0, accepted.output
    assert restored.run("seal").exit_code == 0
    found = restored.verify()
    assert (found["exit_code"], found["anchored"]) == (INTACT, len(found["ranges"]))
    [file] = (restored.store or Path()).glob("audit-accepted/*")
    assert json.loads(file.read_text())["reason"] == "restored after a crash"
    # What was accepted is named: the next cut is found again.
    restored.execute("delete from app.audit_seals where sequence = (select max(sequence) from app.audit_seals)")
    assert restored.verify()["exit_code"] == TAMPERED


def test_changed_entries_cannot_be_accepted(sealed_trail: Trail) -> None:
    sealed_trail.execute(f"update public.audit_logs set action = 'x.y' where {VICTIM}")
    assert sealed_trail.run("accept", "--reason", "x", "--yes").stdout == "Nothing to accept.\n"
    assert sealed_trail.verify()["exit_code"] == TAMPERED


# --- partitions and output


def test_maintenance_creates_missing_partitions(empty: Trail) -> None:
    empty.execute("insert into public.audit_logs (action, resource_type, created_at) values ('x.y', 'x', '2026-05-31')")
    made = empty.run("maintain")
    assert made.exit_code == 0, made.output
    assert "Created app.audit_logs_2026_05" in made.stdout
    assert empty.run("maintain").stdout.startswith("Nothing to do")
    assert json.loads(empty.run("maintain", "--json").stdout) == {"made": [], "dropped": []}


def test_verification_has_a_json_form(sealed_trail: Trail) -> None:
    verified = json.loads(sealed_trail.run("verify", "--json").stdout)
    assert list(verified) == [
        "problems", "unproven", "anchored", "ranges", "interventions", "unsealed", "too_old", "replaced",
    ]  # fmt: skip
    assert list(verified["ranges"][0]) == [
        "sequence", "range_start", "range_end", "sealed", "found", "erased", "retention_days", "state", "seal",
    ]  # fmt: skip


def test_an_invalid_seal_is_a_usage_error(empty: Trail) -> None:
    result = empty.run("verify", "--seal", "abc")
    assert result.exit_code == 2
    assert "64 hexadecimal digits" in result.stderr


@pytest.mark.parametrize("verb", ["seal", "verify", "maintain"])
def test_a_database_without_an_audit_trail_gets_advice(new_database: Callable[..., str], verb: str) -> None:
    result = Trail(new_database(), None).run(verb)
    assert result.exit_code == 1
    assert "ballast migrate up" in result.stderr


def keep_from(trail: Trail, day: str) -> None:
    """Sets the retention period so that entries before this day may be dropped."""
    trail.execute(f"update app.settings set audit_retention = greatest(now() - '{day} 12:00Z'::timestamptz, '31 days')")
