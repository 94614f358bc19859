"""The SQL of pages other than sql-editor.md runs unchanged, on a database with rows in every table."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT, Database
from tests.db.test_erasure import erase
from tests.db.test_personal_data import export_all
from tests.people import ADA_EMAILS, call

PAGES = ("audit.md", "deploy.md", "limits.md", "personal-data.md", "realtime.md")
# The examples of the pages, which a product may have.
EXAMPLES = re.compile(r"\b(invoices|newsletter_signups|(?<=')newsletter(?='))\b")
BLOCKS = [
    (page, EXAMPLES.sub(r"test_\1", block))
    for page in PAGES
    for block in re.findall(r"^```sql\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
]
# The table that the pages use as their example.
INVOICES = """
create table public.test_invoices (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  number text not null,
  iban text,
  approved_by uuid references public.profiles on delete set null,
  created_at timestamptz not null default now()
);
insert into public.role_permissions (role, permission) values ('owner', 'test_invoices:read');
"""
NEWSLETTER = """
create table public.test_newsletter_signups (
  id uuid primary key default gen_random_uuid(),
  person_id uuid references public.profiles on delete cascade,
  email text not null,
  created_at timestamptz not null default now()
);
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
    world.execute(INVOICES + NEWSLETTER)
    # A block that begins with a parenthesis is one row of the registry.
    world.execute(f"{REGISTRATION}{block.strip().removesuffix(',')}" if block.startswith("(") else block)


def test_a_table_that_was_made_by_hand_is_exported_erased_and_cleaned_up(world: Database) -> None:
    world.execute(NEWSLETTER)
    for _, block in BLOCKS:
        if "public.test_newsletter_signups" in block:
            world.execute(block)
    world.execute(
        "insert into public.test_newsletter_signups (email, created_at) values ('old@example.com', now() - interval '3 years')"
    )
    assert [row["email"] for row in export_all(world)["test_newsletter"]] == [ADA_EMAILS[0]]
    while not call(world, "run_retention")["done"]:
        pass
    assert world.rows("select email from public.test_newsletter_signups") == [(ADA_EMAILS[0],)]
    erase(world)
    assert world.rows("select from public.test_newsletter_signups") == []
