"""`ballast types`: generates types of the API's tables and functions, for TypeScript and Python."""

from __future__ import annotations

import click

from scripts.schema import api_types, database


@click.command("types", epilog="Example: ballast types --check")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the files are stale.")
def types_command(check: bool) -> None:
    """Generate supabase/types/database.ts and database.py: types of the schema public.

    The source is migrations/, functions/ and policies/, not a running database.
    """
    made = api_types.generate()
    stale = [name for name, text in made.items() if not api_types.is_current(api_types.FOLDER / name, text)]
    if check and stale:
        database.echo_err(f"Stale: {', '.join(stale)}. Write them with `ballast types`, and commit them.")
        raise click.exceptions.Exit(1)
    for name in stale:
        (api_types.FOLDER / name).write_text(made[name])
    click.echo(f"Wrote {', '.join(stale)}." if stale else "Nothing to do: the types are current.")
