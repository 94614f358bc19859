"""docs/mail.md: the example kind of mail is registered, queued, rendered and sent, from the page's blocks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from psycopg import sql

from service.mail import TEMPLATES, Mailer, Renderer, Resend, find_faults
from tests.conftest import ROOT, Database
from tests.people import BEN
from tests.service.outside import Outside, rest_answer

# A product may have the page's table and kind: here they have other names.
PAGE = re.sub(
    r"public\.(?=invoices)|(?=invoice_unpaid)", lambda found: f"{found[0]}test_", (ROOT / "docs/mail.md").read_text()
)
# The columns that docs/extend.md gives the table.
INVOICES = """
create table public.test_invoices (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  created_by uuid references public.profiles on delete set null,
  number text not null,
  amount numeric not null,
  status text not null,
  created_at timestamptz not null
);
"""


def test_the_example_kind_is_sent_and_can_be_switched_off(world: Database, outside: Outside, tmp_path: Path) -> None:
    declaration, cause = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    for form, template in zip(("txt", "html"), re.findall(r"```jinja\n(.*?)```", PAGE, re.DOTALL), strict=True):
        assert f"service/mail_templates/test_invoice_unpaid.{form}" in PAGE
        shutil.copy(TEMPLATES / f"layout.{form}", tmp_path)
        (tmp_path / f"test_invoice_unpaid.{form}").write_text(template)
    world.execute(INVOICES)
    world.execute(declaration)
    example = world.value("select example from app.mail_kinds where kind = 'test_invoice_unpaid'")
    assert find_faults({"test_invoice_unpaid": example}, tmp_path) == []
    world.execute("update app.settings set mail_enabled = true")
    world.execute(
        "insert into public.test_invoices (organization_id, created_by, number, amount, status, created_at) "
        "select m.organization_id, m.user_id, n, 119.5, case n when '17' then 'sent' else 'paid' end, '2026-01-31' "
        "from public.organization_memberships as m join public.profiles as p on p.id = m.user_id, "
        "unnest(array['17', '18']) as n where p.clerk_user_id = %s order by m.organization_id limit 2",
        BEN,
    )
    world.execute(cause)

    def call(name: str, arguments: dict[str, Any]) -> Any:
        given = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(key), sql.Placeholder()) for key in arguments
        )
        statement = sql.SQL("select {}({})").format(sql.Identifier("public", name), given).as_string(world.connection)
        with world.acting("service_role", {"role": "service_role"}):
            return world.value(statement, *arguments.values())

    sent: list[dict[str, Any]] = []
    outside.answer = lambda _path, _headers, body: (sent.append(json.loads(body)), rest_answer({"id": "re_1"}))[1]
    renderer = Renderer("Ballast", None, "https://api.example", "a secret", templates=tmp_path)
    mailer = Mailer(call, renderer, Resend("re_key", outside.url, "hello@mail.example"))
    assert mailer.send_due() == {"sent": 1, "postponed": 0, "failed": 0}
    [mail] = sent
    assert mail["subject"] == "Invoice 17 is unpaid"
    assert "Invoice 17 over 119.5 of 31 January 2026, 00:00 UTC is unpaid." in mail["text"]
    assert "<strong>17</strong>" in mail["html"]
    assert "Unsubscribe from reminders of invoices: https://api.example/mail/unsubscribe" in mail["text"]
    assert "List-Unsubscribe" in mail["headers"]
    person = world.value("select id from public.profiles where clerk_user_id = %s", BEN)
    assert call("unsubscribe_from_mail", {"person_id": person, "template": "test_invoice_unpaid"}) is True
    world.execute("update app.email_outbox set created_at = now() - interval '2 days'")
    world.execute(cause)
    assert mailer.send_due()["sent"] == 0
