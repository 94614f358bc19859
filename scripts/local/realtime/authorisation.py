"""Checks access to private channels: tries the policies on realtime.messages as the caller, and rolls back."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from scripts.local.realtime.protocol import encode
from scripts.local.realtime.tokens import Claims

log = logging.getLogger(__name__)
Pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]
EXTENSIONS = ("broadcast", "presence")
INSERT = "insert into realtime.messages (id, topic, extension) values (%s, %s, %s)"


@dataclass(frozen=True)
class Access:
    """Which of a channel's two extensions a caller may use."""

    broadcast: bool
    presence: bool


NONE, ALL = Access(broadcast=False, presence=False), Access(broadcast=True, presence=True)


class Authorisation:
    """Checks access in the database. If a policy refuses or raises, the caller has no access.

    Raises psycopg.OperationalError or PoolTimeout if the database does not answer.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def reading(self, claims: Claims, topic: str) -> Access:
        """What the caller may receive on a topic: inserts a message per extension, and checks which ones they see."""
        probes = {uuid.uuid4(): extension for extension in EXTENSIONS}
        async with self._pool.connection() as connection, connection.transaction(force_rollback=True):
            for identifier, extension in probes.items():
                await connection.execute(INSERT, [identifier, topic, extension])
            await _become(connection, claims, topic)
            try:
                rows = await connection.execute(
                    "select id from realtime.messages where topic = %s and id = any(%s)", [topic, list(probes)]
                )
                seen = {probes[identifier] for (identifier,) in await rows.fetchall()}
            except psycopg.Error as error:
                if connection.closed:
                    raise
                _log_failure("select", error)
                return NONE
        return Access("broadcast" in seen, "presence" in seen)

    async def writing(self, claims: Claims, topic: str) -> Access:
        """What the caller may send to a topic: checks for which extensions they can insert a message."""
        async with self._pool.connection() as connection, connection.transaction(force_rollback=True):
            await _become(connection, claims, topic)
            return Access(*[await _may_insert(connection, topic, extension) for extension in EXTENSIONS])


async def _become(connection: psycopg.AsyncConnection[Any], claims: Claims, topic: str) -> None:
    await connection.execute(
        "select set_config('role', %s, true), set_config('realtime.topic', %s, true),"
        " set_config('request.jwt.claims', %s, true), set_config('request.headers', '{}', true)",
        [claims["role"], topic, encode(claims)],
    )


async def _may_insert(connection: psycopg.AsyncConnection[Any], topic: str, extension: str) -> bool:
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute(INSERT, [uuid.uuid4(), topic, extension])
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.Error as error:
        if connection.closed:
            raise
        _log_failure("insert", error)
        return False
    return True


def _log_failure(command: str, error: psycopg.Error) -> None:
    """Logs the SQLSTATE only: the server's message may quote claims."""
    log.error("A POLICY RAISES: %s on realtime.messages, SQLSTATE %s. The caller is refused.", command, error.sqlstate)
