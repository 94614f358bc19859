"""`ballast backup extract`: writes one tenant's rows from a backup, as a script or as CSV, to put back lost rows."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO, Literal, LiteralString

from psycopg import sql
from psycopg.rows import class_row

from scripts.backup import structure
from scripts.backup.drill import scratch_target
from scripts.backup.progress import Bar
from scripts.backup.restore import restore_and_check
from scripts.backup.restore_engine import Backup
from scripts.backup.structure import Difference
from scripts.errors import Failure
from scripts.schema import database
from scripts.schema.database import Connection

ORGANIZATIONS, PROFILES = "organizations", "profiles"
OWNER = "organization_id"
# The audit trail is append-only and sealed: entries that a script adds to a sealed range, or to a month that retention
# has dropped, would look like forgeries.
LEFT_OUT = ("public.audit_logs",)
OWNER_ONLY = 0o600
DATABASE_VARIABLE = '"$DATABASE_URL"'
PROLOGUE = rf"""
\set ON_ERROR_STOP on
begin;
set local client_encoding = 'UTF8';
{structure.SET_LOCAL}set local statement_timeout = 0;
"""
EPILOGUE = b"\ncommit;\n"
UNSAFE_CHARACTERS = re.compile("[^A-Za-z0-9_-]")
# Without partitions: their foreign keys and rows are those of the parent table.
FOREIGN_KEYS = """
    select c.relname::text as table, tn.nspname::text as target_schema, t.relname::text as target,
        array(
            select a.attname::text from unnest(k.conkey) with ordinality as u (number, position)
            join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = u.number order by u.position
        ) as columns,
        array(
            select a.attname::text from unnest(k.confkey) with ordinality as u (number, position)
            join pg_attribute as a on a.attrelid = k.confrelid and a.attnum = u.number order by u.position
        ) as target_columns,
        array(
            select a.attname::text from pg_attribute as a
            where a.attrelid = k.conrelid and a.attnum = any(k.conkey) and not a.attnotnull and a.attgenerated = ''
            order by a.attnum
        ) as nullable
    from pg_constraint as k
    join pg_class as c on c.oid = k.conrelid
    join pg_class as t on t.oid = k.confrelid
    join pg_namespace as tn on tn.oid = t.relnamespace
    where k.contype = 'f' and k.conparentid = 0 and c.relnamespace = 'public'::regnamespace and not c.relispartition
    order by c.relname, k.conname
"""
COLUMNS = """
    select c.relname::text, array_agg(a.attname::text order by a.attnum)
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    where c.relnamespace = 'public'::regnamespace and c.relname = any(%s)
    group by c.relname
"""
# Some tables, and the types of their columns.
WRITTEN = """
    select distinct format('public.%%I', c.relname), format('%%I.%%I', n.nspname, t.typname)
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    join pg_type as t on t.oid = a.atttypid
    join pg_namespace as n on n.oid = t.typnamespace
    where c.relnamespace = 'public'::regnamespace and c.relname = any(%s)
