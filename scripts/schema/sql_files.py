"""Reads and writes the files of a checkout that `ballast migrate` applies: migrations/, functions/ and policies/."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from psycopg import sql

from scripts.errors import Failure
from scripts.schema.statements import split

ROOT = Path(__file__).resolve().parents[2]

MIGRATIONS = Path("migrations")
# The folder that `ballast migrate bundle` writes, and the suffix of bundle names. `migrate up` ignores recorded
# bundles, because it applies their sources itself.
BUNDLES = Path("supabase/migrations")
BUNDLE_SUFFIX = ".bundle"

# The first line of a migration that `ballast upgrade` took from a release: its version there, and a checksum of the
# rest of the file. It identifies the migration for good, whatever timestamp the file has here.
ORIGIN_MARK = "-- ballast:"
_ORIGIN = re.compile(rf"{ORIGIN_MARK} (?P<version>\d{{14}}) (?P<checksum>[0-9a-f]{{64}})")
_VERSION = re.compile(r"\d{14}(?=_)")
_MIGRATION_NAME = re.compile(r"(?P<version>\d{14})_(?P<name>[a-z0-9_]+)\.sql")


class FilesInvalid(Failure):
    """A file of migrations/, functions/ or policies/ has an invalid name, or cannot be read."""


class Migration(NamedTuple):
    """A file of migrations/. `path` is relative to the root, as in every message."""

    version: str
    name: str
    path: str
    text: str

    @property
    def origin(self) -> str | None:
        """The version that a release gave it; None for one that was not taken with `ballast upgrade`."""
        return read_origin(self.text)

    def statements(self) -> list[str]:
        return [statement.text for statement in split(self.text)]


class Source(NamedTuple):
    """A file of functions/ or policies/. `table` is the quoted SQL name of the table that a policies file defines.

    A file that was deleted has neither text nor checksum.
    """

    path: str
    text: str
    checksum: str
    table: str | None


@dataclass(frozen=True)
class Files:
    """The files of the checkout, in the order of application."""

    migrations: tuple[Migration, ...]
    sources: tuple[Source, ...]


def read_files(root: Path) -> Files:
    """Reads the three folders. Raises FilesInvalid for an invalid name, an edited or a duplicate migration."""
    migrations = read_migrations(root)
    _refuse_duplicates(migrations)
    patterns = ("functions/**/*.sql", "policies/*.sql")
    sources = [_parse_source(path, text) for pattern in patterns for path, text in _read_sql_files(root, pattern)]
    if not migrations and not sources:
        raise FilesInvalid(f"There are no migrations in {root}: run `.venv/bin/ballast` in a checkout.")
    return Files(tuple(migrations), tuple(sources))


def read_migrations(root: Path) -> list[Migration]:
    """Reads migrations/, where a release's migration may be twice. Raises FilesInvalid for an edited one."""
    return [parse_migration(path, text) for path, text in _read_sql_files(root, "migrations/*.sql")]


def _read_sql_files(root: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Yields path and text, ordered by path: all files of functions/2_clerk/ precede those of functions/3_audit/."""
    for path in sorted(file.relative_to(root).as_posix() for file in root.glob(pattern)):
        try:
            # Not read_text(): it converts line ends, but the Supabase CLI records them unchanged.
            yield path, (root / path).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise FilesInvalid(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None


def _refuse_duplicates(migrations: list[Migration]) -> None:
    """Raises FilesInvalid if two files have the same version, or are the same migration of a release."""
    for earlier, later in pairwise(migrations):
        if earlier.version == later.version:
            raise FilesInvalid(
                f"{earlier.path} and {later.path} have the same version: give the newer file another timestamp."
            )
    taken: dict[str, Migration] = {}
    for migration in migrations:
        other = taken.setdefault(migration.origin, migration) if migration.origin else migration
        if other is not migration:
            raise FilesInvalid(
                f"{other.path} and {migration.path} are the same migration of a release, taken on two branches: delete "
                "the one that your main branch did not have. Databases that applied it recognize the other one."
            )
    texts = {strip_origin(migration.text): migration for migration in taken.values()}
    for migration in migrations:
        if migration.origin is None and (marked := texts.get(migration.text)):
            raise FilesInvalid(
                f"{migration.path} and {marked.path} are the same migration of a release: delete {migration.path}."
            )


def parse_migration(path: str, text: str) -> Migration:
    match = _MIGRATION_NAME.fullmatch(path.removeprefix("migrations/"))
    if match is None:
        raise FilesInvalid(
            f"{path} is not named <14 digits>_<lower_case_name>.sql: rename it (`ballast migrate new` does)."
        )
    if text.startswith(ORIGIN_MARK) and text != mark_origin(read_origin(text) or "", strip_origin(text)):
        raise FilesInvalid(
            f"{path} differs from the release that it came with: restore it from version control, and make the change "
            "in a new migration (`ballast migrate new NAME`)."
        )
    return Migration(match["version"], match["name"], path, text)


def read_origin(text: str) -> str | None:
    """Returns the version that the first line of a migration, or of its first statement, names."""
    match = _ORIGIN.match(text)
    return match["version"] if match else None


def strip_origin(text: str) -> str:
    """Returns a migration as the release has it."""
    return text.partition("\n")[2] if text.startswith(ORIGIN_MARK) else text


def mark_origin(version: str, text: str) -> str:
    """Returns a migration of a release with the line that identifies it."""
    return f"{ORIGIN_MARK} {version} {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _parse_source(path: str, text: str) -> Source:
    if path.startswith("policies/public."):
        raise FilesInvalid(f"{path}: remove `public.` from the file name, so that each table has only one.")
    return Source(path, text, hashlib.sha256(text.encode()).hexdigest(), parse_policy_table(path))


def parse_policy_table(path: str) -> str | None:
    """Returns the table of policies/<table>.sql or policies/<schema>.<table>.sql; None for a file of another folder."""
    folder, _, file_name = path.partition("/")
    if folder != "policies":
        return None
    schema, _, table = file_name.removesuffix(".sql").rpartition(".")
    return sql.Identifier(schema or "public", table).as_string()


def write_migration(name: str, *, root: Path = ROOT, now: datetime | None = None) -> Path:
    """Writes an empty migration with the current UTC time as its version. Raises FilesInvalid for an invalid name."""
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise FilesInvalid(
            f"{name!r} is not a valid migration name: use lower-case words joined by _, such as add_projects."
        )
    return write_next_migration(name, "-- Why this change is needed, in a sentence.\n", root=root, now=now)


def write_next_migration(name: str, text: str, *, root: Path = ROOT, now: datetime | None = None) -> Path:
    """Writes a migration that is newer than all others."""
    path = root / "migrations" / f"{choose_next_version(root, now)}_{name}.sql"
    with path.open("xb") as file:
        file.write(text.encode())
    return path


def choose_next_version(root: Path, now: datetime | None = None) -> str:
    """Returns a version after all migrations and bundles: the current time, or the newest version plus one."""
    names = [path.name for folder in (MIGRATIONS, BUNDLES) for path in (root / folder).glob("*.sql")]
    newest = max((int(version[0]) for name in names if (version := _VERSION.match(name))), default=0)
    return max(f"{now or datetime.now(UTC):%Y%m%d%H%M%S}", f"{newest + 1:014}")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is complete or not there, whatever ends this process."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(text.encode())
    draft.replace(path)
