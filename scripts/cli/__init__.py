"""The `ballast` command. A verb's module is imported only when it is used, so that `ballast --help` is quick."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import click

from scripts.errors import Failure


class Verb(NamedTuple):
    """Where a verb lives (`module:command`) and the line `ballast --help` says about it."""

    place: str
    help: str


VERBS = {
    "up": Verb(
        "scripts.cli.stack:up", "Start everything: Postgres, the Data API, Clerk's stand-in, Redis, the service."
    ),
    "down": Verb("scripts.cli.stack:down", "Stop everything that `ballast up` started."),
    "status": Verb("scripts.cli.stack:status", "Show how the database goes, and which local parts run where."),
    "doctor": Verb("scripts.cli.doctor:doctor", "Check that Supabase, Clerk, the service and backups fit together."),
    "env": Verb("scripts.cli.stack:env", "Print the environment of the running stack as export lines."),
    "reset": Verb("scripts.cli.stack:reset", "Stop the stack and delete its data."),
    "token": Verb("scripts.cli.token:token", "Print a session token as Clerk would issue it."),
    "clerk": Verb("scripts.cli.clerk:clerk", "Send signed Clerk events to the service."),
    "seed": Verb("scripts.cli.seed:seed", "Fill the database with the example tenants, or with bulk data."),
    "migrate": Verb("scripts.cli.migrate:migrate", "Apply, check or make migrations."),
    "new": Verb("scripts.schema.new_table:new", "Write a new table with all that belongs to it, tests included."),
    "types": Verb("scripts.cli.types:types_command", "Write the schema as types for TypeScript and Python."),
    "upgrade-check": Verb(
        "scripts.cli.upgrade_check:upgrade_check", "Test the pending migrations against a restored backup."
    ),
    "inbox": Verb("scripts.cli.inbox:inbox", "List, show or retry the Clerk events that were received."),
    "audit": Verb("scripts.cli.audit:audit", "Seal the audit trail, verify it, and keep its months in order."),
    "person": Verb("scripts.cli.person:person", "Give people a copy of their data, or erase them."),
    "backup": Verb("scripts.cli.backup:backup", "Back the database up, prove backups by restoring them, restore."),
}


class CommandGroup(click.Group):
    """The one place where our errors become a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Failure as failure:
            click.echo(f"ballast: {failure}", err=True)
            ctx.exit(failure.exit_code)


class LazyGroup(CommandGroup):
    """Imports the module of a verb when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module, _, attribute = verb.place.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{verb.place} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ballast")
def ballast() -> None:
    """A Supabase-native backend for B2B SaaS whose users sign in with Clerk.

    Start with `ballast up`. State lives in BALLAST_HOME (default: .local in the checkout), ports start at
    BALLAST_PORT_BASE + 1 (default: 54320 + 1), so that several stacks can run next to each other. With BALLAST_JOBS=off
    nobody calls the service's jobs.
    """
