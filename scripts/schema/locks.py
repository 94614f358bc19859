"""Limits lock waits, so that a deployment gives up before PostgreSQL aborts a writer; retries, and names blockers.

Two sessions that wait for each other are a deadlock. PostgreSQL looks for one when a session has waited for
deadlock_timeout (1 s by default), and aborts the session that looks. A deployment that holds locks for longer than that
and then waits makes a writer look. So all waits of a transaction end within half of deadlock_timeout after it began.

Example: `up` alters public.projects, and then needs public.profiles. A writer has locked public.profiles, and waits
for public.projects. After 200 ms `up` rolls the file back, the writer continues, and `up` tries again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import psycopg
from psycopg import errors

from scripts.errors import Failure
from scripts.schema.database import Connection, Notify

# How long one file is retried. A session that holds a lock for longer is named, and needs a decision.
PATIENCE_SECONDS = 60.0
MAX_PAUSE_SECONDS = 1.0
# Writers behind the deployment wait as long as it does, so a longer deadlock_timeout does not make it wait longer.
MAX_WAIT_MS = 200
# Later waits of a transaction that already took longer. Zero would be no limit.
MIN_WAIT_MS = 5
LOOK_SECONDS = 0.1
REPORT_SECONDS = 10.0

# No locks are held before this, so waits count from here until the transaction ends.
START = "select set_config('ballast.start', clock_timestamp()::text, true)"

BUSY = (errors.LockNotAvailable, errors.DeadlockDetected)

Result = TypeVar("Result")

# pg_blocking_pids() returns 0 for a prepared transaction, which has no session.
BLOCKERS = """
    select b.pid, a.usename, a.application_name, coalesce(a.backend_type, ''), a.state,
      extract(epoch from clock_timestamp() - coalesce(a.xact_start, a.state_change, a.backend_start))
    from (select distinct unnest(pg_blocking_pids(%s)) as pid) as b left join pg_stat_activity as a using (pid)
    order by b.pid
"""


# Sessions that have waited for us for too long.
WAITERS = """
    select from pg_locks
    where not granted and waitstart < clock_timestamp() - %s * interval '1 ms' and %s = any (pg_blocking_pids(pid))
"""


# The table whose lock a session awaits.
AWAITED = """
    select l.relation::regclass::text from pg_locks as l where l.pid = %s and not l.granted and l.locktype = 'relation'
"""


class DeploymentLockLost(Failure):
    """The guard's connection ended, and with it the lock that allows one deployment at a time."""


class LockUnavailable(Failure):
    """A lock was not available in time. The message names the statement and who held the lock."""


class Blocker(NamedTuple):
    """A session that holds or awaits a lock before us. Not its query, which may contain personal data.

    `seconds` is the age of its transaction. `state` and `seconds` are None if our role may not see them.
    """

    pid: int
    role: str | None
    application: str | None
    backend: str
    state: str | None
    seconds: float | None

    def __str__(self) -> str:
        if self.pid == 0:
            return "a prepared transaction (see pg_prepared_xacts)"
        facts = [f"role {self.role}" if self.role else self.backend]
        facts += [self.application] if self.application else []
        facts += [self.state] if self.state else []
        facts += [f"its transaction began {self.seconds:.0f} s ago"] if self.seconds is not None else []
        return f"process {self.pid} ({', '.join(fact for fact in facts if fact)})"


