"""The example tenants, Acme and Globex: their Clerk events and their projects."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from scripts.local.clerk.directory import Directory

# The time of all events, in milliseconds. It is fixed, so that sending an event again changes nothing.
AT = 1_767_603_600_000
MESSAGE_PREFIX = "msg_seed_"

PEOPLE = {
    "user_ada": ("Ada", "Winter"),
    "user_ben": ("Ben", "Okafor"),
    "user_cleo": ("Cleo", "Santos"),
    "user_dee": ("Dee", "Lindqvist"),
    "user_eve": ("Eve", "Moreau"),
}
ORGANIZATIONS = {"org_acme": "user_ada", "org_globex": "user_eve"}  # each with its creator, who becomes the owner
SEATS = 20  # the largest limit of a Clerk plan without an add-on
MEMBERSHIPS = (
    ("user_ada", "org_acme", "org:admin"),
    ("user_ben", "org_acme", "org:admin"),
    ("user_cleo", "org_acme", "org:member"),
    ("user_dee", "org_acme", "org:viewer"),
    ("user_eve", "org_globex", "org:admin"),
    ("user_ada", "org_globex", "org:viewer"),
)
PROJECTS = {
    ("org_acme", "user_ada"): (
        "Anvil catalogue", "Pricing review", "Supplier portal", "Annual report", "Investor update", "Brand refresh",
        "Board meeting", "Patent filings", "Partner programme",
    ),
    ("org_acme", "user_ben"): (
        "Website relaunch", "Security audit", "Mobile app", "Data warehouse", "Onboarding flow", "Single sign-on",
        "Status page", "Incident runbook",
    ),
    ("org_acme", "user_cleo"): (
        "Rocket skates", "Tunnel paint", "Giant magnet", "Portable hole", "Spring boots", "Bird seed",
        "Roadrunner study", "Customer survey",
    ),
    ("org_globex", "user_eve"): (
        "Weather machine", "Hammock district", "Moon office", "Volcano lease", "Laser safety", "Henchmen handbook",
        "Ocean survey", "Satellite link", "Tax filing", "Office move",
    ),
}  # fmt: skip


class Event(NamedTuple):
    """A Clerk webhook. Its message id is fixed too, so sending it again is a redelivery."""

    message_id: str
    type: str
    data: dict[str, Any]


def events() -> list[Event]:
    """All events of the example tenants, complete, in the order in which they happened."""
    directory = Directory()
    events = []
    for event_type, data in _outline():
        complete = directory.complete(event_type, data | {"created_at": AT, "updated_at": AT})
        directory.apply(event_type, complete)
        events.append(Event(f"{MESSAGE_PREFIX}{complete['id']}", event_type, complete))
    return events


def as_sql() -> str:
    """supabase/seed.sql: the same events and projects for the Supabase CLI, which can only run SQL."""
    lines = [
        "-- The example tenants, for the Supabase CLI (`db push --include-seed`, `start`). Made by: ballast seed --sql",
        "set app.no_mail = 'on';",
        *(_event_as_sql(event) for event in events()),
        "reset app.no_mail;",
        "",
        "do $$",
        "begin",
        "  if to_regclass('public.projects') is null then return; end if;",
        "  insert into public.projects (organization_id, created_by, title)",
        "  select o.id, p.id, example.title",
        "  from (values",
        ",\n".join(_project_rows()),
        "  ) as example (clerk_org_id, clerk_user_id, title)",
        "  join public.organizations as o on o.clerk_org_id = example.clerk_org_id",
        "  join public.profiles as p on p.clerk_user_id = example.clerk_user_id",
        "  where not exists (select from public.projects as there where there.organization_id = o.id"
        " and there.title = example.title);",
        "end;",
        "$$;",
    ]
    return "\n".join(lines) + "\n"


def _outline() -> list[tuple[str, dict[str, Any]]]:
    users = [
        ("user.created", {"id": user_id, "first_name": first_name, "last_name": last_name})
        for user_id, (first_name, last_name) in PEOPLE.items()
    ]
    organizations = [
        ("organization.created", {"id": organization_id, "created_by": creator, "max_allowed_memberships": SEATS})
        for organization_id, creator in ORGANIZATIONS.items()
    ]
    memberships: list[tuple[str, dict[str, Any]]] = [
        (
            "organizationMembership.created",
            {
                "id": f"orgmem_{user_id.removeprefix('user_')}_{organization_id.removeprefix('org_')}",
                "role": role,
                "organization": {"id": organization_id},
                "public_user_data": {"user_id": user_id},
            },
        )
        for user_id, organization_id, role in MEMBERSHIPS
    ]
    return [*users, *organizations, *memberships]


def _event_as_sql(event: Event) -> str:
    envelope = {"data": event.data, "object": "event", "timestamp": AT, "type": event.type}
    text = json.dumps(envelope, separators=(",", ":"))
    return f"select public.receive_clerk_event('{event.message_id}', $event${text}$event$);"


def _project_rows() -> list[str]:
    return [
        f"    ('{organization_id}', '{user_id}', '{title}')"
        for (organization_id, user_id), titles in PROJECTS.items()
        for title in titles
    ]