"""
# Checks that may fail although the rows are those that were backed up.
HARMLESS = {"structure", "functions"}

Format = Literal["sql", "csv"]
Query = sql.SQL | sql.Composed


class OrganizationUnknown(Failure):
    """The backup does not contain the organization."""


class BackupUnsound(Failure):
    """The backup was restored, but the result differs from what was backed up."""


class OutputPathInvalid(Failure):
    """The extract cannot be written to the requested path."""

    exit_code = 2


@dataclass(frozen=True)
class Reference:
    """A foreign key of a table in schema public; `nullable` lists those of its columns that may be null."""

    table: str
    target_schema: str
    target: str
    columns: list[str]
    target_columns: list[str]
    nullable: list[str]

    def is_to(self, tables: Collection[str]) -> bool:
        """Whether its target is one of these tables in schema public."""
        return self.target_schema == "public" and self.target in tables


@dataclass(frozen=True)
class TableGraph:
    """The tables of an extract with their writable columns, and the foreign keys between them."""

    columns: dict[str, list[str]]
    references: list[Reference]

    @classmethod
    def of(cls, connection: Connection) -> TableGraph:
        """Reads a database: organizations, the tables that refer to them, and profiles."""
        references = connection.cursor(row_factory=class_row(Reference)).execute(FOREIGN_KEYS).fetchall()
        tables = {ORGANIZATIONS, PROFILES, *(each.table for each in references if each.is_to({ORGANIZATIONS}))}
        columns = dict(connection.execute(COLUMNS, [sorted(tables)]).fetchall())
        return cls(columns, [each for each in references if each.table in columns])

    def owner(self, table: str) -> Reference:
        """The foreign key to the owning organization. Prefers organization_id if there are several."""
        found = [each for each in self.references if each.table == table and each.is_to({ORGANIZATIONS})]
        return min(found, key=lambda each: each.columns != [OWNER])

    def groups(self) -> list[list[str]]:
        """Orders parents before children. Tables that refer to each other in a cycle form one group.

        For example, if projects refer to organizations, and memberships and profiles refer to each other and to
        organizations: [organizations], [projects], [memberships, profiles].
        """
        ancestors = {table: {table} for table in self.columns}
        for _ in ancestors:
            for each in self.references:
                if each.is_to(ancestors):
                    ancestors[each.table] |= ancestors[each.target]
        order = sorted(ancestors, key=lambda table: (len(ancestors[table]), sorted(ancestors[table]), table))
        groups: list[list[str]] = []
        for table in order:
            if groups and ancestors[groups[-1][0]] == ancestors[table]:
                groups[-1].append(table)
            else:
                groups.append([table])
        return groups


@dataclass(frozen=True)
class Extract:
    """The result of an extract: rows by table, in the order in which they are put back."""

    backup: str
    organization: str
    format: Format
    output: str
    rows: dict[str, int]
    left_out: tuple[str, ...] = LEFT_OUT


def write_extract(backup: Backup, organization: str, output: Path, output_format: Format, bar: Bar) -> Extract:
    """Writes an organization's rows to `output`, atomically. Raises BackupUnsound and OrganizationUnknown."""
    with _restore_and_check(backup, bar) as connection:
        rows = Rows.of(connection, organization, bar)
        with _write_atomically(output) as path:
            WRITERS[output_format](rows, path, f"From the backup {backup.manifest.name}")
        return Extract(backup.manifest.name, rows.organization, output_format, str(output), rows.count())


@contextmanager
def _restore_and_check(backup: Backup, bar: Bar) -> Iterator[Connection]:
    """Restores the backup into a scratch database and repeats later erasures there. Raises BackupUnsound."""
    with scratch_target(backup, bar) as target:
        for check in restore_and_check(backup, target, bar):
            if check.passed:
                continue
            found = f"the check {check.name!r} of {backup.manifest.name} failed: {check.detail}."
            if check.name not in HARMLESS or _find_wrong_columns(target.connection, backup):
                raise BackupUnsound(f"Nothing was extracted: {found} Extract from another backup.")
            database.echo_err(f"The rows are complete, but {found}")
        yield target.connection


def _find_wrong_columns(connection: Connection, backup: Backup) -> list[Difference]:
    """Finds differences that change the extracted rows: of their columns, and of the types of these."""
    written = connection.execute(WRITTEN, [sorted(TableGraph.of(connection).columns)]).fetchall()
    tables, types = tuple({f"{table}." for table, _ in written}), {type_ for _, type_ in written}
    return [
        each
        for each in structure.find_differences(connection, backup.manifest, backup.read_definitions())
        if each.problem != "is new"
        and ((each.kind == "column" and each.name.startswith(tables)) or (each.kind == "type" and each.name in types))
    ]


# --- the rows, in temporary tables of the scratch database ---


@dataclass(frozen=True)
class Rows:
    """One organization's rows, in temporary tables named by _temporary_table()."""

    connection: Connection
    organization: str
    graph: TableGraph
    bar: Bar

    @classmethod
    def of(cls, connection: Connection, organization: str, bar: Bar) -> Rows:
        """Finds the organization by its uuid or Clerk id, and collects its rows. Raises OrganizationUnknown."""
        connection.execute("set client_encoding = 'UTF8'")
        structure.pin_session(connection, until_commit=False)
        query = "select id::text from public.organizations where id::text = lower(%(id)s) or clerk_org_id = %(id)s"
        found = connection.execute(query, {"id": organization}).fetchone()
        if found is None:
            raise OrganizationUnknown(f"The backup has no organization {organization!r}. Try an older or newer backup.")
        graph = TableGraph.of(connection)
        _collect(connection, graph, str(found[0]))
        return cls(connection, str(found[0]), graph, bar)

    def count(self) -> dict[str, int]:
        """Counts rows by table, in the order in which they are put back."""
        query = sql.SQL("select count(*) from {}")
        ordered = [table for group in self.graph.groups() for table in group]
        found = [self.connection.execute(query.format(_temporary_table(table))).fetchall() for table in ordered]
        return {table: rows for table, [[rows]] in zip(ordered, found, strict=True)}

    def write(self, table: str, options: LiteralString, file: BinaryIO) -> None:
        """Copies a table into a file, and advances the progress bar."""
        query = sql.SQL("copy {} ({}) to stdout with {}").format(
            _temporary_table(table), _column_list(self.graph.columns[table]), sql.SQL(options)
        )
        done = 0
        self.bar.start_stage("Extracting")
        with self.connection.cursor().copy(query) as pieces:
            for piece in pieces:
                done += file.write(piece)
                self.bar.advance_to(done)


