"""Exports all data about a person as a file. It is written while it is read: at most one page is in memory.

The route reads through the Data API; `ballast person export` reads from the database directly.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from service.data_api import Call

# The most records in a page. The database ends a page earlier at 2 MB.
PAGE = 2000
COMPRESSION_LEVEL = 4  # a sixth larger than with the default 6, in half the time
README = """\
Your personal data
==================

This is a copy of the personal data that we hold about you, as of {generated_at}.

Each .json file is a list of records of one kind. You can open it in any text editor, and programs can read it.

{files}

manifest.json lists the number of records in each file and its SHA-256 checksum.

The copy does not contain data about other people, such as their e-mail addresses, IP addresses or texts. It does not
contain secrets such as sign-in codes either. If something is wrong or missing, write to us.
"""


@dataclass(frozen=True)
class Domain:
    """One kind of record; `description` is for its reader."""

    name: str
    description: str


@dataclass(frozen=True)
class Part:
    """Some records of a domain: `content` holds JSON objects with commas between."""

    domain: str
    content: str
    entries: int


@dataclass(frozen=True)
class Export:
    """An export in progress. `call` is DataApi.call or a function like it."""

    call: Call
    id: str
    schema_version: int
    generated_at: str
    domains: tuple[Domain, ...]

    @classmethod
    def of(cls, call: Call, begun: dict[str, Any]) -> Export:
        """Builds an export from the answer of public.begin_export()."""
        domains = tuple(Domain(each["name"], each["description"]) for each in begun["domains"])
        return cls(call, begun["export_id"], begun["schema_version"], begun["generated_at"], domains)

    def parts(self) -> Iterator[Part]:
        """All records, domain by domain; an empty domain yields one part without records. Raises what `call` raises."""
        after = None
        while True:
            rows = self.call("export_page", {"export_id": self.id, "after": after, "page": PAGE})
            after = rows[-1]["next"]
            while rows:
                row = rows.pop(0)  # frees each part as soon as it is written
                yield Part(row["domain"], row["content"], row["entries"])
            if after is None:
                return
            gc.collect(1)  # httpx's responses are reference cycles: without this, finished pages pile up

    def end(self, *, failed: bool) -> None:
        """Records the outcome: after a failure the person may export again at once. Raises what `call` raises."""
        self.call("end_export", {"export_id": self.id, "failed": failed})


def write_json(export: Export, on_progress: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """One document: schema_version, generated_at, and an array per domain.

    `on_progress` is called with the number of records in each piece. The first piece comes after the first page was
    read, so an earlier failure leaves no broken file.
    """
    head = {"schema_version": export.schema_version, "generated_at": export.generated_at}
    before = json.dumps(head)[:-1]
    for domain, parts in groupby(export.parts(), lambda part: part.domain):
        yield f"{before},\n{json.dumps(domain)}: ".encode()
        before = ""
        for piece, entries in _write_array(parts):
            yield piece
            on_progress(entries)
    yield b"}\n"


def write_zip(export: Export, on_progress: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """A ZIP archive: a file per domain, manifest.json with counts and checksums, and README.txt."""
    output = _PieceBuffer()
    made_at = datetime.fromisoformat(export.generated_at).timetuple()[:6]
    files: dict[str, dict[str, object]] = {}
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL) as archive:
        for domain, parts in groupby(export.parts(), lambda part: part.domain):
            records, digest = 0, hashlib.sha256()
            with archive.open(_make_entry(f"{domain}.json", made_at), "w", force_zip64=True) as file:
                for piece, entries in _write_array(parts):
                    file.write(piece)
                    digest.update(piece)
                    records += entries
                    on_progress(entries)
                    yield output.take()
            files[f"{domain}.json"] = {"records": records, "sha256": digest.hexdigest()}
        manifest = {"schema_version": export.schema_version, "generated_at": export.generated_at, "files": files}
        archive.writestr(_make_entry("manifest.json", made_at), json.dumps(manifest, indent=2) + "\n")
        archive.writestr(_make_entry("README.txt", made_at), _render_readme(export))
    yield output.take()


def _write_array(parts: Iterator[Part]) -> Iterator[tuple[bytes, int]]:
    """Yields a JSON array in pieces, each with the number of its records."""
    before = b"[\n"
    for part in parts:
        if part.entries:
            yield before, 0
            yield part.content.encode(), part.entries
            before = b",\n"
    yield (b"[]" if before == b"[\n" else b"\n]"), 0


def _make_entry(name: str, made_at: Any) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, made_at)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _render_readme(export: Export) -> str:
    width = max(len(domain.name) for domain in export.domains) + 5
    files = "\n".join(f"{f'{domain.name}.json':<{width}}  {domain.description}" for domain in export.domains)
    return README.format(generated_at=export.generated_at, files=files)


class _PieceBuffer(io.RawIOBase):
    """A write-only file for zipfile. take() returns and removes what was written so far."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
