"""The SQL of pages other than sql-editor.md runs unchanged, on a database with rows in every table."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT, Database

PAGES = ("audit.md", "deploy.md", "limits.md", "personal-data.md", "realtime.md")
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```sql\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
]
# The table that the pages use as their example.
INVOICES = """
create table public.invoices (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  number text not null,
  iban text,
  approved_by uuid references public.profiles on delete set null,
  created_at timestamptz not null default now()
);
insert into public.role_permissions (role, permission) values ('owner', 'invoices:read');
"""
REGISTRATION = """
insert into app.personal_data (
  relation, path, subject, domain, exported, ordered_by, made_at, erasure, replacements, erased_by,
  category, data, purpose, lawful_basis, retention_period, expired, retention
)
values
"""


def test_each_page_has_sql() -> None:
    assert {page for page, _ in BLOCKS} == set(PAGES)


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{page} {' '.join(block.split())[:50]}" for page, block in BLOCKS]
)
def test_every_statement_runs(world: Database, page: str, block: str) -> None:
    world.execute(INVOICES)
    # A block that begins with a parenthesis is one row of the registry.
    world.execute(f"{REGISTRATION}{block.strip().removesuffix(',')}" if block.startswith("(") else block)
