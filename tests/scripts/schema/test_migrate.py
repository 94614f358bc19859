"""`ballast migrate`: what it applies, what it refuses, and that the Supabase CLI agrees with it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast
from scripts.schema import drift, history, locks, migrations, sql_files
from scripts.schema.database import DatabaseUnreachable, RowsHidden, StatementRefused, connect
from scripts.schema.history import FileState, HistoryDisagrees
from scripts.schema.locks import DeploymentLockLost, Locks, LockUnavailable
from scripts.schema.migrations import Plan, RoleUnfit, StatementFailed
from scripts.schema.sql_files import FilesInvalid
from scripts.scratch.postgres import Postgres
from scripts.scratch.server import scratch_server
from tests.schema import remove

ROOT = Path(__file__).parents[3]

FOUNDATION = """\
-- Like the real one: it's closed by default; app.applied_sources records the sources.
alter default privileges revoke execute on functions from public;
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
create schema app; create schema ops;
create table app.applied_sources (path text primary key, checksum text not null, applied_at timestamptz not null);
create table public.notes (id int primary key, body text default 'a;b');
alter table public.notes enable row level security, force row level security;
"""
CALLER = """\
-- The caller.
create or replace function app.caller() returns text language sql stable
begin atomic
  select current_user::text;
end;
grant execute on function app.caller() to authenticated, service_role;
create or replace view ops.note_count as select count(*) from public.notes;
"""
ROWS = """\
create or replace function app.touch() returns trigger language plpgsql as $$ begin return new; end $$;
create or replace trigger touch before update on public.notes for each row execute function app.touch();
"""
NOTES = """\
grant select on public.notes to authenticated;
grant insert (body) on public.notes to authenticated;
create policy "read all" on public.notes for select to authenticated using (true);
"""


@dataclass(frozen=True)
class Project:
    """A checkout with its own database."""

    root: Path
    url: str

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())

    def write_files(self) -> None:
        self.write("migrations/20260101000000_foundation.sql", FOUNDATION)
        self.write("functions/10_caller.sql", CALLER)
        self.write("functions/20_rows.sql", ROWS)
        self.write("policies/notes.sql", NOTES)

    def up(self, **options: Any) -> Plan:
        return migrations.up(self.url, root=self.root, **options)

    def check(self) -> list[tuple[str, str, str]]:
        return [tuple(found) for found in drift.check(self.url, root=self.root)[1]]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def grants(self) -> set[str]:
        with psycopg.connect(self.url) as connection:
            grants = {found.name for found in drift.read_objects(connection) if found.kind == "grant"}
        # A default of the embedded Data API: see bootstrap.sql.
        return {grant for grant in grants if not grant.endswith("to authenticator")}

    def history(self) -> list[tuple[Any, ...]]:
        return self.query("select version, name, statements from supabase_migrations.schema_migrations order by 1")


@pytest.fixture
def empty(new_database: Callable[..., str], tmp_path: Path) -> Project:
    return Project(tmp_path, new_database())


@pytest.fixture
def project(empty: Project) -> Project:
    """A project that is not applied yet."""
    empty.write_files()
    return empty


@pytest.fixture(scope="module")
def model(lasting_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An applied project. Tests must not change it."""
    model = Project(tmp_path_factory.mktemp("model"), lasting_database())
    model.write_files()
    model.up()
    return model


@pytest.fixture
def applied_project(model: Project, new_database: Callable[..., str], tmp_path: Path) -> Project:
    copy = Project(tmp_path, new_database(model.url))
    copy.write_files()
    return copy


