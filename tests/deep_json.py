"""Finds columns that accept JSON of more than 64 levels, and functions of the API that take it, by trying such a value."""

from __future__ import annotations

import psycopg

from tests.conftest import Database

LEVELS = 64
# A trigger records a row inside {"after": {column: value}}, and selected columns inside {column: value}.
LEVELS_OF = {("audit_logs", "changes"): LEVELS + 2, ("audit_logs", "metadata"): LEVELS + 1}
OURS = "('public', 'app', 'ops')"


def nest(levels: int) -> str:
    """A JSON object with this many levels: {"a": 1} has two."""
    return '{"a":' * (levels - 1) + "1" + "}" * (levels - 1)


def make_value(database: Database, kind: int, levels: int) -> str | None:
    """An SQL expression of the type whose to_jsonb() has this many levels. None for a type without JSON."""
    [(name, category, base, element, relation)] = database.rows(
        """select format_type(oid, null), typtype, typbasetype::bigint, case when typcategory = 'A' then typelem::bigint else 0 end, typrelid::bigint
        from pg_type where oid = %s""",
        kind,
    )
    if name in {"json", "jsonb"}:
        return f"'{nest(levels)}'::{name}"
    if category == "d":
        inner = make_value(database, base, levels)
        return inner and f"({inner})::{name}"
    if element:
        inner = make_value(database, element, levels - 1)
        return inner and f"array[{inner}]::{name}"
    if category == "c":
        fields = database.rows(
            "select atttypid::bigint from pg_attribute where attrelid = %s and attnum > 0 and not attisdropped order by attnum",
            relation,
        )
        inners = [make_value(database, field, levels - 1) for (field,) in fields]
        return f"row({', '.join(inner or 'null' for inner in inners)})::{name}" if any(inners) else None
    return None


def read_columns(database: Database) -> list[tuple[int, str, str, str, int, int]]:
    """All columns of our tables: the table's oid, its name with and without schema, then name, number and type."""
    return database.rows(
        f"""select c.oid::bigint, c.oid::regclass::text, c.relname::text, a.attname::text, a.attnum, a.atttypid::bigint
        from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and not c.relispartition order by 2, 4"""
    )


def list_columns(database: Database) -> list[tuple[str, str]]:
    """The table and name of each column with JSON."""
    return [(table, column) for _, table, _, column, _, kind in read_columns(database) if make_value(database, kind, 2)]


def find_unchecked_columns(database: Database) -> list[str]:
    """Columns for which no check is false although their JSON has one level too many."""
    return [
        f"{table}.{column}"
        for oid, table, name, column, number, kind in read_columns(database)
        if (value := make_value(database, kind, LEVELS_OF.get((name, column), LEVELS) + 1))
        and not is_refused(database, oid, number, value)
    ]


def is_refused(database: Database, table: int, column: int, value: str) -> bool:
    """Whether a check of the table is false, or a domain refuses the value, when only this column has one."""
    checks = database.rows(
        "select pg_get_expr(conbin, conrelid) from pg_constraint where conrelid = %s and contype = 'c' and %s = any(conkey)",
        table,
        column,
    )
    others = database.rows(
        """select format('null::%%s as %%I', format_type(atttypid, atttypmod), attname), attnum, quote_ident(attname)
        from pg_attribute where attrelid = %s and attnum > 0 and not attisdropped""",
        table,
    )
    row = ", ".join(f"{value} as {name}" if number == column else null for null, number, name in others)
    refusals = " or ".join(f"({check}) is false" for (check,) in checks) or "false"
    try:
        with database.connection.transaction():
            return bool(database.value(f"select {refusals}, probe.* from (select {row}) as probe"))
    except psycopg.errors.CheckViolation:
        return True


def read_functions(database: Database) -> list[tuple[str, str, str, list[int]]]:
    """The functions that an API role may execute: signature, name, role, and types of the arguments."""
    return database.rows(
        f"""select p.oid::regprocedure::text, p.oid::regproc::text, r.role, p.proargtypes::oid[]::bigint[]
        from pg_proc as p
        join pg_namespace as n on n.oid = p.pronamespace
        cross join unnest('{{authenticated,service_role}}'::text[]) as r (role)
        where n.nspname in {OURS} and has_function_privilege(r.role, p.oid, 'execute') order by 1, 3"""
    )


def list_arguments(database: Database) -> set[tuple[str, str]]:
    """The name and role of each function in public that takes JSON."""
    return {
        (name, role)
        for _, name, role, kinds in read_functions(database)
        if "." not in name and any(make_value(database, kind, 2) for kind in kinds)
    }


def find_unchecked_arguments(database: Database) -> list[str]:
    """Arguments of functions that an API role may execute, for which one level too many does not raise PT400."""
    return [
        f"{signature}, argument {place + 1}, as {role}"
        for signature, name, role, kinds in read_functions(database)
        for place, kind in enumerate(kinds)
        if (value := make_value(database, kind, LEVELS + 1))
        and not raises_pt400(database, role, name, [value if at == place else "null" for at in range(len(kinds))])
    ]


def raises_pt400(database: Database, role: str, function: str, arguments: list[str]) -> bool:
    try:
        with database.connection.transaction(), database.acting(role, {"role": role}):
            database.execute(f"select {function}({', '.join(arguments)})")
    except psycopg.Error as error:
        return error.sqlstate == "PT400" and error.diag.message_primary == "The JSON has more than 64 levels."
    return False
