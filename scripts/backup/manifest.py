"""The manifest of a backup, `manifest.json`: written last, from the same snapshot as the dump."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

MANIFEST = "manifest.json"
DUMP = "dump.pgc.zst"
ENCRYPTED_DUMP = f"{DUMP}.age"
BEFORE = "before.sql"
AFTER = "after.sql"
STRUCTURE = "structure.json"
ENCRYPTED_STRUCTURE = f"{STRUCTURE}.age"
PLAIN_FILES = {BEFORE, AFTER, DUMP, STRUCTURE}
ENCRYPTED_FILES = {BEFORE, AFTER, ENCRYPTED_DUMP, ENCRYPTED_STRUCTURE}
# The schemas that are dumped. auth, storage, realtime and the others belong to Supabase.
SCHEMAS = ("public", "app", "ops", "supabase_migrations")


class File(BaseModel):
    """A file of the backup as stored; the SHA-256 is in hex."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Seal(BaseModel):
    """The last seal of the audit trail: with it, `ballast audit verify --seal` proves that no entry was rewritten."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    seal: str


class Extension(BaseModel):
    """An extension that the backed up objects need; `namespace` is its schema."""

    model_config = ConfigDict(frozen=True)

    name: str
    namespace: str
    version: str


class Manifest(BaseModel):
    """Describes one snapshot: `created_at` is its time, `rows` are its exact counts.

    `structure` maps each kind to the names of its objects and a hash of their definitions, which structure.json has:
    definitions may contain secrets, such as the key in a webhook's trigger. `dump_bytes` is the size of the pg_dump
    archive before compression.
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
    extensions: list[Extension] = []
    rows: dict[str, int]
    structure: dict[str, dict[str, str]]
    audit_seal: Seal | None
    dump_bytes: int
    files: dict[str, File]

    @field_validator("files")
    @classmethod
    def _require_restore_files(cls, files: dict[str, File]) -> dict[str, File]:
        if not any(files.keys() >= needed for needed in (PLAIN_FILES, ENCRYPTED_FILES)):
            raise ValueError("a required file is missing from the list")
        return files

    @property
    def dump(self) -> str:
        """The name of the dump file, which depends on whether it is encrypted."""
        return ENCRYPTED_DUMP if ENCRYPTED_DUMP in self.files else DUMP

    @property
    def definitions(self) -> str:
        """The name of the file with the definitions."""
        return ENCRYPTED_STRUCTURE if self.is_encrypted else STRUCTURE

    @property
    def size_bytes(self) -> int:
        """The size of all files in the store."""
        return sum(file.size_bytes for file in self.files.values())

    @property
    def is_encrypted(self) -> bool:
        return self.dump == ENCRYPTED_DUMP
