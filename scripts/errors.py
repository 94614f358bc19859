"""The base of every error that ends a command: one line that says what went wrong and what to do next."""

from __future__ import annotations


class Failure(Exception):
    """Subclass it per thing that can go wrong; `scripts.cli` prints the message and exits with `exit_code`."""

    exit_code = 1
