"""`ballast audit`: finds and names every change of the sealed trail by a superuser, but permits erasures and retention."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast

PERSON = UUID("00000000-0000-4000-8000-000000000001")
ERASE = (
    f"select app.erase_audit_entries(('{PERSON}', 'user_erased', '{{}}')::app.person,"
    " jsonb_agg(jsonb_build_array(a.id, a.created_at)))"
    f" from public.audit_logs as a where a.user_id = '{PERSON}' or a.subject_ids @> array['{PERSON}'::uuid]"
)
# The fourth entry of March, the month in the middle; its seal is the second of five.
VICTIM = "id = (select id from public.audit_logs where resource_id = '2026-03-04')"


@dataclass(frozen=True)
class Trail:
    """Runs the command on a separate migrated database with an audit trail."""

    url: str

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(ballast, ["audit", *arguments], env={"DATABASE_URL": self.url})

    def execute(self, statement: str) -> list[Any]:
        """Executes a statement as a superuser: no trigger stops it."""
        with psycopg.connect(self.url.replace("//postgres:", "//supabase_admin:"), autocommit=True) as connection:
            connection.execute("set session_replication_role = replica")
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def seals(self) -> list[str]:
        """Seals the unsealed entries, and returns all seals in hex."""
        self.run("seal")
        return [seal for (seal,) in self.execute("select encode(seal, 'hex') from app.audit_seals order by sequence")]

    def list_problems(self, *arguments: str) -> list[str]:
        result = self.run("verify", "--json", *arguments)
        problems: list[str] = json.loads(result.stdout)["problems"]
        assert result.exit_code == bool(problems)
        return problems

    def states(self) -> list[str]:
        return [each["state"] for each in json.loads(self.run("verify", "--json").stdout)["ranges"]]


@pytest.fixture
def empty(migrated_database: str, new_database: Callable[..., str]) -> Trail:
    """An empty trail with unlimited retention."""
    trail = Trail(new_database(migrated_database))
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
    assert lines[1][:3] == ["2", "2026-03-01 00:00:00Z to 2026-04-01 00:00:00Z", "10 entries"]
    assert [seal for *_, seal in lines] == trail.seals()[: len(lines)]
    assert "Store them elsewhere" in result.stderr


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


def test_a_copy_proves_that_the_chain_was_rewritten(sealed_trail: Trail) -> None:
    _, kept, *_ = sealed_trail.seals()
    assert sealed_trail.list_problems("--seal", kept.upper()) == []
    sealed_trail.execute(f"update public.audit_logs set action = 'project.deleted' where {VICTIM}")
    sealed_trail.execute("delete from app.audit_seals")
    first, second, *_ = sealed_trail.seals()
    assert second != kept
    assert sealed_trail.list_problems("--seal", first) == []
    [problem] = sealed_trail.list_problems("--seal", first, "--seal", kept)
    assert problem.startswith(f"The seal {kept} is not in the chain")


def test_a_copy_proves_that_the_last_seal_was_removed(sealed_trail: Trail) -> None:
    *_, kept = sealed_trail.seals()
    sealed_trail.execute("delete from app.audit_seals where sequence = (select max(sequence) from app.audit_seals)")
    assert sealed_trail.list_problems() == []
    assert len(sealed_trail.list_problems("--seal", kept)) == 1


def test_an_erasure_is_not_reported_as_tampering(sealed_trail: Trail) -> None:
    assert sealed_trail.execute(ERASE) == [(3,)]
    assert sealed_trail.list_problems() == []
    assert sealed_trail.states()[:4] == ["erased", "erased", "erased", "intact"]
    assert sealed_trail.run("verify").exit_code == 0


def test_tampering_with_an_erased_entry_is_found(sealed_trail: Trail) -> None:
    sealed_trail.execute(ERASE)
    sealed_trail.execute("update public.audit_logs set action = 'project.deleted' where resource_id = '2026-03-01'")
    assert sealed_trail.states()[:4] == ["erased", "broken", "erased", "intact"]


def test_retention_is_not_reported_as_tampering(sealed_trail: Trail) -> None:
    kept = sealed_trail.seals()
    keep_from(sealed_trail, "2026-04-01")
    dropped = sealed_trail.run("maintain")
    assert [line for line in dropped.stdout.splitlines() if line.startswith("Dropped")] == [
        "Dropped app.audit_logs_2026_02",
        "Dropped app.audit_logs_2026_03",
    ]
    assert sealed_trail.states()[:3] == ["dropped", "dropped", "intact"]
    assert sealed_trail.list_problems("--seal", kept[0], "--seal", kept[2]) == []


def test_an_entry_inserted_into_a_dropped_month_is_found(sealed_trail: Trail) -> None:
    keep_from(sealed_trail, "2026-04-01")
    sealed_trail.run("maintain")
    sealed_trail.execute(
        "insert into public.audit_logs (action, resource_type, created_at) values ('x.y', 'x', '2026-03-05')"
    )
    [problem] = sealed_trail.list_problems()
    assert "first broken range is 2" in problem
    assert "found 1" in problem


def test_maintenance_creates_missing_partitions(empty: Trail) -> None:
    empty.execute("insert into public.audit_logs (action, resource_type, created_at) values ('x.y', 'x', '2026-05-31')")
    made = empty.run("maintain")
    assert made.exit_code == 0, made.output
    assert "Created app.audit_logs_2026_05" in made.stdout
    assert empty.run("maintain").stdout.startswith("Nothing to do")
    assert json.loads(empty.run("maintain", "--json").stdout) == {"made": [], "dropped": []}


def test_verification_has_a_json_form(sealed_trail: Trail) -> None:
    verified = json.loads(sealed_trail.run("verify", "--json").stdout)
    assert list(verified) == ["problems", "ranges", "unsealed", "too_old", "unknown_seals"]
    assert list(verified["ranges"][0]) == [
        "sequence", "range_start", "range_end", "sealed", "found", "erased", "state", "seal",
    ]  # fmt: skip


def test_an_invalid_seal_is_a_usage_error(empty: Trail) -> None:
    result = empty.run("verify", "--seal", "abc")
    assert result.exit_code == 2
    assert "64 hexadecimal digits" in result.stderr


@pytest.mark.parametrize("verb", ["seal", "verify", "maintain"])
def test_a_database_without_an_audit_trail_gets_advice(new_database: Callable[..., str], verb: str) -> None:
    result = Trail(new_database()).run(verb)
    assert result.exit_code == 1
    assert "ballast migrate up" in result.stderr


def keep_from(trail: Trail, day: str) -> None:
    """Sets the retention period so that entries before this day may be dropped."""
    trail.execute(f"update app.settings set audit_retention = greatest(now() - '{day} 12:00Z'::timestamptz, '31 days')")
