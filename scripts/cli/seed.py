"""`ballast seed`: creates the example tenants through the service and the Data API, or bulk data in the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import click
import httpx
from rich.console import Console
from rich.progress import Progress

from scripts.clerk.backfill import backfill
from scripts.clerk.listing import open_listing
from scripts.cli import clerk
from scripts.errors import Failure
from scripts.local import bulk, examples
from scripts.local.clerk.client import ClerkClient, NotRunning, require_stand_in
from scripts.local.stack import client_environment, jobs_are_wanted
from scripts.schema import database
from scripts.schema.database import Connection


class NotSeeded(Failure):
    """The service or the Data API refused a part of the example data."""


@click.command(epilog="Example: ballast seed --organizations 100 --members 10 --projects 50")
@click.option(
    "--organizations", type=click.IntRange(1), metavar="N", help="Create bulk data: this many organizations ..."
)
@click.option(
    "--members", type=click.IntRange(1), default=10, show_default=True, help="... each with these members ..."
)
@click.option("--projects", type=click.IntRange(0), default=100, show_default=True, help="... and these projects.")
@click.option("--sql", "as_sql", is_flag=True, help="Only print the example tenants as SQL (supabase/seed.sql).")
def seed(organizations: int | None, members: int, projects: int, as_sql: bool) -> None:
    """Create the example tenants: send signed Clerk events, and create projects as their members.

    With --organizations it creates bulk data instead. In both cases a second run changes nothing.
    """
    if as_sql:
        click.echo(examples.as_sql(), nl=False)
    elif organizations is not None:
        _seed_bulk(bulk.Size(organizations, members, projects))
    else:
        _seed_examples()


def _seed_examples() -> None:
    require_stand_in("`ballast clerk backfill` imports the people of that instance.")
    environment = client_environment()
    with database.connect(environment["DATABASE_URL"]) as connection:
        with_projects = bulk.has_projects(connection)
        with _mail_off(connection):
            outcomes = Counter(_send(environment, event) for event in examples.events())
        # A Clerk instance has roles and permissions from the start.
        with open_listing(environment) as listing:
            backfill(connection, listing, lambda *_: None, restart=True)
    created = sum(
        create_missing_projects(environment, user_id, organization_id, titles)
        for (organization_id, user_id), titles in examples.PROJECTS.items()
        if with_projects
    )
    changed = outcomes["processed"]
    if not changed and not created:
        click.echo("The example tenants exist already: nothing changed.", err=True)
    else:
        click.echo(f"Seeded {changed} of {outcomes.total()} events and {created} projects.", err=True)


@contextmanager
def _mail_off(connection: Connection) -> Iterator[None]:
    """Queues no mail to the example people. Afterwards a job shows mail at /dev/mail; the local stack sends none."""
    was_on = connection.execute("select from app.settings where mail_enabled").rowcount == 1
    connection.execute("update app.settings set mail_enabled = false")
    try:
        yield
    finally:
        connection.execute("update app.settings set mail_enabled = %s", [was_on or jobs_are_wanted()])


def _send(environment: dict[str, str], event: examples.Event) -> str:
    answer = clerk.send(environment, event.type, event.data, event.message_id, examples.AT)
    if answer["outcome"] == "failed":
        reason = clerk.find_reason(environment, answer)
        raise NotSeeded(f"The event {event.message_id} was not applied: {reason}")
    return str(answer["outcome"])


def create_missing_projects(
    environment: dict[str, str], user_id: str, organization_id: str, titles: tuple[str, ...]
) -> int:
    """Creates, as the user and through the Data API, the projects that the organization lacks. Returns their number."""
    token = ClerkClient(environment["CLERK_ISSUER"]).token(user_id, organization_id)["token"]
    headers = {"apikey": environment["SUPABASE_PUBLISHABLE_KEY"], "Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{environment['SUPABASE_URL']}/rest/v1", headers=headers, timeout=30) as api:
        [organization] = _rows(api, "/organizations", {"select": "id", "clerk_org_id": f"eq.{organization_id}"})
        filters = {"select": "title", "organization_id": f"eq.{organization['id']}"}
        existing = {row["title"] for row in _rows(api, "/projects", filters)}
        missing = [{"organization_id": organization["id"], "title": title} for title in titles if title not in existing]
        if missing:
            answer = api.post("/projects", json=missing)
            if not answer.is_success:
                raise NotSeeded(f"{user_id} could not create projects in {organization_id}: {answer.text}")
        return len(missing)


def _rows(api: httpx.Client, path: str, query: dict[str, str]) -> list[dict[str, str]]:
    try:
        answer = api.get(path, params=query)
    except httpx.HTTPError as error:
        raise NotRunning(
            f"The Data API does not answer at {api.base_url} ({type(error).__name__}): see `ballast status`."
        ) from None
    if not answer.is_success:
        raise NotSeeded(f"{path} could not be read: {answer.text}")
    rows: list[dict[str, str]] = answer.json()
    return rows


def _seed_bulk(size: bulk.Size) -> None:
    added = 0
    console = Console(stderr=True)
    with (
        database.connect(client_environment()["DATABASE_URL"]) as connection,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("organizations", total=size.organizations)
        for done, rows in bulk.fill(connection, size):
            added += rows
            progress.update(task, completed=done)
    click.echo(f"Added {added} rows." if added else "The bulk data exists already: nothing changed.", err=True)
