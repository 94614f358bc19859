"""The base class of every error that ends a command. Its message states what happened, then what to do next."""

from __future__ import annotations


class Failure(Exception):
    """Each kind of error is a subclass; `scripts.cli` prints the message and exits with `exit_code`."""

    exit_code = 1
