"""The product's tenant tables, views and functions: tests/tables/<name>.toml says what tests write, and who may do what.

A file describes a table. With `kind = "view"` it describes a view, and with `kind = "function"` a function of the API.
"""

from __future__ import annotations

import json
import secrets
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from psycopg import sql

FOLDER = Path(__file__).with_name("tables")
# Placeholders in values: 12 hexadecimal digits, and a whole number up to 2 * 10^9. They differ in each row.
UNIQUE, UNIQUE_NUMBER = "{unique}", "{unique_number}"


@dataclass(frozen=True)
class TenantTable:
    """`needs` maps a command to the permission it needs, `permissions` maps a permission to the roles that hold it.

    `parents` maps a column to the table that it refers to. A table that refers to itself is not listed.
    """

    name: str
    new: dict[str, Any]
    changed: dict[str, Any]
    needs: dict[str, str]
    permissions: dict[str, list[str]]
    parents: dict[str, str] = field(default_factory=dict)

    def insert(self, organizations: str, rows: int = 1, *, without_parents: bool = False) -> str:
        """A statement that inserts `rows` rows for each organization. `organizations` is an item of a FROM clause.

        Each row refers to existing rows of the parents. Without parents, in a session that checks no foreign keys, it
        refers to nothing. The statement contains no %, because psycopg would take it for a parameter.
        """
        parents = {column: "gen_random_uuid()" if without_parents else self._choose(column) for column in self.parents}
        values = f"replace({_json(self.new)}, '{UNIQUE}', substr(md5(concat(o.id, n, random())), 1, 12))"
        # The number differs from that of each other row of the statement, if there are at most 200 per organization.
        values = f"replace({values}, '{UNIQUE_NUMBER}', (floor(random() * 1e7)::bigint * 200 + mod(n, 200))::text)"
        return f"""
            insert into public.{self.name} ({", ".join(("organization_id", *parents, *self.new))})
            select {", ".join(("o.id", *parents.values(), *(f"r.{column}" for column in self.new)))}
            from {organizations} as o
            cross join generate_series(1, {rows}) as n
            cross join lateral jsonb_populate_record(null::public.{self.name}, {values}::jsonb) as r"""

    def choose_parents(self, organizations: str) -> str:
        """A query for the ids of the rows that the next row refers to, as JSON."""
        pairs = ", ".join(f"'{column}', {self._choose(column)}" for column in self.parents)
        return f"select jsonb_build_object({pairs}) from {organizations} as o"

    def _choose(self, column: str) -> str:
        """The row of the parent to which the fewest rows refer: a reference may be unique."""
        return f"""(
            select p.id from public.{self.parents[column]} as p where p.organization_id = o.id order by (
              select count(*) from public.{self.name} as c where c.organization_id = o.id and c.{column} = p.id
            ), p.id limit 1)"""

    def ancestors(self) -> Iterator[TenantTable]:
        """The tables whose rows a row of this one needs, in the order in which they are filled."""
        for parent in dict.fromkeys(self.parents.values()):
            yield from TABLES[parent].ancestors()
            yield TABLES[parent]

    def write(self) -> dict[str, str]:
        """Statements that update and delete all rows, for the commands that some role may use."""
        changed = {column: self._express(column, value) for column, value in self.changed.items()}
        values = ", ".join(f"{column} = {value}" for column, value in (changed or {c: c for c in self.parents}).items())
        statements = {"update": f"update public.{self.name} set {values}", "delete": f"delete from public.{self.name}"}
        return {command: statement for command, statement in statements.items() if command in self.needs}

    def _express(self, column: str, value: Any) -> str:
        literal = sql.Literal(value if isinstance(value, str) else json.dumps(value)).as_string()
        if UNIQUE not in literal and UNIQUE_NUMBER not in literal:
            return literal
        values = f"replace({_json({column: value})}, '{UNIQUE}', substr(md5(id::text), 1, 12))"
        values = f"replace({values}, '{UNIQUE_NUMBER}', ('x' || substr(md5(id::text), 1, 7))::bit(28)::integer::text)"
        return f"(jsonb_populate_record(null::public.{self.name}, {values}::jsonb)).{column}"


@dataclass(frozen=True)
class View:
    """A view with a column organization_id. Tests make a row of each table in `rows`; then it has a row for each tenant."""

    name: str
    rows: list[str]
    needs: dict[str, str]


@dataclass(frozen=True)
class Function:
    """A function that clients call. The caller needs the permission `needs` in the tenant of the arguments.

    In `arguments`, `{organization}` is the tenant's id, and the name of a table of `rows` in braces the id of a new row.
    """

    name: str
    needs: str
    arguments: dict[str, Any]
    rows: list[str] = field(default_factory=list)


def fill_placeholders(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with the placeholders replaced, as a client sends them."""
    text = json.dumps(values).replace(UNIQUE_NUMBER, str(secrets.randbelow(2 * 10**9)))
    return json.loads(text.replace(UNIQUE, secrets.token_hex(6)))  # type: ignore[no-any-return]


def _json(values: dict[str, Any]) -> str:
    return sql.Literal(json.dumps(values).replace("%", "\\u0025")).as_string()


def _read(kind: str) -> dict[str, dict[str, Any]]:
    """Reads the files of one kind, by the name of the object."""
    files = {file.stem: tomllib.loads(file.read_text()) for file in sorted(FOLDER.glob("*.toml"))}
    return {name: values for name, values in files.items() if values.pop("kind", "table") == kind}


def _order(tables: dict[str, TenantTable]) -> dict[str, TenantTable]:
    """Orders tables so that each follows those that it refers to."""
    if lacking := {parent for table in tables.values() for parent in table.parents.values()} - tables.keys():
        raise LookupError(f"tests/tables has no file of {', '.join(sorted(lacking))}: write it, or change [parents].")
    order = TopologicalSorter({name: sorted(tables[name].parents.values()) for name in sorted(tables)})
    return {name: tables[name] for name in order.static_order()}


def permissions_of(role: str) -> set[str]:
    """All permissions of a role that tests/tables and tests/permissions declare."""
    return {permission for permission, roles in DECLARED if role in roles}


def declared_roles() -> set[str]:
    """All roles that tests/tables and tests/permissions name."""
    return {role for _, roles in DECLARED for role in roles}


TABLES = _order({name: TenantTable(name, **values) for name, values in _read("table").items()})
VIEWS = {name: View(name, **values) for name, values in _read("view").items()}
FUNCTIONS = {name: Function(name, **values) for name, values in _read("function").items()}
# A product declares what its own permissions, or its own roles, add in a file tests/permissions/<name>.toml.
DECLARED: list[tuple[str, list[str]]] = [
    *(item for table in TABLES.values() for item in table.permissions.items()),
    *(item for file in FOLDER.parent.glob("permissions/*.toml") for item in tomllib.loads(file.read_text()).items()),
]
