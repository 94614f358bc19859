"""The log of backups: who may write it, what it records about runs and drills, and when its health view warns."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from service.backup_names import new_name
from tests.conftest import Database

LOCK = 733140620
CHECKSUM = "0f" * 32
Connect = Callable[[], psycopg.Connection[Any]]


def call(database: Database, function: str, **arguments: object) -> Any:
    """Calls a function as the service does."""
    named = ", ".join(f"{name} => %s" for name in arguments)
    with database.acting("service_role", {"role": "service_role"}):
        return database.value(f"select public.{function}({named})", *arguments.values())


def begin(database: Database, backup_type: str = "automated") -> UUID:
    backup = uuid4()
    call(database, "begin_backup", id=backup, filename=f"database/{backup}", backup_type=backup_type)
    return backup


def end(database: Database, backup: UUID, status: str = "completed", **more: object) -> None:
    call(database, "end_backup", id=backup, status=status, **more)


def drill(database: Database, backup: UUID, **report: object) -> None:
    described = {
        "id": str(backup), "filename": f"database/{backup}", "backup_type": "automated", "size_bytes": 1000, "checksum": CHECKSUM,
        "created_at": "2026-11-24T02:00:00Z",
    }  # fmt: skip
    call(database, "record_drill", backup=json.dumps(described), report=json.dumps({"passed": True} | report))


def row(database: Database, backup: UUID, *columns: str) -> tuple[Any, ...]:
    (found,) = database.rows(f"select {', '.join(columns)} from public.backup_logs where id = %s", backup)
    return found


def make_older(database: Database, backup: UUID, age: str, column: str = "created_at") -> None:
    database.execute(f"update public.backup_logs set {column} = now() - %s::interval where id = %s", age, backup)


def health(database: Database, *columns: str) -> tuple[Any, ...]:
    (found,) = database.rows(f"select {', '.join(columns)} from ops.backup_health")
    return found


@pytest.fixture
def hold_lock(connect: Connect) -> Callable[[int], psycopg.Connection[Any]]:
    """Opens a transaction that holds the lock of that number."""

    def hold(lock: int) -> psycopg.Connection[Any]:
        connection = connect()
        connection.execute("begin isolation level repeatable read read only")
        assert connection.execute("select pg_try_advisory_xact_lock(%s)", [lock]).fetchone() == (True,)
        return connection

    return hold


# --- privileges


@pytest.mark.parametrize("function", [
    "backup_is_running()", "request_backup(gen_random_uuid(), 'manual')", "begin_backup(gen_random_uuid(), 'x', 'manual')",
    "end_backup(gen_random_uuid(), 'failed')", "record_drill('{}', '{}')", "backups()",
])  # fmt: skip
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_only_the_service_can_call_the_functions(database: Database, role: str, function: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting(role, {"sub": "user_ada", "role": role}):
        database.execute(f"select public.{function}")


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize("place", ["public.backup_logs", "ops.backup_health"])
def test_no_api_role_can_read_the_log_itself(database: Database, role: str, place: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting(role, {"role": role}):
        database.execute(f"select from {place}")


# --- runs


def test_a_backup_is_running_while_a_session_holds_the_lock(
    database: Database, hold_lock: Callable[[int], psycopg.Connection[Any]]
) -> None:
    assert call(database, "backup_is_running") is False
    with hold_lock(LOCK):
        assert call(database, "backup_is_running") is True
    assert call(database, "backup_is_running") is False


@pytest.mark.parametrize("lock", [LOCK + 1, LOCK + 2**32])
def test_another_lock_does_not_count_as_a_run(
    database: Database, hold_lock: Callable[[int], psycopg.Connection[Any]], lock: int
) -> None:
    with hold_lock(lock):
        assert call(database, "backup_is_running") is False


def test_a_run_in_another_database_does_not_count(database: Database, server: Any) -> None:
    with psycopg.connect(server.url().rpartition("/")[0] + "/template1", autocommit=True) as elsewhere:
        elsewhere.execute("select pg_advisory_lock(%s)", [LOCK])
        assert call(database, "backup_is_running") is False


def request(database: Database) -> dict[str, Any] | None:
    answer: dict[str, Any] | None = call(database, "request_backup", id=uuid4(), backup_type="manual")
    return answer


def test_a_request_returns_the_new_row(database: Database) -> None:
    requested = request(database)
    assert requested is not None
    assert list(requested) == ["id", "status", "filename", "created_at", "backup_type"]
    assert requested["status"] == "started"
    now, backup = database.value("select now()"), UUID(requested["id"])
    assert row(database, backup, "filename", "backup_type", "status") == (
        f"database/{new_name(backup, now)}", "manual", "started",
    )  # fmt: skip


def test_a_request_returns_null_while_a_backup_is_running(
    database: Database, hold_lock: Callable[[int], psycopg.Connection[Any]]
) -> None:
    with hold_lock(LOCK):
        assert request(database) is None
    assert database.value("select count(*) from public.backup_logs") == 0


def test_only_the_first_of_two_requests_in_ten_seconds_succeeds(database: Database) -> None:
    first = request(database)
    assert first is not None
    assert request(database) is None
    make_older(database, UUID(first["id"]), "11 seconds")  # its process never took the lock
    assert request(database) is not None


def test_a_crashed_backup_that_is_dated_in_the_future_blocks_no_request(database: Database) -> None:
    make_older(database, begin(database), "-2 days")
    assert request(database) is not None


def test_a_backup_that_has_just_ended_does_not_block_a_request(database: Database) -> None:
    end(database, begin(database), "failed")
    assert request(database) is not None


def test_a_run_uses_the_row_that_the_service_created(database: Database) -> None:
    requested = request(database)
    assert requested is not None
    call(database, "begin_backup", **{name: requested[name] for name in ("id", "filename", "backup_type")})
    assert row(database, UUID(requested["id"]), "status", "backup_type") == ("started", "manual")
    assert database.value("select count(*) from public.backup_logs") == 1


def test_the_next_run_marks_a_crashed_one_as_interrupted(database: Database) -> None:
    crashed, finished = begin(database), begin(database)
    end(database, finished)
    following = begin(database)
    columns = ("status", "finished_at is not null", "error_message")
    assert row(database, crashed, *columns) == (
        "interrupted",
        True,
        "The backup process exited without reporting a result.",
    )
    assert row(database, finished, *columns) == ("completed", True, None)
    assert row(database, following, *columns) == ("started", False, None)


def test_a_run_that_was_marked_interrupted_by_mistake_can_still_begin_and_end(database: Database) -> None:
    late = begin(database)
    begin(database)
    call(database, "begin_backup", id=late, filename=f"database/{late}", backup_type="automated")
    assert row(database, late, "status", "finished_at", "error_message") == ("started", None, None)
    begin(database)
    end(database, late)
    assert row(database, late, "status") == ("completed",)


def test_the_result_is_recorded_with_size_and_checksum(database: Database) -> None:
    backup = begin(database)
    end(database, backup, size_bytes=2**40, checksum=CHECKSUM)
    columns = ("status", "size_bytes", "checksum", "error_message", "finished_at is not null")
    assert row(database, backup, *columns) == ("completed", 2**40, CHECKSUM, None, True)


@pytest.mark.parametrize(("first", "second"), [("completed", "failed"), ("failed", "completed")])
def test_the_first_result_wins(database: Database, first: str, second: str) -> None:
    backup = begin(database)
    end(database, backup, first, error_message="The first.")
    make_older(database, backup, "1 hour", "finished_at")
    before = row(database, backup, "status", "error_message", "finished_at")
    end(database, backup, second, error_message="The second.")
    end(database, backup, first, error_message="The third.")
    assert row(database, backup, "status", "error_message", "finished_at") == before


def test_a_failed_backup_cannot_begin_again(database: Database) -> None:
    backup = begin(database)
    end(database, backup, "failed", error_message="The disk is full.")
    call(database, "begin_backup", id=backup, filename=f"database/{backup}", backup_type="automated")
    assert row(database, backup, "status", "error_message") == ("failed", "The disk is full.")


def test_a_long_error_message_is_truncated(database: Database) -> None:
    backup = begin(database)
    end(database, backup, "failed", error_message="ü" * 501)
    assert row(database, backup, "error_message") == ("ü" * 500,)


@pytest.mark.parametrize("status", ["started", "interrupted", "", None])
def test_the_result_must_be_completed_or_failed(database: Database, status: str | None) -> None:
    backup = begin(database)
    with pytest.raises(psycopg.Error, match="completed or failed"), database.connection.transaction():
        call(database, "end_backup", id=backup, status=status)


def test_two_backups_cannot_have_the_same_name(database: Database) -> None:
    call(database, "begin_backup", id=uuid4(), filename="database/a", backup_type="manual")
    with pytest.raises(psycopg.errors.UniqueViolation):
        call(database, "begin_backup", id=uuid4(), filename="database/a", backup_type="manual")


# --- drills


def test_a_drill_is_recorded_with_its_backup(database: Database) -> None:
    backup = begin(database)
    end(database, backup, size_bytes=5, checksum="aa" * 32)
    drill(database, backup, passed=False, checks=[{"name": "counts", "passed": False}])
    report = {"passed": False, "checks": [{"name": "counts", "passed": False}]}
    columns = ("status", "size_bytes", "checksum", "drilled_at = now()", "drill_passed", "drill_report")
    assert row(database, backup, *columns) == ("completed", 5, "aa" * 32, True, False, report)
    drill(database, backup)
    assert row(database, backup, *columns) == ("completed", 5, "aa" * 32, True, True, {"passed": True})


def test_a_drill_adds_the_missing_row_of_a_backup(database: Database) -> None:
    backup = uuid4()
    drill(database, backup, rto_seconds=40)
    columns = (
        "filename",
        "backup_type",
        "status",
        "size_bytes",
        "checksum",
        "created_at = '2026-11-24 02:00Z'",
        "finished_at",
    )
    assert row(database, backup, *columns) == (
        f"database/{backup}", "automated", "completed", 1000, CHECKSUM, True, None,
    )  # fmt: skip


@pytest.mark.parametrize("recorded", ["started", "interrupted", "failed"])
def test_a_backup_that_passed_a_drill_is_completed_whatever_its_row_says(database: Database, recorded: str) -> None:
    backup = begin(database)
    database.execute(
        "update public.backup_logs set status = %s, error_message = 'No answer.' where id = %s", recorded, backup
    )
    columns = ("status", "size_bytes", "checksum", "error_message", "drill_passed")
    drill(database, backup, passed=False)
    assert row(database, backup, *columns) == (recorded, None, None, "No answer.", False)
    drill(database, backup)
    assert row(database, backup, *columns) == ("completed", 1000, CHECKSUM, None, True)


def test_a_report_without_passed_true_counts_as_failed(database: Database) -> None:
    backup = uuid4()
    for passed in (None, "true", 1):
        drill(database, backup, passed=passed)
        assert row(database, backup, "drill_passed") == (False,)


# --- reading


def test_backups_are_listed_newest_first(database: Database) -> None:
    assert call(database, "backups") == []
    old, crashed, new = begin(database), begin(database), begin(database)
    make_older(database, old, "2 days")
    make_older(database, crashed, "1 day")
    end(database, new, size_bytes=7, checksum=CHECKSUM)
    drill(database, new)
    database.execute(
        "update public.backup_logs set finished_at = created_at + interval '90 seconds' where id = %s", new
    )
    listed = call(database, "backups")
    assert [each["id"] for each in listed] == [str(new), str(crashed), str(old)]
    assert [each["duration_seconds"] for each in listed] == [90, None, None]
    assert call(database, "backups", newest=1) == listed[:1]
    expected = {
        "id": str(new), "filename": f"database/{new}", "backup_type": "automated", "status": "completed", "size_bytes": 7,
        "checksum": CHECKSUM, "error_message": None, "drill_passed": True, "duration_seconds": 90,
    }  # fmt: skip
    assert listed[0].keys() == expected.keys() | {"created_at", "drilled_at"}
    assert expected.items() <= listed[0].items()


# --- health


def verdict(database: Database) -> str:
    status, advice = health(database, "status", "advice")
    assert advice.endswith(".")
    return str(status)


@pytest.fixture
def proven_backup(database: Database) -> UUID:
    """A backup from an hour ago that passed a drill half an hour ago."""
    backup = begin(database)
    end(database, backup, size_bytes=1000, checksum=CHECKSUM)
    drill(database, backup, rto_seconds=40.5)
    make_older(database, backup, "1 hour")
    make_older(database, backup, "30 minutes", "drilled_at")
    return backup


def test_health_is_red_without_a_backup_and_advises_to_run_one(database: Database) -> None:
    columns = (
        "last_success_at",
        "rpo_now",
        "rpo_target::text",
        "rto",
        "last_failure",
        "running_since",
        "status",
        "advice",
    )
    assert health(database, *columns) == (
        None, None, "24:00:00", None, None, None, "red", "There is no backup: run `ballast backup run` now.",
    )  # fmt: skip


def test_health_is_green_after_a_recent_backup_and_drill(database: Database, proven_backup: UUID) -> None:
    database.execute("update public.backup_logs set finished_at = created_at + interval '20 seconds'")
    columns = (
        "last_filename",
        "size_bytes",
        "duration::text",
        "rpo_now::text",
        "last_drill_passed",
        "rto::text",
        "last_failure_at",
    )
    assert health(database, *columns) == (
        f"database/{proven_backup}", 1000, "00:00:20", "01:00:00", True, "00:00:40.5", None,
    )  # fmt: skip
    assert health(database, "status", "advice") == ("green", "OK.")


@pytest.mark.parametrize(
    ("age", "colour"),
    [("24 hours", "green"), ("24 hours 1 second", "yellow"), ("26 hours", "yellow"), ("26 hours 1 second", "red")],
)
def test_health_is_yellow_if_a_backup_is_late_and_red_two_hours_later(
    database: Database, proven_backup: UUID, age: str, colour: str
) -> None:
    make_older(database, proven_backup, age)
    assert verdict(database) == colour


def test_health_is_red_if_the_only_backup_is_dated_in_the_future(database: Database, proven_backup: UUID) -> None:
    make_older(database, proven_backup, "-2 days")
    assert health(database, "status") == ("red",)
    assert "dated in the future" in health(database, "advice")[0]


def test_health_reports_a_drill_that_is_dated_in_the_future_or_has_no_result(
    database: Database, proven_backup: UUID
) -> None:
    make_older(database, proven_backup, "-2 days", "drilled_at")
    assert health(database, "status") == ("yellow",)
    assert "drill is dated in the future" in health(database, "advice")[0]
    database.execute("update public.backup_logs set drilled_at = now(), drill_passed = null")
    assert health(database, "status") == ("red",)


def test_health_ignores_a_backup_that_is_dated_in_the_future_if_there_is_another(
    database: Database, proven_backup: UUID
) -> None:
    end(database, future := begin(database))
    make_older(database, future, "-2 days")
    make_older(database, proven_backup, "3 days")
    assert health(database, "status", "last_filename") == ("red", f"database/{proven_backup}")
    assert "too old" in health(database, "advice")[0]


def test_health_reports_a_backup_that_has_been_running_for_hours(database: Database, proven_backup: UUID) -> None:
    make_older(database, begin(database), "7 hours")
    database.execute("select pg_advisory_xact_lock(%s)", LOCK)
    status, advice = health(database, "status", "advice")
    assert (status, "running for more than 6 hours" in advice) == ("yellow", True)


def test_health_uses_the_targets_of_app_settings(database: Database, proven_backup: UUID) -> None:
    database.execute("update app.settings set backup_rpo = '30 minutes'")
    assert verdict(database) == "yellow"
    database.execute("update app.settings set backup_rpo = '4 hours', drill_every = '1 hour'")
    make_older(database, proven_backup, "1 day 2 hours", "drilled_at")
    assert verdict(database) == "yellow"
    with pytest.raises(psycopg.errors.CheckViolation), database.connection.transaction():
        database.execute("update app.settings set backup_rpo = '0'")


@pytest.mark.parametrize(("age", "colour"), [("8 days", "green"), ("8 days 1 second", "yellow")])
def test_health_is_yellow_if_a_drill_is_a_day_late(
    database: Database, proven_backup: UUID, age: str, colour: str
) -> None:
    make_older(database, proven_backup, age, "drilled_at")
    assert verdict(database) == colour


def test_health_is_yellow_without_a_drill(database: Database) -> None:
    end(database, begin(database))
    assert verdict(database) == "yellow"


def test_health_uses_the_newest_drill_of_any_backup(database: Database, proven_backup: UUID) -> None:
    end(database, newer := begin(database))
    assert verdict(database) == "green"
    drill(database, newer, passed=False, rto_seconds="unknown")
    assert health(database, "status", "last_drill_passed", "rto") == ("red", False, None)
    drill(database, newer)
    assert verdict(database) == "green"


@pytest.mark.parametrize("how", ["failed", "interrupted", "still marked started"])
def test_health_is_yellow_after_a_failure_since_the_last_backup(
    database: Database, proven_backup: UUID, how: str
) -> None:
    backup = begin(database)
    if how == "failed":
        end(database, backup, "failed", error_message="The store answered 403.")
    elif how == "interrupted":
        database.execute("update public.backup_logs set status = 'interrupted' where id = %s", backup)
    make_older(database, backup, "2 minutes")
    reason = "The store answered 403." if how == "failed" else "The backup process exited without reporting a result."
    assert health(database, "status", "last_failure") == ("yellow", reason)
    end(database, begin(database))
    assert verdict(database) == "green"


def test_a_long_run_is_not_a_failure(
    database: Database, proven_backup: UUID, hold_lock: Callable[[int], psycopg.Connection[Any]]
) -> None:
    backup = begin(database)
    make_older(database, backup, "20 minutes")
    with hold_lock(LOCK):
        assert health(database, "status", "(now() - running_since)::text", "last_failure_at") == (
            "green",
            "00:20:00",
            None,
        )
    assert health(database, "status", "running_since") == ("yellow", None)