def _collect(connection: Connection, graph: TableGraph, organization: str) -> None:
    """Copies the organization, its rows and the people that they refer to into temporary tables."""

    def copy(table: str, condition: Query) -> None:
        query = sql.SQL("create temporary table {} as select {} from {} as t where {}")
        connection.execute(
            query.format(_temporary_table(table), _column_list(graph.columns[table], "t"), _public(table), condition)
        )

    copy(ORGANIZATIONS, sql.SQL("t.id = {}").format(organization))
    for table in sorted(graph.columns.keys() - {ORGANIZATIONS, PROFILES}):
        owner = graph.owner(table)
        copy(table, _is_among(owner.columns, ORGANIZATIONS, owner.target_columns))
    to_profiles = [each for each in graph.references if each.is_to({PROFILES}) and each.table != PROFILES]
    conditions = [_is_among(each.target_columns, each.table, each.columns) for each in to_profiles]
    copy(PROFILES, sql.SQL(" or ").join(conditions) if conditions else sql.SQL("false"))
    for reference in graph.references:
        if reference.is_to(graph.columns):
            _clear_outside_references(connection, graph, reference)


def _clear_outside_references(connection: Connection, graph: TableGraph, reference: Reference) -> None:
    """Sets columns to null that refer to rows outside the extract, such as those of another organization."""
    fixed = [] if reference.table in {ORGANIZATIONS, PROFILES} else graph.owner(reference.table).columns
    cleared = [name for name in reference.nullable if name not in fixed]
    if not cleared:
        return
    query = sql.SQL(
        "update {} as t set {} where row({}) is not null and not exists (select from {} as r where ({}) = ({}))"
    )
    connection.execute(
        query.format(
            _temporary_table(reference.table),
            sql.SQL(", ").join(sql.SQL("{} = null").format(sql.Identifier(name)) for name in cleared),
            _column_list(reference.columns, "t"),
            _temporary_table(reference.target),
            _column_list(reference.target_columns, "r"),
            _column_list(reference.columns, "t"),
        )
    )


def _is_among(columns: list[str], table: str, others: list[str]) -> Query:
    """The condition that a row's columns refer to a row in the extract."""
    return sql.SQL("({}) in (select {} from {} as r)").format(
        _column_list(columns, "t"), _column_list(others, "r"), _temporary_table(table)
    )


# --- what is written ---


def _write_script(rows: Rows, path: Path, source: str) -> None:
    with _open_private(path) as script:

        def copy(table: str, into: str) -> None:
            script.write(f"copy {into} from stdin;\n".encode())
            rows.write(table, "(format text)", script)
            script.write(b"\\.\n")

        _write_put_back_script(rows, script, source, f"psql {DATABASE_VARIABLE} --file={shlex.quote(path.name)}", copy)


def _write_folder(rows: Rows, path: Path, source: str) -> None:
    path.mkdir(mode=0o700)
    numbers = count(1)
    with _open_private(path / "put-back.sql") as script:

        def copy(table: str, into: str) -> None:
            name = f"{next(numbers):02}-{UNSAFE_CHARACTERS.sub('_', table)}.csv"
            with _open_private(path / name) as file:
                rows.write(table, "(format csv, header)", file)
            script.write(f"\\copy {into} from '{name}' with (format csv, header)\n".encode())

        _write_put_back_script(
            rows, script, source, f"In this folder: psql {DATABASE_VARIABLE} --file=put-back.sql", copy
        )


WRITERS = {"sql": _write_script, "csv": _write_folder}


