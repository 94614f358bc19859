"""The product's tenant tables: tests/tables/<table>.toml has the values that tests write and the expected permissions."""

from __future__ import annotations

import json
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

FOLDER = Path(__file__).with_name("tables")
UNIQUE = "{unique}"


@dataclass(frozen=True)
class TenantTable:
    """`needs` maps a command to the permission it needs, `permissions` maps a permission to the roles that hold it."""

    name: str
    new: dict[str, Any]
    changed: dict[str, Any]
    needs: dict[str, str]
    permissions: dict[str, list[str]]

    def insert(self, organizations: str, rows: int = 1) -> str:
        """A statement that inserts `rows` rows for each organization. `organizations` is an item of a FROM clause.

        The statement contains no %, because psycopg would take it for a parameter.
        """
        return f"""
            insert into public.{self.name} (organization_id, {", ".join(self.new)})
            select o.id, {", ".join(f"r.{column}" for column in self.new)}
            from {organizations} as o
            cross join generate_series(1, {rows}) as n
            cross join lateral jsonb_populate_record(
              null::public.{self.name}, replace({_json(self.new)}, '{UNIQUE}', substr(md5(concat(o.id, n, random())), 1, 12))::jsonb
            ) as r"""

    def write(self) -> dict[str, str]:
        """Statements that update and delete all rows, for the commands that some role may use."""
        values = ", ".join(f"{column} = {_expression(value)}" for column, value in self.changed.items())
        statements = {"update": f"update public.{self.name} set {values}", "delete": f"delete from public.{self.name}"}
        return {command: statement for command, statement in statements.items() if command in self.needs}


def fill_placeholders(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with {unique} replaced, as a client sends them."""
    return json.loads(json.dumps(values).replace(UNIQUE, secrets.token_hex(6)))  # type: ignore[no-any-return]


def _json(values: dict[str, Any]) -> str:
    return sql.Literal(json.dumps(values).replace("%", "\\u0025")).as_string()


def _expression(value: Any) -> str:
    literal = sql.Literal(value if isinstance(value, str) else json.dumps(value)).as_string()
    return f"replace({literal}, '{UNIQUE}', substr(md5(id::text), 1, 12))" if UNIQUE in literal else literal


def _read(file: Path) -> TenantTable:
    return TenantTable(file.stem, **tomllib.loads(file.read_text()))


def permissions_of(role: str) -> set[str]:
    """All permissions of a role on these tables."""
    tables = TABLES.values()
    return {permission for table in tables for permission, roles in table.permissions.items() if role in roles}


TABLES = {file.stem: _read(file) for file in sorted(FOLDER.glob("*.toml"))}
