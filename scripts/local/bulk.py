"""Creates many tenants with a few set-based statements, to try query plans and paging. It bypasses the Clerk sync."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

ORGANIZATIONS_PER_BATCH = 50

# Each key is derived from the row's number, so a second run inserts nothing. Parameters: the first and the last
# organization, and the number of members and projects in each. The first member is the owner, the second an admin, the
# last a viewer.
BATCH = (
    """
    insert into public.organizations (clerk_org_id, name, slug)
    select format('org_bulk_%%s', number), 'Bulk ' || number, 'bulk-' || number
    from (select lpad(n::text, 6, '0') as number from generate_series(%(first)s::int, %(last)s) as n) as numbers
    on conflict (clerk_org_id) do nothing
    """,
    """
    insert into public.profiles (clerk_user_id, email, full_name)
    select format('user_bulk_%%s', number), format('bulk.%%s@example.com', number), 'Person ' || number
    from (
        select lpad(n::text, 6, '0') as number
        from generate_series((%(first)s::int - 1) * %(members)s + 1, %(last)s * %(members)s) as n
    ) as numbers
    on conflict (clerk_user_id) do nothing
    """,
    """
    insert into public.organization_memberships (organization_id, user_id, role, clerk_role, clerk_membership_id)
    select o.id, p.id, r.role, app.clerk_role_key(r.role),
        format('orgmem_bulk_%%s', lpad(u.number::text, 6, '0'))
    from generate_series(%(first)s::int, %(last)s) as n
    cross join generate_series(1, %(members)s) as m
    cross join lateral (select (n - 1) * %(members)s + m as number) as u
    cross join lateral (
        -- The roles from the highest down. The last member has the lowest, and all others the one above it.
        select k.roles[case when m = %(members)s then k.lowest else least(m, greatest(k.lowest - 1, 1)) end]
        from (select array_agg(key order by rank desc) as roles, count(*)::integer as lowest from public.roles) as k
    ) as r (role)
    join public.organizations as o on o.clerk_org_id = format('org_bulk_%%s', lpad(n::text, 6, '0'))
    join public.profiles as p on p.clerk_user_id = format('user_bulk_%%s', lpad(u.number::text, 6, '0'))
    on conflict (user_id, organization_id) do nothing
    """,
    # Projects are last, so that `fill` can leave them out in a product without that table.
    """
    insert into public.projects (id, organization_id, created_by, title, status, created_at)
    select md5(format('bulk project %%s of %%s', k, n))::uuid, o.id, p.id, 'Project ' || k,
        case when k %% 10 = 0 then 'archived' else 'active' end, now() - k * interval '1 hour'
    from generate_series(%(first)s::int, %(last)s) as n
    join public.organizations as o on o.clerk_org_id = format('org_bulk_%%s', lpad(n::text, 6, '0'))
    cross join generate_series(1, %(projects)s) as k
    left join public.profiles as p
        on p.clerk_user_id = format('user_bulk_%%s', lpad(((n - 1) * %(members)s + 1 + k %% %(members)s)::text, 6, '0'))
    on conflict (id) do nothing
    """,
)
TABLES = ("organizations", "profiles", "organization_memberships", "projects")


@dataclass(frozen=True)
class Size:
    """The number of organizations, and of members and projects in each."""

    organizations: int
    members: int
    projects: int


def has_projects(connection: psycopg.Connection[Any]) -> bool:
    """Whether the database has the example table; a product may have dropped it (docs/extend.md)."""
    return connection.execute("select to_regclass('public.projects') is not null").fetchone() == (True,)


def fill(connection: psycopg.Connection[Any], size: Size) -> Iterator[tuple[int, int]]:
    """Inserts the missing rows and commits each batch. Yields (organizations done, rows added) per batch."""
    tables = TABLES if has_projects(connection) else TABLES[:-1]
    for first in range(1, size.organizations + 1, ORGANIZATIONS_PER_BATCH):
        last = min(first + ORGANIZATIONS_PER_BATCH - 1, size.organizations)
        numbers = {"first": first, "last": last, "members": size.members, "projects": size.projects}
        with connection.transaction():
            connection.execute("select set_config('app.no_mail', 'on', true)")
            added = sum(connection.execute(statement, numbers).rowcount for statement in BATCH[: len(tables)])
        yield last, added
    for table in tables:
        connection.execute(sql.SQL("analyze public.{}").format(sql.Identifier(table)))
