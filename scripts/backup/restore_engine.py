"""Loads a backup into a database: verifies its files, then restores everything in one transaction."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import subprocess
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql
from pydantic import ValidationError

from scripts.backup import archive, programs, structure
from scripts.backup.archive import ArchiveDamaged, Key
from scripts.backup.borrowed import EMBEDDED, Place
from scripts.backup.manifest import AFTER, BEFORE, SCHEMAS, File, Manifest
from scripts.backup.programs import Programs
from scripts.backup.progress import Bar, NoProgress
from scripts.backup.store import MISSING, BackupStore, Sink, StoreUnavailable
from scripts.backup.structure import Structure
from scripts.errors import Failure
from scripts.schema.database import Connection, echo_err

DROP_EXISTING = Path(__file__).with_name("drop_existing.sql")
HEADER_BYTES = 4096
# A script may contain psql commands, which can run shell commands. Between these lines psql refuses them. pg_restore
# writes the same lines around its output since CVE-2025-8714, in which object names in a dump ran such commands.
RESTRICTED_SCRIPT = "\\restrict {token}\n{script}\n\\unrestrict {token}\n"
RESTRICT_COMMAND = re.compile(rb"^\\restrict ", re.MULTILINE)
# pg_restore writes this line for every server, but servers before 17 reject it. The value is the default anyway.
TRANSACTION_TIMEOUT = re.compile(rb"^SET transaction_timeout = 0;\n", re.MULTILINE)
# maintenance_work_mem is for building indexes; the default of a server is 64 MB or less.
PROLOGUE = f"""\
begin;
{structure.SET_LOCAL}\
set local client_min_messages = warning;
set local maintenance_work_mem = '256MB';
set local synchronous_commit = off;
""".encode()
# psql prints these lines of an error; the data that follows them is left out. CONTEXT may have several lines.
DISK_FULL = "53100"
ERROR = re.compile(r"^psql:.*?: \w+:  (?P<code>(?!0[012])\w{5}): (?P<message>.*)$", re.MULTILINE)  # not a warning
# globals.sql raises this for what the role may not restore. The message contains names, and no data.
LEFT_OUT = re.compile(r"^psql:.*?: WARNING:  01B01: (.*)$", re.MULTILINE)
COPY_CONTEXT = re.compile(r"^(?:CONTEXT:  )?COPY ([^\s,:]+), line (\d+)(?:, column ([^\s,:]+))?", re.MULTILINE)
# Messages of these SQLSTATE classes quote the names of objects. Others may quote values.
CLASSES_THAT_QUOTE_NAMES = {"0A", "23", "28", "2B", "3D", "3F", "42", "55", "58"}
BUILT_IN_CLASS = re.compile("[0-9FHX]")  # other errors are raised by functions, with any text
EPILOGUE = b"""\
notify pgrst, 'reload schema';
commit;
"""


class ServerUnsuitable(Failure):
    """The server lacks what the backup needs. This says nothing about the backup."""


class RestoreFailed(Failure):
    """The database refused the restore, and is unchanged."""


@dataclass(frozen=True)
class Backup:
    """A backup to read, and the keys that decrypt it. Files from a bucket are downloaded to `folder`.

    Test restores run at `place`.
    """

    store: BackupStore
    manifest: Manifest
    keys: list[Key]
    folder: Path
    place: Place = EMBEDDED

    def fetch_dump(self, bar: Bar) -> Path:
        """Downloads the dump if necessary and verifies its checksum, without decrypting it. Raises ArchiveDamaged."""
        file = self.manifest.dump
        bar.start_stage("Fetching", self.manifest.files[file].size_bytes)
        with self._report_missing_as_damage(file):
            path = self.store.path(self.manifest.name, file)
            if path is None:
                path = self.folder / file
                done = 0
                with path.open("wb") as output:
                    for piece in self.store.stream(self.manifest.name, file):
                        done += output.write(piece)
                        bar.advance_to(done)
            with path.open("rb") as dump:
                found = File(size_bytes=path.stat().st_size, sha256=hashlib.file_digest(dump, "sha256").hexdigest())
        self._require_intact(file, found)
        return path

    def read_definitions(self) -> Structure:
        """Reads the definitions of what was backed up. Raises ArchiveDamaged."""
        file = self.manifest.definitions
        body = io.BytesIO()
        encrypted = io.BytesIO(self.read_file(file))
        archive.decrypt(encrypted, body, self.keys, is_encrypted=self.manifest.is_encrypted)
        try:
            return structure.JSON.validate_json(body.getvalue())
        except ValidationError:
            raise ArchiveDamaged(f"{file} of {self.manifest.name} is damaged. Restore another backup.") from None

    def read_file(self, file: str) -> bytes:
        """Reads a small file, such as before.sql, and verifies its checksum. Raises ArchiveDamaged."""
        with self._report_missing_as_damage(file):
            body = self.store.read(self.manifest.name, file)
        self._require_intact(file, File(size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest()))
        return body

    def decrypt_into(self, sink: Sink, dump: Path, bar: Bar) -> None:
        """Decrypts the archive into `sink`. Use the result only after this has returned. Raises ArchiveDamaged."""
        decompressed = archive.DecompressingSink(sink, bar.advance_to)
        with dump.open("rb") as source:
            archive.decrypt(source, decompressed, self.keys, is_encrypted=self.manifest.is_encrypted)
        decompressed.finish()
        if decompressed.bytes_written != self.manifest.dump_bytes:
            raise ArchiveDamaged("The dump is not as long as its manifest says. Restore another backup.")

    @contextmanager
    def _report_missing_as_damage(self, file: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            pass
        except StoreUnavailable as failure:
            if failure.code not in MISSING:
                raise
        else:
            return
        raise ArchiveDamaged(f"{file} of {self.manifest.name} is missing from the store. Restore another backup.")

    def _require_intact(self, file: str, found: File) -> None:
        expected = self.manifest.files.get(file)
        if expected != found:
            raise ArchiveDamaged(
                f"{file} of {self.manifest.name} is damaged: {_describe_file(found)} instead of"
                f" {_describe_file(expected)}. Restore another backup."
            )


@dataclass(frozen=True)
class Target:
    """The database to restore into: its URL and a connection. `replace` drops our existing objects first.

    In a temporary database, the superuser `admin` creates extensions. `programs` is the bin folder of its PostgreSQL.
    """

    url: str
    connection: Connection
    replace: bool = False
    admin: Connection | None = None
    programs: Path | None = None

    def choose_programs(self, manifest: Manifest) -> Programs:
        return programs.choose_programs(self.connection, at_least=manifest.dump_version, first=self.programs)


def require_suitable(manifest: Manifest, target: Target) -> None:
    """Checks the version, the programs and the extensions of a target. Raises ServerUnsuitable, ProgramsMissing.

    Call it before the dump is read: a download may take hours.
    """
    needed, found = (version // 10_000 for version in (manifest.server_version, target.connection.info.server_version))
    if found < needed:
        raise ServerUnsuitable(
            f"Nothing was restored: PostgreSQL {found} cannot take a backup of PostgreSQL {needed}. Use a server of"
            f" PostgreSQL {needed} or newer."
        )
    target.choose_programs(manifest)
    missing = list(_list_missing_extensions(manifest, target.connection))
    if missing:
        raise ServerUnsuitable(
            f"Nothing was restored: the server lacks what the backup needs: {'; '.join(missing)}. Install it there, or"
            " use another server (--server or --postgres for a drill, an extract or an upgrade check)."
        )
    _create_extensions(manifest, target)


def _list_missing_extensions(manifest: Manifest, connection: Connection) -> Iterator[str]:
    available = {
        name: (version, schema)
        for name, version, schema in connection.execute(
            """
            select a.name, coalesce(a.installed_version, a.default_version), n.nspname::text
            from pg_available_extensions as a
            left join pg_extension as e on e.extname = a.name
            left join pg_namespace as n on n.oid = e.extnamespace
            """
        )
    }
    for each in manifest.extensions:
        version, schema = available.get(each.name, (None, None))
        if version is None:
            yield f"the extension {each.name} {each.version} is not available"
        elif _parse_version(version) < _parse_version(each.version):
            yield f"the extension {each.name} has the version {version} instead of {each.version}"
        elif schema not in {None, each.namespace}:
            yield f"the extension {each.name} is in the schema {schema} instead of {each.namespace}"


def _parse_version(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _create_extensions(manifest: Manifest, target: Target) -> None:
    """Creates the extensions. Without a superuser it only tries to, because before.sql creates them."""
    connection = target.admin or target.connection
    for each in manifest.extensions:
        try:
            with connection.transaction(force_rollback=target.admin is None):
                if not connection.execute("select from pg_namespace where nspname = %s", [each.namespace]).rowcount:
                    schema = sql.SQL("create schema {} authorization postgres" if target.admin else "create schema {}")
                    connection.execute(schema.format(sql.Identifier(each.namespace)))
                extension = sql.SQL("create extension if not exists {} schema {} cascade")
                connection.execute(extension.format(sql.Identifier(each.name), sql.Identifier(each.namespace)))
        except psycopg.Error as error:
            raise ServerUnsuitable(
                f"Nothing was restored: the extension {each.name} cannot be created: {error.diag.message_primary}."
                " Let a superuser create it first, or use another server."
            ) from None


def restore(backup: Backup, dump: Path, target: Target, bar: Bar) -> None:
    """Restores everything in one transaction. Raises RestoreFailed, ArchiveDamaged, ProgramsMissing."""
    chosen = target.choose_programs(backup.manifest)
    before, after = backup.read_file(BEFORE), backup.read_file(AFTER)
    with _open_psql(chosen, target.url, backup.manifest.rows) as psql:
        contents = backup.folder / "contents"
        contents.write_text("\n".join(_list_contents(backup, dump, chosen, target.connection)))
        bar.start_stage("Restoring", backup.manifest.dump_bytes)
        psql.write(PROLOGUE + (DROP_EXISTING.read_bytes() if target.replace else b"") + _restrict(before))
        _pipe_dump(backup, dump, [chosen["pg_restore"], "--no-owner", f"--use-list={contents}", "--file=-"], psql, bar)
        bar.start_stage("Finishing")
        psql.write(_restrict(after) + EPILOGUE)


def _restrict(script: bytes) -> bytes:
    """Wraps a script so that psql only runs SQL: a writer to the store could have forged the script."""
    return RESTRICTED_SCRIPT.format(token=secrets.token_hex(32), script=script.decode()).encode()


def analyze(connection: Connection) -> None:
    """Collects planner statistics, which a dump does not contain."""
    tables = connection.execute(
        """
        select n.nspname, c.relname
        from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = any(%s) and c.relkind in ('r', 'p', 'm') and not c.relispartition
        """,
        [list(SCHEMAS)],
    ).fetchall()
    for schema, table in tables:
        connection.execute(sql.SQL("analyze {}").format(sql.Identifier(schema, table)))


@contextmanager
def _open_psql(chosen: Programs, url: str, tables: Collection[str]) -> Iterator[_Psql]:
    """Starts psql for a script. If the block raises, psql is killed and the transaction rolled back.

    An error names which of the `tables` it is about, such as public.projects.

    Raises RestoreFailed.
    """
    target, environment = programs.split_password(url)
    command = [chosen["psql"], f"--dbname={target}", "--no-password", "--no-psqlrc", "--quiet", "--file=-"]
    settings = ["--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose"]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [*command, *settings],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pipesize=archive.PIECE_BYTES,
        )
        with process:
            psql = _Psql(process, stderr, tables)
            try:
                yield psql
            except BaseException:
                process.kill()
                assert process.stdin is not None
                with suppress(BrokenPipeError):  # it would hide the original error
                    process.stdin.close()
                raise
            psql.close()


@dataclass(frozen=True)
class _Psql:
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    tables: Collection[str]

    def write(self, script: bytes) -> None:
        """Sends a script to psql. Raises RestoreFailed with psql's error if it has stopped."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(script)
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.process.wait() != 0:
            raise RestoreFailed(f"Nothing was restored. {_read_error(self.stderr, self.tables)}")
        self.stderr.seek(0)
        for message in LEFT_OUT.findall(self.stderr.read(100_000).decode(errors="replace")):
            echo_err(message[:300])


