"""What a backup says of itself, in its `manifest.json`: written last, from the same snapshot as the dump."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

MANIFEST = "manifest.json"
DUMP = "dump.pgc.zst"
SEALED_DUMP = f"{DUMP}.age"
BEFORE = "before.sql"
AFTER = "after.sql"
# Dumped: what is ours. auth, storage, realtime and the others are Supabase's.
SCHEMAS = ("public", "app", "ops", "supabase_migrations")


class File(BaseModel):
    """A file of the backup as it lies in the store: SHA-256 in hex."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Seal(BaseModel):
    """The last seal of the audit trail: `ballast audit verify --seal` proves by it that nothing was rewritten."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    seal: str


class Manifest(BaseModel):
    """All of it is from one snapshot: `created_at` is its moment, `rows` its exact counts.

    `structure` has, per kind, each object's name and a hash of its definition. `dump_bytes` is the size of pg_dump's
    archive before it was compressed.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    id: str
    name: str
    backup_type: Literal["automated", "manual"]
    created_at: AwareDatetime
    duration_seconds: float
    server_version: int
    dump_version: int
    migration: str | None
    roles: list[str]
    rows: dict[str, int]
    structure: dict[str, dict[str, str]]
    audit_seal: Seal | None
    dump_bytes: int
    files: dict[str, File]

    @field_validator("files")
    @classmethod
    def _require_restore_files(cls, files: dict[str, File]) -> dict[str, File]:
        if not files.keys() >= {BEFORE, AFTER} or not files.keys() & {DUMP, SEALED_DUMP}:
            raise ValueError("a file is not named")
        return files

    @property
    def dump(self) -> str:
        """The dump's file: sealed, unless nobody was named who could open it."""
        return SEALED_DUMP if SEALED_DUMP in self.files else DUMP

    @property
    def size_bytes(self) -> int:
        """In the store, all files together."""
        return sum(file.size_bytes for file in self.files.values())

    @property
    def is_sealed(self) -> bool:
        return self.dump == SEALED_DUMP