def _write_put_back_script(
    rows: Rows, script: BinaryIO, source: str, command: str, copy: Callable[[str, str], None]
) -> None:
    """Writes the script that puts the rows back.

    `copy(table, into)` writes a table's rows, and the statement that loads them.
    """
    header = f"{source}: the organization {rows.organization}. Inserts missing rows and changes no existing ones."
    without = f"Without the organization's rows of {', '.join(LEFT_OUT)}."
    script.write(f"-- {header}\n-- {without}\n--   {command}\n{PROLOGUE}".encode())
    for group in rows.graph.groups():
        for table in group:
            script.write(_create_temporary_table(rows.graph, table))
            copy(table, _copy_target(rows.graph, table))
        script.write(_insert_missing(rows.graph, group))
    script.write(EPILOGUE)


def _copy_target(graph: TableGraph, table: str) -> str:
    return _as_text(sql.SQL("{} ({})").format(_temporary_table(table), _column_list(graph.columns[table])))


def _create_temporary_table(graph: TableGraph, table: str) -> bytes:
    """A table for the written rows, without constraints."""
    query = sql.SQL("create temporary table {} on commit drop as select {} from {} with no data")
    columns = _column_list(graph.columns[table])
    return f"\n{_as_text(query.format(_temporary_table(table), columns, _public(table)))};\n".encode()


def _insert_missing(graph: TableGraph, group: list[str]) -> bytes:
    """Inserts missing rows. A group is one statement, because foreign keys are checked at the end of a statement."""
    inserts = [_insert_statement(graph, table) for table in group]
    named = [
        f"{_as_text(sql.Identifier(table))} as (\n{insert}\n)" for table, insert in zip(group, inserts, strict=True)
    ]
    before = f"with {', '.join(named[:-1])}\n" if len(group) > 1 else ""
    return f"{before}{inserts[-1]};\n".encode()


def _insert_statement(graph: TableGraph, table: str) -> str:
    columns = graph.columns[table]
    values = sql.SQL(", ").join(_column_value(graph, table, name) for name in columns)
    query = sql.SQL(
        "insert into {} ({}) overriding system value\nselect {}\nfrom {} as t\non conflict do nothing"
    ).format(_public(table), _column_list(columns), values, _temporary_table(table))
    return _as_text(query)


def _column_value(graph: TableGraph, table: str, column: str) -> Query:
    """A column, or null if it refers to a row outside the extract that has been deleted since."""
    conditions = [
        sql.SQL("({} or exists (select from {} as r where ({}) = ({})))").format(
            sql.SQL(" or ").join(sql.SQL("{} is null").format(sql.Identifier("t", name)) for name in each.columns),
            sql.Identifier(each.target_schema, each.target),
            _column_list(each.target_columns, "r"),
            _column_list(each.columns, "t"),
        )
        for each in graph.references
        if each.table == table and column in each.nullable and not each.is_to(graph.columns)
    ]
    value = sql.SQL("{}").format(sql.Identifier("t", column))
    if not conditions:
        return value
    return sql.SQL("case when {} then {} end").format(sql.SQL(" and ").join(conditions), value)


def _temporary_table(table: str) -> sql.Identifier:
    """The temporary table. Its name differs: functions without a search path would use it instead of the real table."""
    return sql.Identifier("pg_temp", f"extract_{table}")


def _public(table: str) -> sql.Identifier:
    return sql.Identifier("public", table)


def _column_list(columns: list[str], of: str | None = None) -> Query:
    parts = ((of, name) if of else (name,) for name in columns)
    return sql.SQL(", ").join(sql.Identifier(*part) for part in parts)


def _as_text(query: sql.Composable) -> str:
    return query.as_string()


# --- the output path ---


def require_free(output: Path) -> None:
    """Raises OutputPathInvalid if `output` cannot be created. Call it first: an extract takes a while."""
    if output.exists():
        raise OutputPathInvalid(f"{output} already exists: choose a path that does not exist.")
    if not output.parent.is_dir():
        raise OutputPathInvalid(f"The folder {output.parent} does not exist: create it or choose another path.")


@contextmanager
def _write_atomically(output: Path) -> Iterator[Path]:
    """Provides a temporary path that is renamed to `output` if the block succeeds, and is removed otherwise."""
    try:
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=output.parent) as folder:
            path = Path(folder) / output.name
            yield path
            path.rename(output)
    except OSError as error:
        raise OutputPathInvalid(f"Cannot write {output}: {error.strerror}.") from None


@contextmanager
def _open_private(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that only its owner may read, and syncs it to disk when the block ends."""
    path.touch(mode=OWNER_ONLY, exist_ok=False)
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
