"""`ballast migrate bundle`: writes supabase/migrations/, for projects that Supabase itself deploys.

Supabase's own deployments (`db push`, preview branches) apply only that folder. It holds copies of migrations/, and
bundles: migrations with those files of functions/ and policies/ that changed since the previous bundles. Each file has
its own bundle, because the CLI applies each migration in one transaction, which should be short (see locks.py). A
bundle gives up if it does not get a lock in time. The CLI does not retry it: the next `db push` continues with it.

A bundle revokes default grants on what it creates, as `migrate up` does. It records its files in app.applied_sources,
so that `migrate up` does not apply them again, and the structure (see structure.py). Its first lines list each file
with its checksum.

Example: functions/1_caller/ids.sql and policies/projects.sql changed. This writes
20261201100000_functions_1_caller_ids.bundle.sql and 20261201100001_policies_projects.bundle.sql.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
from psycopg import sql

from scripts.errors import Failure
from scripts.schema import structure
from scripts.schema.locks import MAX_WAIT_MS
from scripts.schema.migrations import API_ROLES, REMEMBER_REPLACEABLE, REVOKE_REPLACED
from scripts.schema.sql_files import (
    BUNDLE_SUFFIX,
    BUNDLES,
    Files,
    Migration,
    Source,
    choose_next_version,
    parse_policy_table,
    read_files,
)
from scripts.schema.statements import split

TEMPLATE = Path(__file__).with_suffix(".sql")
_BUNDLE_NAME = re.compile(rf"(?P<version>\d{{14}})_\w+{re.escape(BUNDLE_SUFFIX)}\.sql")
_ENTRY = re.compile(r"^-- (?P<path>(?:functions|policies)/\S+) (?P<checksum>[0-9a-f]{64}|removed)$", re.MULTILINE)
# Our migrations create the tables of these schemas. Tables of other schemas may not exist yet when a bundle is applied.
OUR_SCHEMAS = ('"public".', '"app".', '"ops".')


class FolderInvalid(Failure):
    """supabase/migrations/ has an unexpected file, or a new copy would precede a bundle."""


@dataclass(frozen=True)
class Unbundled:
    """The pending changes of supabase/migrations/: copies, changed sources in order of application, removed paths."""

    copies: tuple[Migration, ...]
    changed: tuple[Source, ...]
    removed: tuple[str, ...]

    @property
    def paths(self) -> list[str]:
        """The files that are missing from it, or were removed."""
        return [*(copy.path for copy in self.copies), *(source.path for source in self.changed), *self.removed]


def find_unbundled(root: Path) -> Unbundled:
    """Compares the files of `root` with its supabase/migrations/. Raises FilesInvalid and FolderInvalid."""
    files = read_files(root)
    folder = root / BUNDLES
    bundles = _list_bundles(folder)
    copies = [file for file in files.migrations if _differs(folder / Path(file.path).name, file)]
    _check_folder(folder, bundles, files, copies)
    known: dict[str, str] = {}
    for path in bundles.values():
        head, _, _ = path.read_bytes().decode().partition("\n\n")
        known |= {entry["path"]: entry["checksum"] for entry in _ENTRY.finditer(head)}
    bundled = {path: checksum for path, checksum in known.items() if checksum != "removed"}
    changed = [source for source in files.sources if bundled.get(source.path) != source.checksum]
    removed = bundled.keys() - {source.path for source in files.sources}
    return Unbundled(tuple(copies), tuple(changed), tuple(sorted(removed)))


def write(root: Path, found: Unbundled) -> list[Path]:
    """Writes the copies and the next bundles; returns the paths, relative to `root`."""
    folder = root / BUNDLES
    folder.mkdir(parents=True, exist_ok=True)
    written = {folder / Path(copy.path).name: copy.text for copy in found.copies}
    first = int(choose_next_version(root))
    for version, (name, part) in enumerate(_split(found).items(), first):
        written[folder / f"{version:014}_{name}{BUNDLE_SUFFIX}.sql"] = render(part)
    for path, text in written.items():
        path.write_bytes(text.encode())
    return [path.relative_to(root) for path in written]


def _split(found: Unbundled) -> dict[str, Unbundled]:
    """Returns the content of each bundle by name: first functions, then policies, the removed files last of each."""
    parts = {}
    for is_policy in (False, True):
        for source in found.changed:
            if (source.table is not None) == is_policy:
                parts[_name_bundle(source.path)] = Unbundled((), (source,), ())
        for path in found.removed:
            if (parse_policy_table(path) is not None) == is_policy:
                parts[_name_bundle(path)] = Unbundled((), (), (path,))
    # Copies alone need a bundle too, because only a bundle records the structure.
    if found.copies and not parts:
        parts["structure"] = Unbundled((), (), ())
    return parts


def _name_bundle(path: str) -> str:
    """Converts policies/realtime.messages.sql to policies_realtime_messages."""
    return re.sub(r"\W+", "_", path.removesuffix(".sql"))


def render(found: Unbundled) -> str:
    """Returns the text of a migration that updates a database from the previous bundles to the current files."""
    environment = jinja2.Environment(  # noqa: S701 - SQL of our own files, not HTML
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"literal": lambda text: sql.Literal(text).as_string(), "grants": _select_grants}
    environment.tests["of_our_schemas"] = _is_of_our_schemas
    text = environment.from_string(TEMPLATE.read_text()).render(
        changed=found.changed,
        functions=[source for source in found.changed if source.table is None],
        policies=[source for source in found.changed if source.table is not None],
        removed=found.removed,
        cleared=[table for path in found.removed if (table := parse_policy_table(path)) is not None],
        remember_replaceable=REMEMBER_REPLACEABLE,
        revoke_replaced=REVOKE_REPLACED,
        api_roles=API_ROLES,
        record_structure=structure.RECORD,
        max_wait_ms=MAX_WAIT_MS,
    )
    return text.rstrip() + "\n"


def _list_bundles(folder: Path) -> dict[str, Path]:
    """Returns the bundles by version, oldest first."""
    found = ((_BUNDLE_NAME.fullmatch(path.name), path) for path in sorted(folder.glob("*.sql")))
    return {match["version"]: path for match, path in found if match}


def _differs(copy: Path, original: Migration) -> bool:
    return not copy.exists() or copy.read_bytes() != original.text.encode()


def _check_folder(folder: Path, bundles: dict[str, Path], files: Files, copies: list[Migration]) -> None:
    expected = {path.name for path in bundles.values()} | {Path(file.path).name for file in files.migrations}
    for path in sorted(folder.glob("*.sql")):
        if path.name not in expected:
            raise FolderInvalid(
                f"{BUNDLES}/{path.name} is not in migrations/: move it there, or delete it if you deleted its original."
            )
    newest = max(bundles, default="")
    for file in copies:
        if file.version <= newest and not (folder / Path(file.path).name).exists():
            raise FolderInvalid(
                f"{file.path} is not newer than {BUNDLES}/{bundles[newest].name}, which may be applied already: "
                "give its file a new timestamp."
            )


def _select_grants(text: str) -> str:
    """Returns the statements of a file that may grant privileges, without the comments that precede them."""
    statements = [each for each in split(text) if each.words and each.words[0] in {"grant", "select", "do"}]
    return "\n".join(f"{each.text[(each.start or 0) - each.offset :]};" for each in statements)


def _is_of_our_schemas(source: Source) -> bool:
    return source.table is not None and source.table.startswith(OUR_SCHEMAS)
