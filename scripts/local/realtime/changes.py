"""Postgres Changes: finds the subscribers of each change, and the columns that row level security lets them see.

Example: Ada and Ben subscribe to `notes`, Ben with the filter `id=lt.10`. Then row 20 is updated. Both subscriptions
cover the change, so one query of realtime.visible_change() checks both. It applies the filters first: Ben's excludes
row 20. It then runs the policies with Ada's claims: she sees the row. So it returns {"0": null} as `recipients`: only
subscription 0 is notified, without an error. All subscriptions with the same role, columns and error share one notice,
so that equal data is encoded once.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from scripts.local.realtime.authorisation import Pool
from scripts.local.realtime.filters import Filter, FilterInvalid, parse
from scripts.local.realtime.protocol import Json, encode, is_writable
from scripts.local.realtime.replication import Change, Connection
from scripts.local.realtime.tokens import Claims

log = logging.getLogger(__name__)
PUBLICATION: Final = "supabase_realtime"
MAX_PAYLOAD: Final = 1024 * 1024
MAX_KEPT_VALUE: Final = 64
# The number of subscribers per query: the first ones need not wait until the policies of the last ones were checked.
GROUP: Final = 25

TABLES = """
    select c.oid::bigint
    from pg_publication_tables as p
    join pg_class as c on c.relname = p.tablename and c.relnamespace = to_regnamespace(quote_ident(p.schemaname))
    where p.pubname = %(publication)s
      and %(schema)s::text in ('*', p.schemaname::text) and %(table)s::text in ('*', p.tablename::text)
"""
READABLE = """
    select exists (
      select from pg_attribute as a
      where a.attrelid = %(table)s::oid and a.attname = %(column)s and a.attnum > 0 and not a.attisdropped
        and has_column_privilege(%(role)s::name, a.attrelid, a.attnum, 'select')
    )
"""


class SubscriptionRefused(Exception):
    """The subscription is invalid; str() is the message for the client."""


@dataclass(eq=False)
class Subscription:
    """One entry of a channel's `postgres_changes`. `number` is its id in messages of both sides."""

    number: int
    wanted: Json
    claims: Claims
    tables: frozenset[int] = frozenset()
    filters: list[Filter] = field(default_factory=list)

    @classmethod
    def of(cls, wanted: Json, claims: Claims) -> Subscription:
        return cls(zlib.crc32(encode(wanted).encode()) & 0x7FFFFFF, wanted, claims)

    @property
    def event(self) -> str:
        return str(self.wanted.get("event", "*")).upper()

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The selected columns; None for all."""
        chosen = self.wanted.get("select")
        return tuple(map(str, chosen)) if isinstance(chosen, list) and chosen else None

    def covers(self, change: Change) -> bool:
        return change.relation.oid in self.tables and self.event in ("*", change.kind)


@dataclass(frozen=True)
class Notice:
    """A change as sent to several subscriptions: `data` is JSON text, the same for all of them."""

    data: str
    subscriptions: Sequence[Subscription]


@dataclass(frozen=True)
class Visible:
    """The result of realtime.visible_change(). The values of rows are JSON text.

    `recipients` maps the number of each subscription that is notified to its error, or to None.
    """

    new: dict[str, str] | None
    old: dict[str, str] | None
    secured: bool
    key: list[str]
    columns: dict[str, list[Json]]
    recipients: dict[str, str | None]
    raised: list[str]


class Changes:
    """Finds the tables of subscriptions, and builds the notices about changes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def resolve(self, subscription: Subscription) -> None:
        """Finds the tables and checks the filters. Raises SubscriptionRefused."""
        wanted = subscription.wanted
        schema, table = wanted.get("schema", "public" if "table" in wanted else None), wanted.get("table", "*")
        if schema is None:
            raise SubscriptionRefused(
                "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to."
            )
        try:
            filters = parse(wanted.get("filter"))
        except FilterInvalid as error:
            raise SubscriptionRefused(str(error)) from None
        unable = "Unable to subscribe to changes with given parameters."
        if not is_writable(f"{schema}{table}{wanted.get('filter')}"):
            raise SubscriptionRefused(f"{unable} The name or value contains characters that are not allowed.")
        async with self._pool.connection() as connection:
            names = {"publication": PUBLICATION, "schema": str(schema), "table": str(table)}
            rows = await (await connection.execute(TABLES, names)).fetchall()
            if not rows:
                raise SubscriptionRefused(
                    f"{unable} Please check Realtime is enabled for the given connect parameters: {encode(wanted)}"
                )
            for (oid,), one in itertools.product(rows, filters):
                if reason := await _find_filter_error(connection, oid, one, subscription.claims["role"]):
                    raise SubscriptionRefused(f"{unable} {reason}: {encode(wanted)}")
        subscription.tables, subscription.filters = frozenset(oid for (oid,) in rows), filters

    async def build_notices(
        self, connection: Connection, change: Change, subscriptions: Sequence[Subscription]
    ) -> list[Notice]:
        """The notices for subscriptions that cover the change, as far as they may see it. One query for all of them."""
        subscribers = [
            {"id": number, "role": each.claims["role"], "claims": each.claims, "filters": each.filters}
            for number, each in enumerate(subscriptions)
        ]
        answer = await connection.execute(
            "select realtime.visible_change(%s::oid, %s, %s, %s, %s)",
            [change.relation.oid, change.kind, _json(change.new), _json(change.old), Jsonb(subscribers)],
        )
        [[result]] = await answer.fetchall()
        visible = Visible(**result)
        for sqlstate in visible.raised:
            log.error(
                "A POLICY RAISES: select on %s.%s, SQLSTATE %s. The subscriber is not notified.",
                change.relation.schema, change.relation.name, sqlstate,
            )  # fmt: skip
        roles = [each["role"] for each in subscribers]  # those of the query: a token may have been renewed meanwhile
        return list(_group_notices(change, visible, subscriptions, roles))


