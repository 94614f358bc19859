"""The checksum of a small JSON file: its first line has the SHA-256 of the rest, as `tail -n +2 FILE | sha256sum`."""

from __future__ import annotations

import hashlib


def add_checksum(body: bytes) -> bytes:
    """Adds the line to a JSON object that has at least one field."""
    rest = body.partition(b"{")[2].lstrip()
    return _first_line(rest) + rest


def has_checksum(stored: bytes) -> bool:
    """Whether the first line is the checksum of the rest."""
    first, newline, rest = stored.partition(b"\n")
    return first + newline == _first_line(rest)


def _first_line(rest: bytes) -> bytes:
    return b'{"checksum": "%s",\n' % hashlib.sha256(rest).hexdigest().encode()