def _pipe_dump(backup: Backup, dump: Path, pg_restore: list[str], psql: _Psql, bar: Bar) -> None:
    """Pipes the archive through pg_restore into psql.

    Raises RestoreFailed and ArchiveDamaged. The caller commits only after this has returned.
    """
    process = subprocess.Popen(
        pg_restore,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pipesize=archive.PIECE_BYTES,
    )
    with process, _Feeder(backup, dump, process, bar) as feeder:
        assert process.stdout is not None
        header = process.stdout.read(HEADER_BYTES)
        if header and RESTRICT_COMMAND.search(header) is None:
            raise RestoreFailed(f"Nothing was restored. {pg_restore[0]} lacks the fix for CVE-2025-8714: update it.")
        psql.write(TRANSACTION_TIMEOUT.sub(b"", header))
        while piece := process.stdout.read(archive.PIECE_BYTES):
            psql.write(piece)
        feeder.require_end()
        if process.wait() != 0:
            raise RestoreFailed("Nothing was restored: pg_restore cannot read the dump. Restore another backup.")


def _list_contents(backup: Backup, dump: Path, chosen: Programs, connection: Connection) -> list[str]:
    """The archive's table of contents without the entries that cannot be restored.

    The schema public and those of extensions already exist. Only the role itself may change its default privileges.
    """
    process = subprocess.Popen(
        [chosen["pg_restore"], "--list"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process, _Feeder(backup, dump, process, NoProgress()) as feeder:
        assert process.stdout is not None
        listed = process.stdout.read().decode().splitlines()
        if process.wait() != 0:
            feeder.require_end()
            raise RestoreFailed(
                f"Nothing was restored: pg_restore {chosen.version} cannot read the dump. Restore another backup."
            )
    [[role]] = connection.execute("select current_user").fetchall()
    present = "|".join(re.escape(name) for name in ("public", *(each.namespace for each in backup.manifest.extensions)))
    return [
        line
        for line in listed
        if not re.search(rf"\d+ \d+ SCHEMA - ({present}) ", line)
        and (" DEFAULT ACL " not in line or line.endswith(f" {role}"))
    ]


class _Feeder(threading.Thread):
    """A thread that decrypts a dump into a program's standard input while the main thread reads the output."""

    def __init__(self, backup: Backup, dump: Path, process: subprocess.Popen[bytes], bar: Bar) -> None:
        super().__init__(daemon=True)
        self._backup = backup
        self._dump = dump
        self._process = process
        self._bar = bar
        self._failure: BaseException | None = None

    def __enter__(self) -> _Feeder:
        self.start()
        return self

    def __exit__(self, kind: object, failure: object, trace: object) -> None:
        if kind is not None:
            self._process.kill()
        self.join()

    def require_end(self) -> None:
        """Waits for the end of the dump. Raises the error of its decryption: the program's output is then invalid."""
        self.join()
        if self._failure is not None and not isinstance(self._failure, BrokenPipeError):
            raise self._failure

    def run(self) -> None:
        assert self._process.stdin is not None
        try:
            self._backup.decrypt_into(self._process.stdin, self._dump, self._bar)
        except BaseException as failure:
            self._failure = failure
        with suppress(BrokenPipeError):
            self._process.stdin.close()


def _read_error(stderr: IO[bytes], tables: Collection[str]) -> str:
    """Describes psql's first error: the table and the row if it knows them, the reason, and no data.

    Example: Row 3 of public.projects, column metadata: stack depth limit exceeded (54001).
    """
    stderr.seek(0)
    text = stderr.read(100_000).decode(errors="replace")
    error = ERROR.search(text)
    if error is None:
        return next((line.partition(": ")[2][:300] for line in text.splitlines() if "error: " in line), "psql failed.")
    code, message = error["code"], error["message"]
    if code == DISK_FULL:
        return f"The disk of the server is full: free some space there, and restore again ({code})."
    if code[:2] not in CLASSES_THAT_QUOTE_NAMES:
        message = re.sub('".*', "…", message) if BUILT_IN_CLASS.match(code) else "a function raised an error"
    return f"{_describe_place(text[error.end() :], tables)}{message[:300]} ({code})."


def _describe_place(context: str, tables: Collection[str]) -> str:
    """Names the row that COPY was reading. Data before the last line of the context may contain similar text."""
    for name, row, column in reversed(COPY_CONTEXT.findall(context)):
        if found := " or ".join(table for table in tables if table.partition(".")[2] == name):
            return f"Row {int(row):,} of {found}{f', column {column}' if column else ''}: "
    return ""


def _describe_file(file: File | None) -> str:
    return f"{file.size_bytes:,} bytes with SHA-256 {file.sha256[:12]}…" if file else "a file in the manifest"