async def _find_filter_error(connection: Connection, table: int, condition: Filter, role: str) -> str | None:
    """Why a filter is invalid: its column does not exist or may not be read, or its value has the wrong type."""
    names = {"table": table, "column": condition.column, "role": role}
    if await (await connection.execute(READABLE, names)).fetchone() != (True,):
        return f"invalid column for filter {condition.column}"
    try:
        nothing = Jsonb({condition.column: None})
        await connection.execute("select realtime.passes(%s::oid, %s, %s)", [table, nothing, Jsonb([condition])])
    except psycopg.Error:
        return f"invalid value for filter {condition.column}"
    return None


def _json(row: Any) -> Jsonb | None:
    return None if row is None else Jsonb(row)


def _group_notices(
    change: Change, visible: Visible, subscriptions: Sequence[Subscription], roles: Sequence[str]
) -> Iterator[Notice]:
    """One notice for all subscriptions that receive the same data."""
    groups = defaultdict(list)
    for number, error in visible.recipients.items():
        subscription = subscriptions[int(number)]
        groups[roles[int(number)], subscription.columns, error].append(subscription)
    for (role, chosen, error), group in groups.items():
        yield Notice(_refusal(change, error) if error else _data(change, visible, role, chosen), group)


def _refusal(change: Change, error: str) -> str:
    nothing: Json = {"commit_timestamp": None, "columns": [], "record": {}, "old_record": {}}
    return encode(_head(change) | nothing | {"errors": [error]})


def _data(change: Change, visible: Visible, role: str, chosen: tuple[str, ...] | None) -> str:
    shown = None if chosen is None else {*chosen, *visible.key}
    columns = [each for each in visible.columns[role] if shown is None or each["name"] in shown]
    names = {each["name"] for each in columns}
    new, old = visible.new or {}, visible.old or {}
    too_large = sum(len(value) for row in (new, old) for value in row.values()) > MAX_PAYLOAD

    def part(row: dict[str, str]) -> str:
        """The row as JSON text. Its values already are JSON text."""
        values = (
            f"{encode(name)}:{value}"
            for name, value in row.items()
            if name in names and not (too_large and len(value) > MAX_KEPT_VALUE)
        )
        return f"{{{','.join(values)}}}"

    head = _head(change) | {
        "commit_timestamp": change.committed_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "columns": columns,
        "errors": ["Error 413: Payload Too Large"] if too_large else None,
    }
    rows = []
    if change.kind != "DELETE":
        rows.append(f'"record":{part(old | new)}')
    if change.kind != "INSERT":
        # Policies cannot be checked for a deleted row, so every subscriber is notified, and receives only its key.
        only_key = change.kind == "DELETE" and visible.secured
        rows.append(f'"old_record":{part({name: old[name] for name in old if name in visible.key or not only_key})}')
    return f"{encode(head)[:-1]},{','.join(rows)}}}"


def _head(change: Change) -> Json:
    return {"schema": change.relation.schema, "table": change.relation.name, "type": change.kind}