class TestUp:
    def test_everything_is_applied_in_order(self, project: Project) -> None:
        assert project.up().paths == [
            "migrations/20260101000000_foundation.sql",
            "functions/10_caller.sql",
            "functions/20_rows.sql",
            "policies/notes.sql",
        ]
        assert project.query("select path from app.applied_sources order by path") == [
            ("functions/10_caller.sql",),
            ("functions/20_rows.sql",),
            ("policies/notes.sql",),
        ]
        assert project.query("select policyname from pg_policies where schemaname = 'public'") == [("read all",)]

    def test_functions_apply_in_the_order_of_folders_and_then_of_files(self, project: Project) -> None:
        paths = ["functions/1_first/z.sql", "functions/2_second/a.sql", "functions/2_second/b.sql"]
        for path in reversed(paths):
            project.write(path, "select 1;")
        paths_applied = project.up().paths
        assert [path for path in paths_applied if path.count("/") == 2] == paths
        assert paths_applied[-1] == "policies/notes.sql"

    def test_a_second_run_changes_nothing(self, applied_project: Project) -> None:
        before = applied_project.query("select * from app.applied_sources order by path")
        assert applied_project.up().is_empty
        assert applied_project.query("select * from app.applied_sources order by path") == before

    def test_only_the_changed_source_is_applied_again(self, applied_project: Project) -> None:
        applied_project.write("functions/20_rows.sql", ROWS + "-- changed\n")
        assert applied_project.up().paths == ["functions/20_rows.sql"]

    def test_only_the_new_migration_is_applied(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260102000000_more.sql", "alter table public.notes add column more int;")
        assert applied_project.up().paths == ["migrations/20260102000000_more.sql"]

    def test_a_policies_file_replaces_all_grants_and_policies_of_its_table(self, applied_project: Project) -> None:
        applied_project.query("grant all on public.notes to anon, service_role, public")
        applied_project.query("grant update (body) on public.notes to anon")
        applied_project.query("create policy other on public.notes using (true)")
        applied_project.write("policies/notes.sql", "grant select (id) on public.notes to authenticated;")
        applied_project.up()
        assert applied_project.query("select policyname from pg_policies where schemaname = 'public'") == []
        assert {grant for grant in applied_project.grants() if "public.notes" in grant} == {
            "select (id) on public.notes to authenticated"
        }

    def test_a_removed_policies_file_closes_its_table(self, applied_project: Project) -> None:
        (applied_project.root / "policies/notes.sql").unlink()
        assert applied_project.up().removed == ("policies/notes.sql",)
        assert applied_project.query("select policyname from pg_policies where schemaname = 'public'") == []
        assert not {grant for grant in applied_project.grants() if "public.notes" in grant}
        assert applied_project.up().is_empty

    def test_a_policies_file_may_be_removed_together_with_its_table(self, applied_project: Project) -> None:
        (applied_project.root / "policies/notes.sql").unlink()
        (applied_project.root / "functions/20_rows.sql").unlink()
        applied_project.write("migrations/20260102000000_drop.sql", "drop table public.notes cascade;")
        assert applied_project.up().removed == ("functions/20_rows.sql", "policies/notes.sql")
        assert applied_project.up().is_empty

    def test_a_policies_file_may_name_a_schema(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260102000000_odd.sql", 'create table app."Odd Table" (id int);')
        applied_project.write("policies/app.Odd Table.sql", 'grant select on app."Odd Table" to service_role;')
        applied_project.up()
        applied_project.write("policies/app.Odd Table.sql", "-- No role.")
        applied_project.up()
        assert not {grant for grant in applied_project.grants() if "Odd" in grant}

    def test_a_supabase_table_keeps_its_grants_and_gets_our_policies(self, applied_project: Project) -> None:
        policies = "select polname from pg_policy where polrelid = 'realtime.messages'::regclass"
        before = {grant for grant in applied_project.grants() if "realtime.messages" in grant}
        applied_project.query("create policy theirs on realtime.messages for select using (true)")
        applied_project.write(
            "policies/realtime.messages.sql", "create policy ours on realtime.messages for select using (true);"
        )
        applied_project.up()
        assert applied_project.query(policies) == [("ours",)]
        assert applied_project.check() == []
        (applied_project.root / "policies/realtime.messages.sql").unlink()
        applied_project.up()
        assert applied_project.query(policies) == []
        assert before == {grant for grant in applied_project.grants() if "realtime.messages" in grant} != set()

    def test_a_table_cannot_have_two_policies_files(self, project: Project) -> None:
        project.write("policies/public.notes.sql", NOTES)
        with pytest.raises(FilesInvalid, match=r"policies/public\.notes\.sql: remove `public\.` from the file name"):
            project.up()

    def test_an_error_names_a_policies_file_without_a_table(self, project: Project) -> None:
        project.write("policies/nots.sql", "")
        with pytest.raises(FilesInvalid, match=r"policies/nots\.sql: there is no table"):
            project.up()

    def test_a_grant_that_a_functions_file_no_longer_contains_is_revoked(self, applied_project: Project) -> None:
        applied_project.write("functions/10_caller.sql", CALLER.replace("authenticated, service_role", "service_role"))
        applied_project.up()
        assert {grant for grant in applied_project.grants() if "app.caller" in grant} == {
            "execute on app.caller() to service_role"
        }

    def test_a_grant_on_a_view_that_its_file_no_longer_contains_is_revoked(self, applied_project: Project) -> None:
        applied_project.write("functions/10_caller.sql", CALLER + "grant select on ops.note_count to service_role;")
        applied_project.up()
        assert "select on ops.note_count to service_role" in applied_project.grants()
        applied_project.write("functions/10_caller.sql", CALLER)
        applied_project.up()
        assert "select on ops.note_count to service_role" not in applied_project.grants()

    def test_a_functions_file_that_cannot_run_twice_is_refused_at_its_first_run(self, project: Project) -> None:
        project.write("functions/30_once.sql", "create view ops.once as select 1 as one;")
        with pytest.raises(StatementFailed, match=r"functions/30_once\.sql cannot be run twice(.|\n)*already exists"):
            project.up()

    def test_settings_of_one_file_do_not_affect_another(self, project: Project) -> None:
        project.write(
            "migrations/20260102000000_odd.sql",
            "set search_path = ops; set role service_role; set local statement_timeout = 1000;",
        )
        project.write(
            "functions/05_settings.sql",
            "create table if not exists settings as select current_user, current_setting('statement_timeout');",
        )
        project.up()
        assert project.query("select * from public.settings") == [("postgres", "15min")]

    def test_it_runs_as_a_role_that_is_not_a_superuser(self, applied_project: Project) -> None:
        assert applied_project.query("select rolsuper from pg_roles where rolname = current_user") == [(False,)]

    def test_up_notifies_the_data_api_to_reload_the_schema(self, project: Project) -> None:
        with psycopg.connect(project.url, autocommit=True) as listener:
            listener.execute("listen pgrst")
            project.up()
            assert {notification.payload for notification in listener.notifies(timeout=2, stop_after=1)} == {
                "reload schema"
            }

    def test_server_warnings_are_passed_on(self, project: Project) -> None:
        project.write(
            "migrations/20260102000000_warn.sql", "do $$ begin raise warning 'look out'; raise notice 'no'; end $$;"
        )
        notices: list[str] = []
        project.up(notify=notices.append)
        assert notices == ["WARNING: look out"]


class TestPolicyStatements:
    """On hosted Supabase, each policy statement locks tables of auth, storage and realtime until its transaction ends."""

    @pytest.fixture
    def watched_project(self, applied_project: Project, bare_server: Postgres) -> Project:
        """A project that records each policy statement with its transaction."""
        with psycopg.connect(bare_server.url("supabase_admin", applied_project.url.rpartition("/")[2])) as admin:
            admin.execute(
                "create schema watch; create table watch.seen (transaction xid8 default pg_current_xact_id());"
                "create function watch.see() returns event_trigger language plpgsql security definer as $$ "
                "begin insert into watch.seen default values; end $$;"
                "create event trigger see on ddl_command_end when tag in ('CREATE POLICY', 'ALTER POLICY', 'DROP POLICY') "
                "execute function watch.see(); grant usage on schema watch to postgres; grant all on watch.seen to postgres"
            )
        return applied_project

    def count_policy_statements(self, project: Project) -> list[int]:
        """Returns the number of policy statements of each transaction."""
        return [count for (count,) in project.query("select count(*) from watch.seen group by transaction order by 1")]

    def test_no_policy_statement_runs_if_no_policies_file_changed(self, watched_project: Project) -> None:
        watched_project.write("functions/20_rows.sql", ROWS + "-- changed")
        watched_project.write("migrations/20260102000000_more.sql", "alter table public.notes add column more int;")
        assert watched_project.up().paths == ["migrations/20260102000000_more.sql", "functions/20_rows.sql"]
        assert watched_project.up().is_empty
        assert self.count_policy_statements(watched_project) == []

    def test_each_changed_file_has_its_own_transaction(self, watched_project: Project) -> None:
        watched_project.write("migrations/20260102000000_more.sql", "create table public.more (id int);")
        watched_project.write("policies/more.sql", "create policy p on public.more using (true);")
        watched_project.write("policies/notes.sql", NOTES + "-- changed")
        watched_project.up()
        assert self.count_policy_statements(watched_project) == [1, 2]
        transactions = "select count(distinct xmin::text) from app.applied_sources where path like 'policies/%'"
        assert watched_project.query(transactions) == [(2,)]

    def test_a_removed_file_has_its_own_transaction_too(self, watched_project: Project) -> None:
        (watched_project.root / "policies/notes.sql").unlink()
        (watched_project.root / "functions/20_rows.sql").unlink()
        watched_project.up()
        assert self.count_policy_statements(watched_project) == [1]
        assert watched_project.up().is_empty

    def test_a_check_holds_the_locks_of_one_file_at_a_time(self, watched_project: Project) -> None:
        """Each file is rolled back immediately. A lock on realtime.messages would remain from an earlier file."""
        locked = "select from pg_locks where pid = pg_backend_pid() and relation = 'realtime.messages'::regclass and mode = 'AccessExclusiveLock'"
        files = sql_files.read_files(watched_project.root)
        with (
            connect(watched_project.url) as guard,
            connect(watched_project.url) as connection,
            connection.transaction(force_rollback=True),
        ):
            assert drift.find_drift(Locks(connection, guard, print), files) == []
            assert connection.execute(locked.encode()).rowcount == 0


class TestDryRun:
    def test_it_lists_what_would_be_applied_and_changes_nothing(self, project: Project) -> None:
        assert len(project.up(dry_run=True).paths) == 4
        assert project.query(
            "select to_regclass('public.notes'), to_regclass('supabase_migrations.schema_migrations')"
        ) == [(None, None)]

    def test_it_finds_a_statement_that_would_fail(self, project: Project) -> None:
        project.write("policies/notes.sql", "grant select on public.noets to authenticated;")
        with pytest.raises(StatementFailed, match=r"policies/notes\.sql:1: relation"):
            project.up(dry_run=True)

    def test_it_finds_a_deferred_constraint_that_would_fail(self, project: Project) -> None:
        project.write(
            "migrations/20260102000000_deferred.sql",
            "create table a (id int primary key); create table b (a int references a deferrable initially deferred);\n"
            "insert into b values (1);",
        )
        for dry_run in (True, False):
            with pytest.raises(StatementFailed, match="violates foreign key constraint"):
                project.up(dry_run=dry_run)


class TestFailure:
    @pytest.mark.parametrize(
        ("text", "line", "words"),
        [
            ("select 1;\n\n-- why\nselect\n  nope;", 5, 'column "nope" does not exist'),
            ("select 1;\r\nselect 'ö;';\r\nselct 2;", 3, 'syntax error at or near "selct"'),
            ("select 1;\n-- why\ncreate table public.notes ();", 3, 'relation "notes" already exists'),
            ("select 1;\n\nselect 'never ends", 3, "unterminated quoted string"),
            ("create function f() returns int language sql as $$\n  select 1;\n  select nope;\n$$;", 3,
             'column "nope" does not exist'),
            ("do $$\nbegin\n  perform 1 / 0;\nend $$;", 1, "division by zero"),
        ],
    )  # fmt: skip
    def test_it_is_reported_with_file_line_and_server_message(
        self, project: Project, text: str, line: int, words: str
    ) -> None:
        project.write("migrations/20260102000000_broken.sql", text)
        with pytest.raises(StatementFailed) as failure:
            project.up()
        first, *_, last = str(failure.value).splitlines()
        assert first.startswith(f"migrations/20260102000000_broken.sql:{line}: {words}")
        assert last.startswith("This file was not applied; all files before it were. Run `ballast migrate up` again")
        assert [version for version, *_ in project.history()] == ["20260101000000"]

    def test_a_failing_policies_file_keeps_earlier_files_and_the_next_up_continues_there(
        self, applied_project: Project
    ) -> None:
        applied_project.write("migrations/20260102000000_more.sql", "create table public.more (id int);")
        applied_project.write("policies/more.sql", "\ncreate policy p on public.more using (nope);")
        with pytest.raises(StatementFailed, match=r"policies/more\.sql:2: column(.|\n)*all files before it were. Run"):
            applied_project.up()
        assert len(applied_project.history()) == 2
        assert FileState("policies/more.sql", "pending") in migrations.list_states(
            applied_project.url, root=applied_project.root
        )
        applied_project.write("policies/more.sql", "create policy p on public.more using (true);")
        assert applied_project.up().paths == ["policies/more.sql"]

    def test_a_policies_file_without_a_table_keeps_the_files_before_it(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260102000000_more.sql", "create table public.more (id int);")
        applied_project.write("policies/mroe.sql", "")
        with pytest.raises(FilesInvalid, match="there is no table"):
            applied_project.up()
        assert len(applied_project.history()) == 2

    def test_detail_and_hint_are_passed_on(self, project: Project) -> None:
        project.write(
            "migrations/20260102000000_x.sql", "do $$ begin raise 'no' using detail = 'because', hint = 'try'; end $$"
        )
        with pytest.raises(StatementFailed, match=r"no\nDetail: because\nHint: try\nWhere: PL/pgSQL"):
            project.up()

    @pytest.mark.parametrize(
        ("statement", "words"),
        [
            ("alter table public.people add unique (mail)", 'could not create unique index "people_mail_key"'),
            ("alter table public.people add check (length(mail) > 99)", 'check constraint "people_mail_check" of rel'),
            ("alter table public.people alter column age set not null", 'column "age" of relation "people" contains'),
            ("update public.people set age = null, mail = null", 'null value in column "mail" of relation "people"'),
            (
                "alter table public.people alter column mail type int using mail::int",
                "type integer: (a value of a row)",
            ),
        ],
    )
    def test_no_value_of_a_row_is_printed(self, applied_project: Project, statement: str, words: str) -> None:
        applied_project.query("create table public.people (mail text not null, age int)")
        applied_project.query("insert into public.people values ('ann@example.com', 1), ('ann@example.com', null)")
        applied_project.write("migrations/20260102000000_strict.sql", statement)
        for dry_run in (True, False):
            with pytest.raises(StatementFailed) as failure:
                applied_project.up(dry_run=dry_run)
            assert words in str(failure.value)
            assert "ann@" not in str(failure.value)

    def test_a_value_of_the_file_is_printed(self, project: Project) -> None:
        project.write("migrations/20260102000000_x.sql", "select 'many'::int")
        with pytest.raises(StatementFailed, match='for type integer: "many"'):
            project.up()

    def test_create_index_concurrently_is_refused_with_advice(self, project: Project) -> None:
        project.write("migrations/20260102000000_index.sql", "create index concurrently on public.notes (body);")
        with pytest.raises(StatementFailed, match=r"index\.sql:1: (.|\n)*Each file is applied in one transaction"):
            project.up()

    @pytest.mark.parametrize("word", ["begin", "COMMIT", "rollback", "end", "start transaction", "savepoint a"])
    def test_a_file_cannot_end_the_transaction(self, project: Project, word: str) -> None:
        project.write("migrations/20260102000000_commit.sql", f"create table a ();\n/* so */ {word};")
        with pytest.raises(StatementFailed, match=r"commit\.sql:2: (.|\n)*one transaction"):
            project.up()
        assert project.query("select to_regclass('public.notes')") == [(None,)]

    def test_a_failing_migration_keeps_the_files_before_it_and_the_next_up_continues_there(
        self, applied_project: Project
    ) -> None:
        applied_project.write("migrations/20260102000000_more.sql", "create table public.more (id int);")
        applied_project.write("migrations/20260103000000_broken.sql", "create table public.less (id int); select nope;")
        applied_project.write("functions/30_late.sql", "select 1;")
        applied: list[str] = []
        with pytest.raises(StatementFailed, match=r"broken\.sql:1: column"):
            applied_project.up(on_applied=lambda file: applied.append(file.path))
        assert applied == ["migrations/20260102000000_more.sql"]
        assert applied_project.query("select to_regclass('public.more')::text, to_regclass('public.less')") == [
            ("more", None)
        ]
        applied_project.write("migrations/20260103000000_broken.sql", "create table public.less (id int);")
        assert applied_project.up().paths == ["migrations/20260103000000_broken.sql", "functions/30_late.sql"]

    def test_transaction_control_in_a_policies_file_is_refused_before_anything_is_applied(
        self, applied_project: Project
    ) -> None:
        applied_project.write("migrations/20260102000000_more.sql", "alter table public.notes add column more int;")
        applied_project.write("policies/notes.sql", NOTES + "commit;")
        with pytest.raises(StatementFailed, match=r"`commit` is not allowed here"):
            applied_project.up()
        column = "select from pg_attribute where attrelid = 'public.notes'::regclass and attname = 'more'"
        assert applied_project.query(column) == []

    def test_the_deployment_lock_outlives_a_timeout_for_idle_sessions(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260102000000_slow.sql", "select pg_sleep(1);")
        options = "?options=-c%20idle_in_transaction_session_timeout%3D200ms"
        assert migrations.up(applied_project.url + options, root=applied_project.root).migrations

    def test_an_unreachable_database_is_reported_without_its_password(self) -> None:
        with pytest.raises(DatabaseUnreachable) as failure:
            migrations.up("postgresql://postgres:geheim@127.0.0.1:1/postgres")
        assert "127.0.0.1" in str(failure.value)
        assert "geheim" not in str(failure.value)

    def test_a_superuser_reads_which_role_to_use(self, applied_project: Project, bare_server: Postgres) -> None:
        """It could migrate, but the owner could not change its new objects later."""
        url = bare_server.url("supabase_admin", applied_project.url.rpartition("/")[2])
        with pytest.raises(RoleUnfit, match=r"^The role supabase_admin may not migrate .*: connect as postgres"):
            migrations.up(url, root=applied_project.root)

    def test_a_role_that_may_not_create_schemas_reads_which_role_to_use(self, project: Project) -> None:
        [[owner]] = project.query("select datdba::regrole from pg_database where datname = current_database()")
        with pytest.raises(RoleUnfit, match=f"^The role authenticator may not .*: connect as {owner}, which"):
            migrations.up(project.url.replace("postgres:", "authenticator:", 1), root=project.root)

    def test_a_role_from_which_rows_are_hidden_reads_which_role_to_use(self, applied_project: Project) -> None:
        url = applied_project.url.replace("postgres:", "authenticator:", 1)
        for look in (migrations.up, migrations.list_states, drift.check):
            with pytest.raises(RowsHidden, match=r"^The role authenticator may not see .*: connect as postgres, which"):
                look(url, root=applied_project.root)

    def test_a_check_on_a_read_only_connection_says_so(self, applied_project: Project) -> None:
        options = "?options=-c%20default_transaction_read_only%3Don"
        with pytest.raises(StatementRefused, match="This connection is read-only: connect to the primary"):
            drift.check(applied_project.url + options, root=applied_project.root)

    def test_a_read_only_connection_is_refused(self, applied_project: Project) -> None:
        options = "?options=-c%20default_transaction_read_only%3Don"
        with pytest.raises(RoleUnfit, match="is read-only: connect to the primary"):
            migrations.up(applied_project.url + options, root=applied_project.root)

    def test_sources_require_the_table_that_records_them(self, empty: Project) -> None:
        empty.write("functions/a.sql", "select 1;")
        with pytest.raises(FilesInvalid, match=r"table app\.applied_sources, which records sources, does not exist"):
            empty.up()


class TestWriters:
    """People write while files are applied. Where the two wait for each other, the deployment gives way."""

    ALTER = "alter table public.notes add column more int;"

    @pytest.fixture
    def short_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("migrations/20260102000000_more.sql", ALTER),
            ("functions/20_rows.sql", ROWS + "-- changed"),
            ("policies/notes.sql", NOTES + "-- changed"),
        ],
    )
    def test_a_file_is_retried_while_its_table_is_locked(self, applied_project: Project, path: str, text: str) -> None:
        applied_project.write(path, text)
        notices: list[str] = []
        with psycopg.connect(applied_project.url, application_name="report") as other:
            other.execute("lock table public.notes in row exclusive mode")

            def give_way(line: str) -> None:
                notices.append(line)
                other.rollback()

            assert applied_project.up(notify=give_way).paths == [path]
            pid = other.info.backend_pid
        assert [notice.partition(", its")[0] for notice in notices] == [
            f"{path} waits for a lock; retrying ... The lock is held by process {pid} "
            "(role postgres, report, idle in transaction"
        ]

    @pytest.mark.usefixtures("short_patience")
    def test_a_deployment_gives_up_in_the_end_and_names_who_holds_the_lock(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260102000000_more.sql", self.ALTER)
        with psycopg.connect(applied_project.url, application_name="report") as reader:
            reader.execute("select body, 'secret' from public.notes")
            with pytest.raises(LockUnavailable) as failure:
                applied_project.up()
            pid = reader.info.backend_pid
        first, consequence, holder = str(failure.value).splitlines()
        assert first == "migrations/20260102000000_more.sql:1: canceling statement due to lock timeout"
        assert consequence.startswith("This file was not applied; all files before it were.")
        assert holder.startswith(f"The lock is held by process {pid} (role postgres, report, idle in transaction, ")
        assert "secret" not in str(failure.value)
        assert applied_project.up().paths == ["migrations/20260102000000_more.sql"]

    def test_a_writer_that_waits_for_the_deployment_and_blocks_it_is_not_aborted(
        self, applied_project: Project
    ) -> None:
        applied_project.query("create table public.others (id int); insert into public.others values (1)")
        applied_project.query("insert into public.notes values (1)")
        # The deployment has held its first lock for a while when it comes to the second one.
        applied_project.write(
            "migrations/20260102000000_both.sql",
            f"{self.ALTER} select pg_sleep(0.3); alter table public.others add column more int;",
        )
        plans: list[Plan] = []
        deployment = threading.Thread(target=lambda: plans.append(applied_project.up()))
        with (
            psycopg.connect(applied_project.url) as writer,
            psycopg.connect(applied_project.url, autocommit=True) as watcher,
        ):
            writer.execute("update public.others set id = 2")
            deployment.start()
            alters = "select from pg_locks where relation = 'public.notes'::regclass and mode = 'AccessExclusiveLock'"
            while not watcher.execute(alters).rowcount:
                pass
            writer.execute("update public.notes set body = 'written'")
        deployment.join(timeout=30)
        assert [plan.paths for plan in plans] == [["migrations/20260102000000_both.sql"]]
        assert applied_project.query("select body from public.notes") == [("written",)]

    def test_a_long_statement_that_closes_a_circle_gives_way(
        self, applied_project: Project, bare_server: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its lock_timeout dates from its beginning, so it would still wait when the writer's detector looks."""
        monkeypatch.setattr(locks, "MAX_WAIT_MS", 1_500)
        name = applied_project.url.rpartition("/")[2]
        applied_project.query("create table public.others (id int); insert into public.others values (1)")
        applied_project.query("insert into public.notes values (1)")
        with psycopg.connect(bare_server.url("supabase_admin", name), autocommit=True) as admin:
            admin.execute(f"alter database {name} set deadlock_timeout = '3s'")
        applied_project.write(
            "migrations/20260102000000_long.sql",
            f"do $$ begin {self.ALTER} perform pg_sleep(2); alter table public.others add column more int; end $$",
        )
        notices: list[str] = []
        deployment = threading.Thread(target=lambda: applied_project.up(notify=notices.append))
        with (
            psycopg.connect(applied_project.url) as writer,
            psycopg.connect(applied_project.url, autocommit=True) as watcher,
        ):
            writer.execute("update public.others set id = 2")
            deployment.start()
            alters = "select from pg_locks where relation = 'public.notes'::regclass and mode = 'AccessExclusiveLock'"
            while not watcher.execute(alters).rowcount:
                pass
            writer.execute("update public.notes set body = 'written'")
        deployment.join(timeout=30)
        assert [notice.partition("retrying ... ")[2] for notice in notices] == [
            "It stopped because others waited for it for too long."
        ]
        assert {each.state for each in migrations.list_states(applied_project.url, root=applied_project.root)} == {
            "applied",
            "current",
        }

    @pytest.mark.usefixtures("short_patience")
    def test_work_that_gives_way_between_two_statements_is_stopped_at_the_next_one(
        self, applied_project: Project
    ) -> None:
        """A cancellation without a running statement is lost."""
        with (
            connect(applied_project.url) as guard,
            connect(applied_project.url) as connection,
            connect(applied_project.url) as writer,
            guard.transaction(),
        ):
            held = Locks(connection, guard, print)
            writing = threading.Thread(target=writer.execute, args=["insert into public.notes values (1)"])

            def work() -> None:
                connection.execute("lock table public.notes")
                writing.start()
                while not held.has_given_way:
                    pass
                time.sleep(1)  # the first cancellation has arrived, and found no statement
                connection.execute("select pg_sleep(60)")

            with pytest.raises(LockUnavailable, match="It stopped because others waited"):
                held.retry("The work", work, gives_way=True)
            writing.join(timeout=30)
        assert applied_project.query("select id from public.notes") == [(1,)]

    def test_lock_waits_end_before_the_servers_deadlock_timeout(
        self, applied_project: Project, bare_server: Postgres
    ) -> None:
        """A statement that comes late in its transaction may hardly wait: locks are held by then."""
        name = applied_project.url.rpartition("/")[2]
        applied_project.write(
            "migrations/20260102000000_waits.sql",
            "create table public.waits as select current_setting('lock_timeout')::interval as first;"
            "select pg_sleep(0.2); alter table public.waits add column last interval;"
            "update public.waits set last = current_setting('lock_timeout')::interval;",
        )
        with psycopg.connect(bare_server.url("supabase_admin", name), autocommit=True) as admin:
            admin.execute(f"alter database {name} set deadlock_timeout = '300ms'")
        applied_project.up()
        assert applied_project.query("select first <= '150ms' and first > '5ms', last = '5ms' from public.waits") == [
            (True, True)
        ]

    @pytest.mark.usefixtures("short_patience")
    def test_a_dry_run_and_a_check_name_who_holds_the_lock(self, applied_project: Project) -> None:
        with psycopg.connect(applied_project.url) as reader:
            reader.execute("lock table public.notes in share mode")
            with pytest.raises(LockUnavailable, match=r"lock timeout\nThe check changes nothing(.|\n)*held by process"):
                drift.check(applied_project.url, root=applied_project.root)
            applied_project.write("policies/notes.sql", NOTES + "-- changed")
            with pytest.raises(LockUnavailable, match=r"lock timeout(.|\n)*Nothing was applied(.|\n)*held by process"):
                applied_project.up(dry_run=True)

    def test_a_dry_run_and_a_check_are_retried(self, applied_project: Project) -> None:
        notices: list[str] = []
        with psycopg.connect(applied_project.url) as reader:

            def give_way(line: str) -> None:
                notices.append(line.partition(";")[0])
                reader.rollback()

            reader.execute("lock table public.notes in share mode")
            assert drift.check(applied_project.url, root=applied_project.root, notify=give_way)[1] == []
            applied_project.write("policies/notes.sql", NOTES + "-- changed")
            reader.execute("lock table public.notes in share mode")
            assert applied_project.up(dry_run=True, notify=give_way).paths == ["policies/notes.sql"]
        assert notices == ["functions/20_rows.sql waits for a lock", "policies/notes.sql waits for a lock"]

    @pytest.mark.usefixtures("short_patience")
    def test_a_dry_run_of_a_migration_gives_way_to_writers(self, applied_project: Project) -> None:
        """All files stay applied until its end, because later files need earlier ones."""
        applied_project.write("migrations/20260102000000_slow.sql", f"{self.ALTER} select pg_sleep(60);")
        failures: list[BaseException] = []

        def try_it() -> None:
            try:
                applied_project.up(dry_run=True)
            except LockUnavailable as failure:
                failures.append(failure)

        trial = threading.Thread(target=try_it)
        trial.start()
        alters = "select from pg_locks where relation = 'public.notes'::regclass and mode = 'AccessExclusiveLock'"
        with psycopg.connect(applied_project.url, autocommit=True) as writer:
            while not writer.execute(alters).rowcount:
                pass
            writer.execute("insert into public.notes values (1)")
        trial.join(timeout=30)
        [failure] = failures
        assert str(failure).endswith("Nothing was applied.\nIt stopped because others waited for it for too long.")

    def test_files_that_need_an_earlier_one_are_tried_together(self, applied_project: Project) -> None:
        applied_project.write("functions/30_base.sql", "create or replace view ops.base as select 1 as one;")
        applied_project.write("functions/40_top.sql", "create or replace view ops.top as select one from ops.base;")
        assert len(applied_project.up(dry_run=True).paths) == 2
        applied_project.up()
        applied_project.query("drop view ops.base cascade")
        assert applied_project.check() == [("view", "ops.base", "missing"), ("view", "ops.top", "missing")]


def test_an_autovacuum_gives_way_to_a_deployment(tmp_path: Path) -> None:
    """PostgreSQL cancels one only for sessions that wait for longer than a deployment waits for its locks."""
    with scratch_server(tmp_path, fsync="off", autovacuum_naptime="1s") as server:
        project = Project(tmp_path / "project", server.url())
        project.write_files()
        project.up()
        project.query(
            "alter table public.notes set (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_cost_delay = 100, "
            "autovacuum_vacuum_cost_limit = 1)"
        )
        project.query("insert into public.notes select n, repeat('x', 1000) from generate_series(1, 10000) as n")
        project.query("delete from public.notes where id % 2 = 0")
        vacuums = "select from pg_stat_progress_vacuum as v where v.relid = 'public.notes'::regclass"
        with psycopg.connect(server.url("supabase_admin"), autocommit=True) as watcher:
            while not watcher.execute(vacuums).rowcount:
                pass
        project.write("migrations/20260102000000_more.sql", TestWriters.ALTER)
        notices: list[str] = []
        assert project.up(notify=notices.append).paths == ["migrations/20260102000000_more.sql"]
        assert "(autovacuum worker, active, its transaction began" in notices[0]


class TestHistory:
    def test_an_edited_migration_is_named(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260101000000_foundation.sql", FOUNDATION.replace("a;b", "a;c"))
        with pytest.raises(HistoryDisagrees, match=r"migrations/20260101000000_foundation\.sql was edited"):
            applied_project.up()

    def test_a_missing_migration_is_named(self, applied_project: Project) -> None:
        (applied_project.root / "migrations/20260101000000_foundation.sql").unlink()
        with pytest.raises(
            HistoryDisagrees, match=r"migrations/20260101000000_foundation\.sql is applied but has no file"
        ):
            applied_project.up()

    def test_a_late_migration_is_named(self, applied_project: Project) -> None:
        applied_project.write("migrations/20251231000000_late.sql", "select 1;")
        with pytest.raises(HistoryDisagrees, match=r"migrations/20251231000000_late\.sql is older"):
            applied_project.up()

    def test_every_disagreement_is_listed_at_once(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260101000000_foundation.sql", "select 1;")
        applied_project.write("migrations/20251231000000_late.sql", "select 1;")
        with pytest.raises(HistoryDisagrees) as failure:
            applied_project.up()
        assert len(str(failure.value).splitlines()) == 2

    @pytest.mark.parametrize("name", ["2026_short.sql", "20260102000000_Upper.sql", "20260102000000_.sql", "notes.sql"])
    def test_a_bad_file_name_is_refused(self, applied_project: Project, name: str) -> None:
        applied_project.write(f"migrations/{name}", "select 1;")
        with pytest.raises(FilesInvalid, match=f"migrations/{name} is not named"):
            applied_project.up()

    def test_two_files_cannot_share_a_version(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260101000000_other.sql", "select 1;")
        with pytest.raises(FilesInvalid, match="have the same version"):
            applied_project.up()

    def test_a_file_that_is_not_utf_8_is_named(self, applied_project: Project) -> None:
        (applied_project.root / "functions/latin.sql").write_bytes(b"-- caf\xe9")
        with pytest.raises(FilesInvalid, match=r"functions/latin\.sql is not UTF-8 \(byte 6\)"):
            applied_project.up()


class TestConcurrentDeployments:
    def test_a_deployment_without_its_lock_applies_no_further_file(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260102000000_one.sql", "create table public.one ();")
        applied_project.write("migrations/20260103000000_two.sql", "create table public.two ();")
        end = (
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted and database = "
            f"(select oid from pg_database where datname = current_database()) and objid = {migrations.ADVISORY_LOCK}"
        )

        def end_guard(_: object) -> None:
            while applied_project.query(end):
                pass

        with pytest.raises(DeploymentLockLost, match=r"lock was lost\. Run this again"):
            applied_project.up(on_applied=end_guard)
        assert applied_project.query("select to_regclass('public.one')::text, to_regclass('public.two')") == [
            ("one", None)
        ]
        assert applied_project.up().paths == ["migrations/20260103000000_two.sql"]

    def test_the_second_waits_with_a_notice_and_has_nothing_to_do(self, project: Project) -> None:
        project.write("migrations/20260102000000_slow.sql", "select pg_sleep(1);")
        waiting = threading.Event()
        plans: list[Plan] = []
        notices: list[str] = []

        def deploy(project: Project) -> None:
            plans.append(project.up(notify=lambda line: (notices.append(line), waiting.set())))

        deployments = [threading.Thread(target=deploy, args=[project]) for _ in range(4)]
        for deployment in deployments:
            deployment.start()
        for deployment in deployments:
            deployment.join(timeout=30)
        assert sorted(len(plan.paths) for plan in plans) == [0, 0, 0, 5]
        assert notices == ["Another deployment is running on this database; waiting until it ends ..."] * 3

    def test_a_waiting_deployment_takes_over_from_a_failed_one(self, project: Project) -> None:
        broken = Project(project.root / "broken", project.url)
        broken.root.mkdir()
        broken.write("migrations/20260101000000_foundation.sql", FOUNDATION + "select pg_sleep(0.5); select nope;")
        failure: list[BaseException] = []
        started = threading.Event()

        def deploy() -> None:
            started.set()
            try:
                broken.up()
            except StatementFailed as error:
                failure.append(error)

        first = threading.Thread(target=deploy)
        first.start()
        started.wait()
        with psycopg.connect(project.url) as watcher:
            while watcher.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,):
                watcher.rollback()
        assert len(project.up().paths) == 4
        first.join()
        assert failure


class TestStatus:
    def test_status_lists_the_state_of_each_file(self, applied_project: Project) -> None:
        applied_project.write("migrations/20251231000000_late.sql", "select 1;")
        applied_project.write("migrations/20260102000000_new.sql", "select 1;")
        applied_project.write("functions/20_rows.sql", ROWS + "-- changed")
        applied_project.write("functions/30_new.sql", "")
        (applied_project.root / "policies/notes.sql").unlink()
        assert migrations.list_states(applied_project.url, root=applied_project.root) == [
            FileState("migrations/20251231000000_late.sql", "late"),
            FileState("migrations/20260101000000_foundation.sql", "applied"),
            FileState("migrations/20260102000000_new.sql", "pending"),
            FileState("functions/10_caller.sql", "current"),
            FileState("functions/20_rows.sql", "changed"),
            FileState("functions/30_new.sql", "pending"),
            FileState("policies/notes.sql", "removed"),
        ]

    def test_status_does_not_change_a_new_database(self, project: Project) -> None:
        assert {entry.state for entry in migrations.list_states(project.url, root=project.root)} == {"pending"}
        assert project.query("select to_regclass('supabase_migrations.schema_migrations')") == [(None,)]


class TestCheck:
    def test_a_migrated_database_has_no_drift(self, applied_project: Project) -> None:
        assert applied_project.check() == []

    def test_a_restored_view_has_not_drifted(self, project: Project) -> None:
        """PostgreSQL 18 prints a column name for constants in later arms of a union, and keeps it when restored."""
        view = "create or replace view ops.odd as select 'a'::text as name, id from public.notes union all select 'b'::text, id from public.notes;"
        project.write("functions/30_odd.sql", view)
        project.up()
        [[printed]] = project.query("select pg_get_viewdef('ops.odd'::regclass)")
        project.query(f"create or replace view ops.odd as {printed}")
        assert project.check() == []
        project.query(f"create or replace view ops.odd as {printed}".replace("'b'", "'c'"))
        assert project.check() == [("view", "ops.odd", "different")]

    @pytest.mark.parametrize(
        ("tampering", "found"),
        [
            ("create function public.f(a int, out b int) language sql as 'select 1'",
             [("function", "public.f(a integer, OUT b integer)", "undeclared")]),
            ("create or replace function app.touch() returns trigger language plpgsql as $$ begin return old; end $$",
             [("function", "app.touch()", "different")]),
            ("create view public.v as select 1", [("view", "public.v", "undeclared")]),
            ("create or replace view ops.note_count as select count(*) from public.notes where true",
             [("view", "ops.note_count", "different")]),
            ("drop view ops.note_count", [("view", "ops.note_count", "missing")]),
            ("create trigger extra before insert on public.notes for each row execute function app.touch()",
             [("trigger", "extra on public.notes", "undeclared")]),
            ("drop trigger touch on public.notes", [("trigger", "touch on public.notes", "missing")]),
            ("alter table public.notes disable trigger touch", [("trigger", "touch on public.notes", "different")]),
            ("create policy extra on public.notes for delete using (true)",
             [("policy", "extra on public.notes", "undeclared")]),
            ("create policy extra on app.applied_sources using (true)",
             [("policy", "extra on app.applied_sources", "undeclared")]),
            ('alter policy "read all" on public.notes using (id > 0)',
             [("policy", '"read all" on public.notes', "different")]),
            ('alter policy "read all" on public.notes to anon',
             [("policy", '"read all" on public.notes', "different")]),
            ('drop policy "read all" on public.notes', [("policy", '"read all" on public.notes', "missing")]),
            ("grant delete on public.notes to anon", [("grant", "delete on public.notes to anon", "undeclared")]),
            ("grant update (body) on public.notes to public",
             [("grant", "update (body) on public.notes to public", "undeclared")]),
            ("grant select on ops.note_count to anon", [("grant", "select on ops.note_count to anon", "undeclared")]),
            ("grant execute on function app.touch() to public",
             [("grant", "execute on app.touch() to public", "undeclared")]),
            ("grant execute on function app.caller() to authenticated with grant option",
             [("grant", "execute on app.caller() to authenticated", "different")]),
            ("revoke select on public.notes from authenticated",
             [("grant", "select on public.notes to authenticated", "missing")]),
            ("create policy extra on realtime.messages for select using (true)",
             [("policy", "extra on realtime.messages", "undeclared")]),
        ],
    )  # fmt: skip
    def test_tampering_is_found(self, model: Project, tampering: str, found: list[tuple[str, str, str]]) -> None:
        files = sql_files.read_files(model.root)
        with (
            connect(model.url) as guard,
            connect(model.url) as connection,
            connection.transaction(force_rollback=True),
        ):
            connection.execute(tampering.encode())
            assert drift.find_drift(Locks(connection, guard, print), files) == found

    def test_a_superuser_finds_the_same(self, applied_project: Project, bare_server: Postgres) -> None:
        name = applied_project.url.rpartition("/")[2]
        applied_project.query("grant update on public.notes to authenticated")
        found = applied_project.check()
        assert found
        with psycopg.connect(bare_server.url("supabase_admin", name), autocommit=True) as admin:
            admin.execute("create role deployer login superuser password 'test'")
            try:
                assert [
                    tuple(each) for each in drift.check(bare_server.url("deployer", name), root=applied_project.root)[1]
                ] == found
            finally:
                admin.execute("drop role deployer")

    def test_a_check_changes_nothing(self, applied_project: Project) -> None:
        applied_project.query(
            "create policy extra on public.notes using (true); revoke all on public.notes from authenticated"
        )
        assert len(applied_project.check()) == 3
        assert len(applied_project.check()) == 3

    def test_objects_of_a_removed_functions_file_are_listed(self, applied_project: Project) -> None:
        (applied_project.root / "functions/20_rows.sql").unlink()
        applied_project.up()
        assert applied_project.check() == [
            ("function", "app.touch()", "undeclared"),
            ("trigger", "touch on public.notes", "undeclared"),
        ]

    def test_pending_files_are_listed(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260102000000_new.sql", "select 1;")
        plan, found = drift.check(applied_project.url, root=applied_project.root)
        assert plan.paths == ["migrations/20260102000000_new.sql"]
        assert found == []

    def test_disagreeing_history_is_an_error(self, applied_project: Project) -> None:
        applied_project.write("migrations/20260101000000_foundation.sql", "select 1;")
        with pytest.raises(HistoryDisagrees):
            applied_project.check()


class TestNew:
    def test_it_names_the_migration_after_the_utc_time(self, applied_project: Project) -> None:
        path = sql_files.write_migration(
            "add_more", root=applied_project.root, now=datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
        )
        assert path.name == "20260506070809_add_more.sql"
        assert applied_project.up().paths == ["migrations/20260506070809_add_more.sql"]

    @pytest.mark.parametrize("name", ["", "Add", "add more", "../x", "a__b", "x.sql"])
    def test_a_bad_name_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(FilesInvalid, match="is not a valid migration name"):
            sql_files.write_migration(name, root=tmp_path)


class TestSupabaseCli:
    """The CLI version of the lock file, on the same database and files."""

    TRAPS = (
        "-- It's a header;\ncreate table a (b text default ';', \"c;d\" int); /* ; /* ; */ ; */\r\n"
        "create function f() returns text language sql as $f$ select 'a;b$$'; $f$;\n;;\n"
        "create function g() returns int language sql begin atomic select 1; select (2); end;\n"
        "insert into a values ('it''s;') ;\n\ncomment on table a is E'x\\ny;' -- last;\n"
    )

    def supabase(self, project: Project, *arguments: str) -> str:
        folder = project.root / "supabase"
        if not folder.exists():
            folder.mkdir()
            (folder / "migrations").symlink_to("../migrations")
            (folder / "config.toml").write_bytes((ROOT / "supabase/config.toml").read_bytes())
        result = subprocess.run(
            [ROOT / "node_modules/.bin/supabase", *arguments, f"--remote={project.url}?sslmode=disable", "--yes"],
            cwd=project.root, env=os.environ | {"DO_NOT_TRACK": "1", "SUPABASE_TELEMETRY_DISABLED": "1"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def test_the_cli_records_what_we_record(self, project: Project, new_database: Callable[..., str]) -> None:
        project.write("migrations/20260102000000_traps.sql", self.TRAPS)
        project.up()
        theirs = Project(project.root, new_database())
        self.supabase(theirs, "migration", "up")
        assert theirs.history() == project.history()

    def test_the_cli_has_nothing_to_do_after_us(self, project: Project) -> None:
        project.write("migrations/20260102000000_traps.sql", self.TRAPS)
        project.up()
        rows = [line.split("|") for line in self.supabase(project, "migration", "list").splitlines() if "`2026" in line]
        assert [(local.strip(" `"), remote.strip(" `")) for local, remote, _ in rows] == [
            ("20260101000000", "20260101000000"),
            ("20260102000000", "20260102000000"),
        ]
        assert "up to date" in self.supabase(project, "db", "push")

    def test_we_apply_only_the_sources_after_the_cli(self, project: Project) -> None:
        self.supabase(project, "db", "push")
        assert project.up().paths == ["functions/10_caller.sql", "functions/20_rows.sql", "policies/notes.sql"]


class TestCommand:
    """On the files of this checkout."""

    def run(self, url: str, *arguments: str) -> Result:
        return CliRunner().invoke(ballast, ["migrate", *arguments], env={"DATABASE_URL": url})

    def test_up_check_and_status_agree(self, new_database: Callable[..., str]) -> None:
        url = new_database()
        dry = self.run(url, "up", "--dry-run")
        assert dry.exit_code == 0, dry.output
        assert self.run(url, "check").exit_code == 1
        up = self.run(url, "up")
        assert up.stdout == dry.stdout.replace("Would apply", "Applied").replace("Would forget", "Forgot")
        files = sql_files.read_files(ROOT)
        current = f"{len(files.migrations)} migrations, {len(files.sources)} sources are current"
        assert self.run(url, "up").stdout == f"Nothing to do: {current}.\n"
        check = self.run(url, "check")
        assert (check.stdout, check.exit_code) == (f"No drift: {current}.\n", 0)
        states = json.loads(self.run(url, "status", "--json").stdout)
        assert {entry["state"] for entry in states} == {"applied", "current"}
        assert files.sources[0].path in self.run(url, "status").stdout

    @pytest.mark.thorough
    def test_plans_do_not_cause_drift(self, migrated_database: str, new_database: Callable[..., str]) -> None:
        """Statistics and planner settings change the order in which a query without `order by` returns rows."""
        url = new_database(migrated_database)
        remove(url)
        name = url.rpartition("/")[2]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("analyze")
            for method in ("indexscan", "hashagg", "hashjoin", "nestloop"):
                connection.execute(f"alter database {name} set enable_{method} = off".encode())
        check = self.run(url, "check")
        assert (check.exit_code, check.stdout.partition(":")[0]) == (0, "No drift")

    def test_drift_is_shown_and_fails_the_check(self, migrated_database: str, new_database: Callable[..., str]) -> None:
        url = new_database(migrated_database)
        remove(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create view ops.extra as select 1 as one")
        check = self.run(url, "check")
        assert check.exit_code == 1
        assert "ops.extra" in check.stdout
        as_json = self.run(url, "check", "--json")
        assert as_json.exit_code == 1
        assert json.loads(as_json.stdout) == {
            "pending": [],
            "drift": [{"kind": "view", "name": "ops.extra", "problem": "undeclared"}],
        }

    def test_a_key_across_tenants_fails_the_check(
        self, migrated_database: str, new_database: Callable[..., str]
    ) -> None:
        url = new_database(migrated_database)
        remove(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create table public.test_strays (organization_id uuid, number text unique)")
        check = self.run(url, "check")
        assert check.exit_code == 1
        assert "test_strays_number_key on test_strays" in check.stdout
        assert "comment on constraint (or index)" in check.stderr
        assert "drop the other" not in check.stderr
        as_json = json.loads(self.run(url, "check", "--json").stdout)
        assert as_json["drift"] == [
            {"kind": "unique key", "name": "test_strays_number_key on test_strays", "problem": "across tenants"}
        ]

    def test_status_names_the_next_file_and_explains_what_up_refuses(
        self, migrated_database: str, new_database: Callable[..., str]
    ) -> None:
        url = new_database(migrated_database)
        late = "20200101000000"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "delete from app.applied_sources where path in ('policies/profiles.sql', 'policies/projects.sql')"
            )
            connection.execute(
                f"insert into supabase_migrations.schema_migrations values ('{late}', null, 'gone')".encode()
            )
        status = self.run(url, "status")
        assert f"migrations/{late}_gone.sql is applied but has no file: restore" in status.stderr
        assert "Next: policies/profiles.sql. `ballast migrate up` applies it" in status.stderr

    def test_an_edited_migration_mentions_reset_for_the_local_stack_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = sql_files.read_files(ROOT).migrations[0]
        with scratch_server(tmp_path, fsync="off") as server:
            with psycopg.connect(server.url(), autocommit=True) as connection:
                for statement in history.HISTORY_TABLE:
                    connection.execute(statement)
                connection.execute(
                    "insert into supabase_migrations.schema_migrations values (%s, '{edited}')", [first.version]
                )
            (tmp_path / "home").mkdir()
            (tmp_path / "home/secrets.json").write_text(json.dumps({"postgres_password": server.password}))
            monkeypatch.setenv("BALLAST_PORT_BASE", str(server.port - 2))
            for home in ("home", "other"):
                monkeypatch.setenv("BALLAST_HOME", str(tmp_path / home))
                for command in ("up", "check"):
                    result = self.run(server.url(), command)
                    assert result.exit_code == 1
                    assert f"{first.path} was edited after it was applied" in result.stderr
                    assert ("`ballast reset` and `ballast up` create it" in result.stderr) == (home == "home")

    def test_a_failure_is_a_line_on_stderr_and_exit_code_1(self) -> None:
        result = self.run("postgresql://postgres@127.0.0.1:1/postgres", "up")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("ballast: The database does not answer")

    def test_without_a_database_the_error_names_the_variable(self, tmp_path: Path) -> None:
        environment = {"DATABASE_URL": "", "BALLAST_HOME": str(tmp_path)}
        result = CliRunner().invoke(ballast, ["migrate", "status"], env=environment)
        assert result.exit_code == 1
        assert "DATABASE_URL" in result.stderr