@dataclass
class Locks:
    """Retries transactions of `connection`. `guard`, another connection in a transaction, sees meanwhile who blocks."""

    connection: Connection
    guard: Connection
    notify: Notify
    deadlock_ms: int = 0
    wait_ms: int = 0
    vacuumed_table: str | None = None
    pid: int | None = None
    gives_way: bool = False
    has_given_way: bool = False
    blockers: list[Blocker] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Reads the server's deadlock_timeout, which every role may read."""
        query = "select setting::int from pg_settings where name = 'deadlock_timeout'"
        [[self.deadlock_ms]] = self.guard.execute(query).fetchall()
        self.wait_ms = max(MIN_WAIT_MS, min(MAX_WAIT_MS, self.deadlock_ms // 2))

    @property
    def limit(self) -> str:
        """A statement that limits later lock waits to the rest of the time, from START or the transaction's begin."""
        start = "coalesce(nullif(current_setting('ballast.start', true), '')::timestamptz, transaction_timestamp())"
        passed = f"(extract(epoch from clock_timestamp() - {start}) * 1000)::bigint"
        return f"select set_config('lock_timeout', greatest({MIN_WAIT_MS}, {self.wait_ms} - {passed})::text, true)"

    def retry(
        self, what: str, work: Callable[[], Result], *, force_rollback: bool = False, gives_way: bool = False
    ) -> Result:
        """Runs `work` in a transaction until no lock stops it. Raises LockUnavailable when PATIENCE_SECONDS are over.

        The work is also stopped while others wait for it and it waits itself; with `gives_way`, whenever others wait.
        Raises DeploymentLockLost, and the error of the work.
        """
        began = time.monotonic()
        reported = began - REPORT_SECONDS
        while True:
            self.gives_way, self.has_given_way, self.blockers, self.vacuumed_table = gives_way, False, [], None
            try:
                with self._observe(), self.connection.transaction(force_rollback=force_rollback):
                    # Asked each time: through a transaction pooler, each transaction may have another server process.
                    [[self.pid]] = self.connection.execute("select pg_backend_pid()").fetchall()
                    return work()
            except (Failure, psycopg.Error) as error:
                reason = error.__cause__ if isinstance(error, Failure) else error
                if not self._is_busy(reason):
                    raise
                if time.monotonic() - began >= PATIENCE_SECONDS:
                    raise LockUnavailable(f"{error}\n{self._describe_blockers()}") from reason
            if time.monotonic() - reported >= REPORT_SECONDS:
                self.notify(f"{what} waits for a lock; retrying ... {self._describe_blockers()}")
                reported = time.monotonic()
            if self.vacuumed_table is not None:
                self._end_autovacuum(self.vacuumed_table)
            else:
                time.sleep(random.uniform(0.1, MAX_PAUSE_SECONDS))  # noqa: S311 - not for secrets

    def _end_autovacuum(self, table: str) -> None:
        """Waits until PostgreSQL cancels the autovacuum of a table, for a session that waits for deadlock_timeout.

        We wait in a mode that does not block readers and writers, and hold no other lock.
        """
        with suppress(errors.LockNotAvailable), self.connection.transaction(force_rollback=True):
            self.connection.execute(f"set local lock_timeout = {self.deadlock_ms + 500}".encode())
            self.connection.execute(f"lock table {table} in share update exclusive mode".encode())

    def _is_busy(self, error: BaseException | None) -> bool:
        return isinstance(error, BUSY) or (self.has_given_way and isinstance(error, errors.QueryCanceled))

    def _describe_blockers(self) -> str:
        if self.has_given_way:
            return "It stopped because others waited for it for too long."
        if not self.blockers:
            return "The lock was free again before its holder was found."
        return f"The lock is held by {'; '.join(str(blocker) for blocker in self.blockers)}."

    @contextmanager
    def _observe(self) -> Iterator[None]:
        """Records, through `guard`, which sessions block the transaction in this block. Raises DeploymentLockLost."""
        self.pid = None
        ended = threading.Event()
        try:
            self.guard.execute("select")
            with ThreadPoolExecutor(1) as pool:
                looking = pool.submit(self._look, ended)
                try:
                    yield
                finally:
                    ended.set()
            looking.result()
        except psycopg.OperationalError as error:
            if not self.guard.broken:
                raise
            raise DeploymentLockLost(
                "The connection that holds the deployment lock was lost. Run this again: it continues."
            ) from error

    def _look(self, ended: threading.Event) -> None:
        while not ended.wait(min(LOOK_SECONDS, self.wait_ms / 4000)):
            # In a transaction, the statistics views keep their first result until it is cleared.
            self.guard.execute("select pg_stat_clear_snapshot()")
            if found := self.guard.execute(BLOCKERS, [self.pid]).fetchall():
                self.blockers = [Blocker(*row) for row in found]
                if any(blocker.backend == "autovacuum worker" for blocker in self.blockers):
                    self.vacuumed_table, *_ = self.guard.execute(AWAITED, [self.pid]).fetchone() or [None]
            # A long statement may still wait for wait_ms when the deadlock detector of a session behind it looks.
            if (self.gives_way or found) and self.guard.execute(WAITERS, [self.wait_ms, self.pid]).rowcount:
                self.has_given_way = True
                # Again at the next look: between two statements, this cancels nothing.
                self.connection.cancel_safe()
