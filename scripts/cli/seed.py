"""`ballast seed`: the example tenants through the front doors, or bulk data straight into the database."""

from __future__ import annotations

from collections import Counter

import click
import httpx
from rich.console import Console
from rich.progress import Progress

from scripts.cli import clerk
from scripts.errors import Failure
from scripts.local import bulk, examples
from scripts.local.clerk.client import ClerkClient, NotRunning, require_stand_in
from scripts.local.stack import client_environment, jobs_are_wanted
from scripts.schema import database


class NotSeeded(Failure):
    """An example was refused."""


@click.command(epilog="Example: ballast seed --organizations 100 --members 10 --projects 50")
@click.option("--organizations", type=click.IntRange(1), metavar="N", help="Bulk data: this many organizations ...")
@click.option(
    "--members", type=click.IntRange(1), default=10, show_default=True, help="... each with these members ..."
)
@click.option("--projects", type=click.IntRange(0), default=100, show_default=True, help="... and these projects.")
@click.option("--sql", "as_sql", is_flag=True, help="Print the example tenants as SQL (supabase/seed.sql) instead.")
def seed(organizations: int | None, members: int, projects: int, as_sql: bool) -> None:
    """Fill the database with the example tenants: as signed events, and projects that the people create.

    With --organizations it fills in bulk instead. Either way a second run changes nothing.
    """
    if as_sql:
        click.echo(examples.as_sql(), nl=False)
    elif organizations is not None:
        _seed_bulk(bulk.Size(organizations, members, projects))
    else:
        _seed_examples()


def _seed_examples() -> None:
    require_stand_in("`ballast clerk backfill` loads that instance's people.")
    environment = client_environment()
    outcomes = Counter(_send(environment, event) for event in examples.events())
    with database.connect(environment["DATABASE_URL"]) as connection:
        with_projects = bulk.has_projects(connection)
        if jobs_are_wanted():  # one of them shows mail at /dev/mail; locally none is sent
            connection.execute("update app.settings set mail_enabled = true")
    created = sum(
        create_missing_projects(environment, user_id, organization_id, titles)
        for (organization_id, user_id), titles in examples.PROJECTS.items()
        if with_projects
    )
    changed = outcomes["processed"]
    if not changed and not created:
        click.echo("The example tenants are there already: nothing changed.", err=True)
    else:
        click.echo(f"Seeded {changed} of {outcomes.total()} events and {created} projects.", err=True)


def _send(environment: dict[str, str], event: examples.Event) -> str:
    answer = clerk.send(environment, event.type, event.data, event.message_id, examples.AT)
    if answer["outcome"] == "failed":
        raise NotSeeded(f"{event.message_id} could not be applied: see `ballast inbox show {event.message_id}`.")
    return str(answer["outcome"])


def create_missing_projects(
    environment: dict[str, str], user_id: str, organization_id: str, titles: tuple[str, ...]
) -> int:
    """The person creates, through the Data API, those projects that the organization lacks. Returns how many."""
    token = ClerkClient(environment["CLERK_ISSUER"]).token(user_id, organization_id)["token"]
    headers = {"apikey": environment["SUPABASE_PUBLISHABLE_KEY"], "Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{environment['SUPABASE_URL']}/rest/v1", headers=headers, timeout=30) as api:
        [organization] = _rows(api, "/organizations", {"select": "id", "clerk_org_id": f"eq.{organization_id}"})
        filters = {"select": "title", "organization_id": f"eq.{organization['id']}"}
        there = {row["title"] for row in _rows(api, "/projects", filters)}
        missing = [{"organization_id": organization["id"], "title": title} for title in titles if title not in there]
        if missing:
            answer = api.post("/projects", json=missing)
            if not answer.is_success:
                raise NotSeeded(f"{user_id} could not create projects in {organization_id}: {answer.text}")
        return len(missing)


def _rows(api: httpx.Client, path: str, query: dict[str, str]) -> list[dict[str, str]]:
    try:
        answer = api.get(path, params=query)
    except httpx.HTTPError as error:
        raise NotRunning(f"The Data API does not answer at {api.base_url} ({error}): see `ballast status`.") from None
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
    click.echo(f"Added {added} rows." if added else "All of it is there already: nothing changed.", err=True)
