"""docs/deploy.md: it explains how to replace each secret, covers the specification's checklists, and its checks pass."""

from __future__ import annotations

import re

from scripts.health.context import PUBLIC_NAMES, SECRET_NAME
from tests.conftest import ROOT, Stack

PAGE = ROOT / "docs/deploy.md"


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def test_the_page_explains_how_to_replace_every_secret() -> None:
    names = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    aws = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    secrets = {name for name in names if SECRET_NAME.search(name)} - PUBLIC_NAMES | PUBLIC_NAMES | aws
    assert {"CLERK_SECRET_KEY", "DATABASE_URL", "SENTRY_DSN"} <= secrets
    assert [name for name in sorted(secrets) if f"`{name}`" not in section("Replacing a key")] == []


def test_the_checklists_cover_every_item_of_the_specification() -> None:
    subjects = """
        variables; migrations; Clerk's production instance; names and certificates; Sentry; backups; privacy page; consent banner; limits;
        mail; payments; errors; what people do; the database; cache; response times; sign-ins; webhooks; audit trail; uptime; costs;
        packages; who may do what; security; personal data
    """
    rows = [row.split(" | ")[0] for row in re.findall(r"^\| .+ \|$", section("Checklists"), re.MULTILINE)]
    required = [subject.strip() for subject in subjects.split(";")]
    assert [subject for subject in required if not any(subject in row for row in rows)] == []


def test_checks_that_need_no_account_pass_on_the_local_stack(stack: Stack) -> None:
    """Runs the page's curl commands and the smoke test, unchanged."""
    lines = [
        line.strip()
        for line in [
            *re.findall(r"`(curl [^`]+)`", section("Checklists")),
            *re.findall(r"^curl .*$", PAGE.read_text(), re.MULTILINE),
        ]
    ]
    assert len(lines) == 7
    for line in [*lines, './scripts/ci/smoke "$SERVICE_URL"']:
        ran = stack.run_lines(line)
        assert ran.returncode == 0, (line, ran.stderr)
        if "--include" in line:
            assert "RateLimit-Remaining" in ran.stdout
    signed_in = re.search(r"`(SESSION_TOKEN=[^`]+)`", section("Checklists"))
    assert signed_in
    ran = stack.run_lines(f"TOKEN={stack.token('user_ada', 'org_acme')}\n{signed_in[1]}")
    assert ran.returncode == 0, ran.stderr
    assert "rest/v1/organizations" in ran.stdout
