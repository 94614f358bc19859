"""Streams a dump: pg_dump → zstd → age → store, and back. Memory is constant, and a truncated stream is an error."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pyrage

from scripts.backup.manifest import File
from scripts.backup.store import Sink
from scripts.errors import Failure

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSION: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 2,
    zstd.CompressionParameter.checksum_flag: 1,
}
PIECE_BYTES = 1 << 20
# The output of one decompression step: a few compressed kilobytes of zeros must not fill the memory.
MAX_DECOMPRESSED_BYTES = 4 << 20

Key = Any  # pyrage has no types
Progress = Callable[[int], None]


class KeyInvalid(Failure):
    """A recipient or an identity is not an age key."""

    exit_code = 2


class EncryptionFailed(Failure):
    """The encryption failed."""


class ArchiveDamaged(Failure):
    """The stored bytes differ from those that were written, or are not encrypted for our key."""


class Reader(Protocol):
    """The source of a stream. An empty read means that it ended without an error."""

    def read(self, size: int = -1, /) -> bytes: ...


def parse_recipients(keys: Iterable[str]) -> list[Key]:
    """Parses age public keys, `age1…`. Raises KeyInvalid."""
    try:
        return [pyrage.x25519.Recipient.from_str(key) for key in keys]
    except pyrage.RecipientError:
        pass
    raise KeyInvalid("BACKUP_RECIPIENTS is invalid: set it to age public keys (age1…), separated by commas.")


def parse_identities(text: str) -> list[Key]:
    """Parses the output of age-keygen: one secret key per line, and comments. Raises KeyInvalid."""
    lines = [line.strip() for line in text.splitlines()]
    try:
        return [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except pyrage.IdentityError:
        pass
    raise KeyInvalid("The identity is invalid: use age secret keys (AGE-SECRET-KEY-1…) as written by age-keygen.")


class CompressingReader:
    """Compresses a program's output while it is read.

    The stream ends only if the program exited with 0. A killed program also closes its output, and taking that for the
    end would store half a dump. `make_error(exit code)` makes the error.
    """

    def __init__(
        self, program: subprocess.Popen[bytes], make_error: Callable[[int], Exception], progress: Progress
    ) -> None:
        self._program = program
        self._make_error = make_error
        self._progress = progress
        self._compressor = zstd.ZstdCompressor(options=COMPRESSION)
        self._ready = io.BytesIO()
        self._has_ended = False
        self.bytes_read = 0

    def read(self, size: int = -1, /) -> bytes:
        """Returns up to `size` bytes. Raises what `make_error` makes."""
        while not (piece := self._ready.read(size)) and not self._has_ended:
            self._ready = io.BytesIO(self._compress_next_chunk())
        return piece

    def _compress_next_chunk(self) -> bytes:
        assert self._program.stdout is not None
        raw = self._program.stdout.read(PIECE_BYTES)
        if raw:
            self.bytes_read += len(raw)
            self._progress(self.bytes_read)
            return self._compressor.compress(raw)
        code = self._program.wait()
        if code != 0 or not self.bytes_read:
            raise self._make_error(code)
        self._has_ended = True
        return self._compressor.flush()


class MeasuringSink:
    """Passes data on to a sink, and measures its size and SHA-256."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, piece: bytes, /) -> int:
        self._sink.write(piece)
        self._hash.update(piece)
        self._size += len(piece)
        return len(piece)

    def file(self) -> File:
        return File(size_bytes=self._size, sha256=self._hash.hexdigest())


class DecompressingSink:
    """Decompresses data and passes it on to a sink. `finish()` verifies that the stream was complete."""

    def __init__(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink
        self._progress = progress
        self._decompressor = zstd.ZstdDecompressor()
        self.bytes_written = 0

    def write(self, piece: bytes, /) -> int:
        given = piece
        while given or not (self._decompressor.needs_input or self._decompressor.eof):
            if self._decompressor.eof:
                raise ArchiveDamaged("The dump has extra bytes after its end. Restore another backup.")
            try:
                raw = self._decompressor.decompress(given, MAX_DECOMPRESSED_BYTES)
            except zstd.ZstdError:
                raise ArchiveDamaged("The dump cannot be decompressed. Restore another backup.") from None
            given = b""
            if raw:
                self._sink.write(raw)
                self.bytes_written += len(raw)
                self._progress(self.bytes_written)
        return len(piece)

    def finish(self) -> None:
        """Raises ArchiveDamaged if the end of the dump is missing."""
        if not self._decompressor.eof or self._decompressor.unused_data:
            raise ArchiveDamaged("The dump is truncated. Restore another backup.")


def encrypt(reader: Reader, sink: Sink, keys: list[Key]) -> None:
    """Copies `reader` to `sink`, encrypted for each of the keys. Without keys, copies it unencrypted.

    Raises EncryptionFailed and the errors of `reader` and `sink`.
    """
    if not keys:
        for piece in iter(lambda: reader.read(PIECE_BYTES), b""):
            sink.write(piece)
        return
    _pipe(pyrage.encrypt_io, reader, sink, keys, lambda error: EncryptionFailed(f"The encryption failed: {error}."))


def decrypt(reader: Reader, sink: Sink, keys: list[Key], *, is_encrypted: bool) -> None:
    """Decrypts `reader` into `sink`. Use what `sink` received only after this has returned.

    Raises ArchiveDamaged and the errors of `reader` and `sink`.
    """
    if not is_encrypted:
        encrypt(reader, sink, [])
        return
    _pipe(pyrage.decrypt_io, reader, sink, keys, lambda error: ArchiveDamaged(_describe_decryption_error(error)))


def _pipe(
    program: Callable[[Any, Any, list[Key]], None],
    reader: Reader,
    sink: Sink,
    keys: list[Key],
    make_error: Callable[[BaseException], Failure],
) -> None:
    """Runs an age operation. Raises the error of the reader or the sink, otherwise what `make_error` makes."""
    source, target = _ErrorRecorder(reader), _ErrorRecorder(sink)
    try:
        program(source, target, keys)
    except BaseException as error:
        failure = source.failure or target.failure or make_error(error)
    else:
        return
    raise failure


def _describe_decryption_error(error: BaseException) -> str:
    if "No matching keys" in str(error):
        return "The dump is not encrypted for this key. Pass the secret key of one of its recipients (BACKUP_IDENTITY)."
    return "The dump cannot be decrypted: it was changed after it was written. Restore another backup."


class _ErrorRecorder:
    """Wraps a reader or a sink and keeps its exception: pyrage only passes on the text."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.failure: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        return bytes(self._record_error(lambda: self._inner.read(size)))

    def write(self, piece: bytes, /) -> int:
        return int(self._record_error(lambda: self._inner.write(piece)))

    def flush(self) -> None:
        """Required by pyrage."""

    def _record_error(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except BaseException as failure:
            self.failure = failure
            raise
