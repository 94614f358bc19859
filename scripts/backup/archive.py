"""A dump on its way: pg_dump → zstd → age → store, and back. In constant memory, and never cut short unnoticed."""

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
# Of what was read, at once: a few kilobytes of zeros, compressed, must not fill the memory.
MAX_DECOMPRESSED_BYTES = 4 << 20

Key = Any  # pyrage has no types
Progress = Callable[[int], None]


class KeyInvalid(Failure):
    """Something named as a recipient or an identity is none."""

    exit_code = 2


class SealingFailed(Failure):
    """The encryption went wrong."""


class ArchiveDamaged(Failure):
    """What the store holds is not what was written, or not for our key."""


class Reader(Protocol):
    """What a stream is read from: nothing means that it has ended, and ended well."""

    def read(self, size: int = -1, /) -> bytes: ...


def parse_recipients(keys: Iterable[str]) -> list[Key]:
    """age's public keys, `age1…`. Raises KeyInvalid."""
    try:
        return [pyrage.x25519.Recipient.from_str(key) for key in keys]
    except pyrage.RecipientError:
        pass
    raise KeyInvalid("BACKUP_RECIPIENTS must be age's public keys (age1…), separated by commas.")


def parse_identities(text: str) -> list[Key]:
    """The secret keys in a text as age-keygen writes it: one a line, and comments. Raises KeyInvalid."""
    lines = [line.strip() for line in text.splitlines()]
    try:
        return [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except pyrage.IdentityError:
        pass
    raise KeyInvalid("BACKUP_IDENTITY must hold age's secret keys (AGE-SECRET-KEY-1…), as age-keygen writes them.")


class CompressingReader:
    """A program's output, compressed while it is read.

    Its end is reached only when the program ended well: whoever took a killed program's silence for the end would
    store half a dump. `failed(exit code)` makes the error.
    """

    def __init__(
        self, program: subprocess.Popen[bytes], make_error: Callable[[int], Exception], progress: Progress
    ) -> None:
        self._program = program
        self._failed = make_error
        self._progress = progress
        self._compressor = zstd.ZstdCompressor(options=COMPRESSION)
        self._ready = io.BytesIO()
        self._has_ended = False
        self.bytes_read = 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes. Raises what `failed` makes."""
        while not (piece := self._ready.read(size)) and not self._has_ended:
            self._ready = io.BytesIO(self._compress_next())
        return piece

    def _compress_next(self) -> bytes:
        assert self._program.stdout is not None
        raw = self._program.stdout.read(PIECE_BYTES)
        if raw:
            self.bytes_read += len(raw)
            self._progress(self.bytes_read)
            return self._compressor.compress(raw)
        code = self._program.wait()
        if code != 0 or not self.bytes_read:
            raise self._failed(code)
        self._has_ended = True
        return self._compressor.flush()


class MeasuringSink:
    """A sink that knows the size and the SHA-256 of what went through it."""

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
    """A sink that passes on what a dump was before it was compressed. `finish()` proves that all of it came."""

    def __init__(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink
        self._progress = progress
        self._decompressor = zstd.ZstdDecompressor()
        self.bytes_written = 0

    def write(self, piece: bytes, /) -> int:
        given = piece
        while given or not (self._decompressor.needs_input or self._decompressor.eof):
            if self._decompressor.eof:
                raise ArchiveDamaged("Something follows the end of the dump.")
            try:
                raw = self._decompressor.decompress(given, MAX_DECOMPRESSED_BYTES)
            except zstd.ZstdError:
                raise ArchiveDamaged("The dump cannot be decompressed.") from None
            given = b""
            if raw:
                self._sink.write(raw)
                self.bytes_written += len(raw)
                self._progress(self.bytes_written)
        return len(piece)

    def finish(self) -> None:
        """Raises ArchiveDamaged when the end is missing."""
        if not self._decompressor.eof or self._decompressor.unused_data:
            raise ArchiveDamaged("The dump does not end where it should.")


def seal(reader: Reader, sink: Sink, keys: list[Key]) -> None:
    """Everything of `reader` into `sink`: encrypted for each of the keys, or as it is for none.

    Raises what the two raise, and SealingFailed.
    """
    if not keys:
        for piece in iter(lambda: reader.read(PIECE_BYTES), b""):
            sink.write(piece)
        return
    _pipe(pyrage.encrypt_io, reader, sink, keys, lambda error: SealingFailed(f"The encryption failed: {error}."))


def unseal(reader: Reader, sink: Sink, keys: list[Key], *, is_sealed: bool) -> None:
    """The other way round. What was written to `sink` counts only once this has returned.

    Raises what the two raise, and ArchiveDamaged.
    """
    if not is_sealed:
        seal(reader, sink, [])
        return
    _pipe(pyrage.decrypt_io, reader, sink, keys, lambda error: ArchiveDamaged(_describe_decryption_error(error)))


def _pipe(
    program: Callable[[Any, Any, list[Key]], None],
    reader: Reader,
    sink: Sink,
    keys: list[Key],
    make_error: Callable[[BaseException], Failure],
) -> None:
    """Raises what the reader or the sink raised; otherwise `failed` makes the error."""
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
        return "The dump is not encrypted for this key: give the secret key of one of its recipients (BACKUP_IDENTITY)."
    return "The dump cannot be decrypted: it is not what was written."


class _ErrorRecorder:
    """A reader or a sink whose error is kept: pyrage hands on only its text."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.failure: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        return bytes(self._record_error(lambda: self._inner.read(size)))

    def write(self, piece: bytes, /) -> int:
        return int(self._record_error(lambda: self._inner.write(piece)))

    def flush(self) -> None:
        """pyrage asks for it."""

    def _record_error(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except BaseException as failure:
            self.failure = failure
            raise
