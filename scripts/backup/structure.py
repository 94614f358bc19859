"""Describes the objects of our schemas, and finds what differs in a restored database.

PostgreSQL may print a definition differently after a dump and a restore, or in another version. Example: a check reads
`(kind)::text = ANY ((ARRAY['a'::character varying])::text[])` before, and `ANY (ARRAY[('a'::character varying)::text])`
after. So a definition that reads differently is created again from its old text on the restored server, in a
transaction that is rolled back. The restore read the same text, so PostgreSQL prints the same definition the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql
from pydantic import TypeAdapter

from scripts.backup.manifest import SCHEMAS, Manifest
from scripts.schema.database import Connection

QUERY = Path(__file__).with_suffix(".sql")
HASH_DIGITS = 16
# The first version that has the privilege MAINTAIN.
MAINTAIN_VERSION = 170_000
# Settings that change how PostgreSQL prints a value or a definition, or how it reads one.
PINNED = {
    "array_nulls": "on",
    "backslash_quote": "safe_encoding",
    "bytea_output": "hex",
    "DateStyle": "ISO, MDY",
    "extra_float_digits": "1",
    "IntervalStyle": "postgres",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "quote_all_identifiers": "off",
    "search_path": "pg_catalog",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "transform_null_equals": "off",
    "xmlbinary": "base64",
    "xmloption": "content",
}
# For a script that psql runs. The objects that it refers to may need another search path.
SET_LOCAL = "".join(f"set local {name} = '{value}';\n" for name, value in PINNED.items() if name != "search_path")


class Definition(NamedTuple):
    """`facts` are compared as they are; `statement` creates the object again. structure.sql explains both."""

    facts: str
    statement: str | None


class Difference(NamedTuple):
    """An object of the backup that is missing, one that is new, or one that differs."""

    kind: str
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.problem}"


# Definitions by kind and name.
Structure = dict[str, dict[str, Definition]]
JSON = TypeAdapter(Structure)


def pin_session(connection: Connection, *, until_commit: bool) -> None:
    """Sets what the session or a pooler may have changed, until the transaction or the session ends."""
    for setting, value in PINNED.items():
        connection.execute("select pg_catalog.set_config(%s, %s, %s)", [setting, value, until_commit])


@contextmanager
def pinned(connection: Connection) -> Iterator[None]:
    """A transaction in which PostgreSQL prints definitions as in any other session."""
    with connection.transaction():
        pin_session(connection, until_commit=True)
        yield


def describe(connection: Connection) -> Structure:
    """Describes each object in our schemas. Session settings do not affect it."""
    found: Structure = {}
    with pinned(connection):
        rows = connection.execute(QUERY.read_bytes(), {"schemas": list(SCHEMAS)}).fetchall()
    for kind, name, facts, statement in rows:
        found.setdefault(kind, {})[name] = Definition(facts, statement)
    return found


def hash_definitions(structure: Structure) -> dict[str, dict[str, str]]:
    """Hashes each definition, for the manifest, which is not encrypted."""
    return {
        kind: {name: _hash(definition) for name, definition in definitions.items()}
        for kind, definitions in structure.items()
    }


def _hash(definition: Definition) -> str:
    text = "\0".join(part or "" for part in definition)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def find_differences(connection: Connection, manifest: Manifest, backed_up: Structure) -> list[Difference]:
    """Compares a restored database with a manifest and the definitions that its hashes were made of.

    Locks what it creates again until it has rolled back.
    """
    with connection.transaction(force_rollback=True):
        pin_session(connection, until_commit=True)
        connection.execute("set local statement_timeout = 0")
        connection.execute("set local check_function_bodies = off")
        restored = describe(connection)
        [[role]] = connection.execute("select current_user::regrole::text").fetchall()
        has_maintain = min(connection.info.server_version, manifest.server_version) >= MAINTAIN_VERSION
        found: list[Difference] = []
        for kind in sorted(restored.keys() | manifest.structure.keys()):
            actual, expected = restored.get(kind, {}), manifest.structure.get(kind, {})
            found += [Difference(kind, name, "is missing") for name in sorted(expected.keys() - actual.keys())]
            found += [Difference(kind, name, "is new") for name in sorted(actual.keys() - expected.keys())]
            hashes = [name for name in sorted(actual.keys() & expected.keys()) if _hash(actual[name]) != expected[name]]
            texts = {name: _find_text(backed_up, kind, name, expected[name]) for name in hashes}
            same = _find_same(connection, kind, actual, texts)
            found += [Difference(kind, name, "differs") for name in hashes if name not in same]
    return [each for each in found if _is_restored(each, role, has_maintain=has_maintain)]


def _find_text(backed_up: Structure, kind: str, name: str, expected: str) -> Definition | None:
    """The definition that was backed up, if it is the one that the manifest's hash was made of."""
    text = backed_up.get(kind, {}).get(name)
    return text if text is not None and _hash(text) == expected else None


def _find_same(
    connection: Connection, kind: str, restored: dict[str, Definition], texts: dict[str, Definition | None]
) -> set[str]:
    """Returns the objects that PostgreSQL prints as restored when it creates them again from these texts."""
    created = set()
    with connection.transaction(force_rollback=True):
        for name, text in texts.items():
            if text is not None and text.statement is not None and text.facts == restored[name].facts:
                try:
                    with connection.transaction():
                        _execute_inside(connection, text.statement)
                except psycopg.Error:
                    continue
                created.add(name)
        printed = describe(connection).get(kind, {}) if created else {}
    return {name for name in created if name in printed and printed[name].statement == restored[name].statement}


def _execute_inside(connection: Connection, statements: str) -> None:
    """Runs statements that cannot end the transaction: a writer to the store could have forged them."""
    block = sql.SQL("begin execute {}; end").format(statements)
    connection.execute(sql.SQL("do {}").format(block.as_string(connection)))


def _is_restored(difference: Difference, role: str, *, has_maintain: bool) -> bool:
    """Whether a restore creates such an object.

    The restoring role owns whatever a dump contains, so it needs no grant, and has those of its own on schema public.
    It may not change the default privileges of other roles.
    """
    kind, name, _ = difference
    if kind not in {"grant", "default privilege"}:
        return True
    if name.startswith("maintain ") and not has_maintain:
        return False
    return f" of {role} to " in name if kind == "default privilege" else not name.endswith(f" to {role}")
