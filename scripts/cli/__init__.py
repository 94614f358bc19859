"""The `ballast` command. A verb's module is imported only when the verb is used, so that `ballast --help` is fast."""

from __future__ import annotations

import errno
import re
import tempfile
from importlib import import_module
from typing import Any, NamedTuple

import click

from scripts.errors import Failure

# The example that errors give is no secret.
DATABASE_CREDENTIALS = re.compile(r"(postgres(?:ql)?://)(?!user:password@).*@", re.DOTALL)


class Verb(NamedTuple):
    """The location of a verb (`module:command`) and its line in `ballast --help`."""

    place: str
    help: str


VERBS = {
    "up": Verb("scripts.cli.stack:up", "Start the local stack, and seed an empty database."),
    "down": Verb("scripts.cli.stack:down", "Stop everything that `ballast up` started."),
    "status": Verb("scripts.cli.stack:status", "Show database health and the local services that are running."),
    "doctor": Verb("scripts.cli.doctor:doctor", "Check the whole configuration, and print how to fix it."),
    "env": Verb("scripts.cli.stack:env", "Print the local stack's environment as export lines."),
    "reset": Verb("scripts.cli.stack:reset", "Stop the stack and delete its data."),
    "token": Verb("scripts.cli.token:token", "Print a session token, as Clerk would issue it."),
    "clerk": Verb("scripts.cli.clerk:clerk", "Import or reconcile Clerk data, or send a signed test event."),
    "seed": Verb("scripts.cli.seed:seed", "Load the example tenants, or bulk data, into the database."),
    "migrate": Verb("scripts.cli.migrate:migrate", "Apply, list, check or create migrations."),
    "new": Verb("scripts.schema.new_table:new", "Add a table to your product, with policies, audit and tests."),
    "types": Verb("scripts.cli.types:types_command", "Generate types of the API for TypeScript and Python."),
    "upgrade": Verb("scripts.cli.upgrade:upgrade", "Merge a release of Ballast into this product."),
    "upgrade-check": Verb(
        "scripts.cli.upgrade_check:upgrade_check", "Test the pending migrations against a restored backup."
    ),
    "inbox": Verb("scripts.cli.inbox:inbox", "List, show or retry received Clerk events."),
    "audit": Verb("scripts.cli.audit:audit", "Seal and verify the audit trail, and maintain its partitions."),
    "person": Verb("scripts.cli.person:person", "Export or erase a person's data."),
    "backup": Verb("scripts.cli.backup:backup", "Create, list, verify, test and restore backups."),
}


def hide_credentials(message: str) -> str:
    """Hides the user and password of a database's URL: a URL that is given as another argument is quoted in errors."""
    return DATABASE_CREDENTIALS.sub(r"\1…@", message)


class CommandGroup(click.Group):
    """Converts every Failure, and a full disk of this machine, into a message on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(hide_credentials(error.format_message()), error.ctx) from None
        except Failure as failure:
            click.echo(f"ballast: {hide_credentials(str(failure))}", err=True)
            ctx.exit(failure.exit_code)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            place = error.filename or tempfile.gettempdir()
            click.echo(f"ballast: {error.strerror}: {place}. Free some space, or set TMPDIR to another disk.", err=True)
            ctx.exit(1)


class LazyGroup(CommandGroup):
    """Imports a verb's module when the verb is used."""

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

    Start with `ballast up`. Several local stacks can run at the same time: BALLAST_HOME is the folder of a stack's data
    (default: .local in the checkout), and its ports are BALLAST_PORT_BASE + 1 and up (default base: 54320). With
    BALLAST_JOBS=off, the stack does not run the service's jobs.
    """
