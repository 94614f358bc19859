"""Every verb of `ballast` has a line of help and an example."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from scripts.cli import VERBS, ballast


def list_commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """Yields the words of a command and of all its subcommands."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from list_commands(below, *words, name)


@pytest.mark.parametrize("words", list(list_commands(ballast))[1:], ids=" ".join)
def test_every_verb_shows_an_example_of_itself(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(ballast, [*words, "--help"])
    assert shown.exit_code == 0
    assert f"Example: {' '.join(['ballast', *words])}" in " ".join(shown.output.split())


@pytest.mark.parametrize("words", list(list_commands(ballast)), ids=" ".join)
def test_no_line_of_help_is_cut_off(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(ballast, [*words, "--help"], prog_name="ballast").output
    assert [line for line in shown.splitlines() if re.search(r"[^\s\]]\.\.\.$", line)] == []


def test_help_lists_every_verb() -> None:
    shown = CliRunner().invoke(ballast, ["--help"]).output
    assert all(verb in shown for verb in VERBS)


def test_an_unknown_verb_is_a_usage_error() -> None:
    assert CliRunner().invoke(ballast, ["dance"]).exit_code == 2
