"""A service with wrong settings does not start, and names them in one line."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path

import pytest
from flask import Flask

from scripts.health.context import Context
from service import settings as settings_folder
from service.components import components
from service.settings import Settings, SettingsFile, SettingsInvalid, find_settings
from tests.service.conftest import ENVIRONMENT, MakeApp
from tests.service.outside import SECRET

ROOT = Path(__file__).parents[2]
OPTIONAL = {"CLERK_API_URL"}
RECIPIENT = f"age1{'q' * 58}"
HTTPS = {
    "SUPABASE_URL": "https://project.supabase.co",
    "CLERK_ISSUER": "https://clerk.app.example",
    "CLERK_API_URL": "https://api.clerk.com",
    "RESEND_API_URL": "https://api.resend.com",
    "SERVICE_URL": "https://api.app.example",
    "UPSTASH_REDIS_REST_URL": "https://cache.upstash.io",
}


@pytest.mark.parametrize("name", sorted(ENVIRONMENT.keys() - OPTIONAL))
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_or_empty_variable_stops_the_start_with_one_line_naming_it(
    make_app: MakeApp, name: str, value: str | None
) -> None:
    with pytest.raises(SettingsInvalid) as stopped:
        make_app(**{name: value})
    assert str(stopped.value) == f"The service cannot start: {name} is missing. See .env.example."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", "prod-5ecret"),
        ("SUPABASE_URL", "project-5ecret.supabase.co"),
        ("SUPABASE_URL", "https://project.supabase.co/rest/v1/5ecret"),
        ("SUPABASE_URL", "ftp://5ecret.example"),
        ("SUPABASE_URL", "https://user:5ecret@project.supabase.co"),
        ("SUPABASE_URL", "https://[5ecret"),
        ("SUPABASE_URL", "https://5ecret.example:port"),
        ("SUPABASE_URL", "https://5ecret example"),
        ("SUPABASE_PUBLISHABLE_KEY", "sb_secret_5ecret"),
        ("SUPABASE_SECRET_KEY", "sb_publishable_5ecret"),
        ("CLERK_ISSUER", "https://"),
        ("CLERK_WEBHOOK_SECRETS", "5ecret"),
        ("CLERK_WEBHOOK_SECRETS", "whsec_5ecret!!!!!!!!!!!!!!!!!!!!!!!!!!!!"),
        ("CLERK_WEBHOOK_SECRETS", "whsec_5ecret"),
        ("CLERK_WEBHOOK_SECRETS", f"{SECRET},5ecret"),
        ("CLERK_WEBHOOK_SECRETS", ","),
        ("CLERK_SECRET_KEY", "pk_test_5ecret"),
        ("CLERK_SECRET_KEY", "sk_5ecret"),
        ("CLERK_SECRET_KEY", "sk_live_"),
        ("CLERK_SECRET_KEY", "sk_live_5ecret\nHost: elsewhere"),
        ("CLERK_SECRET_KEY", "sk_live_5ecret…"),
        ("CLERK_API_URL", "https://api.clerk.com/v1/5ecret"),
        ("CLERK_AUTHORIZED_PARTIES", "app.5ecret.example"),
        ("CLERK_AUTHORIZED_PARTIES", "https://app.example, https://app.example/5ecret"),
        ("CLERK_AUTHORIZED_PARTIES", "*5ecret"),
        ("UPSTASH_REDIS_REST_URL", "redis://5ecret"),
        ("RESEND_API_KEY", "5ecret"),
        ("RESEND_API_KEY", "re_5ecret\nHost: elsewhere"),
        ("RESEND_WEBHOOK_SECRET", "5ecret"),
        ("RESEND_API_URL", "https://api.resend.com/emails/5ecret"),
        ("MAIL_FROM", "5ecret"),
        ("MAIL_FROM", "5ecret@nowhere"),
        ("MAIL_FROM", "a@b.example, 5ecret@b.example"),
        ("MAIL_FROM", "5ecret\nBcc: all <a@b.example>"),
        ("SERVICE_URL", "5ecret.example"),
        ("LEGAL_CONTACT", "5ecret"),
        ("LEGAL_CONTACT", "5ecret@nowhere"),
        ("LEGAL_EFFECTIVE_DATE", "5ecret"),
        ("LEGAL_EFFECTIVE_DATE", "2026-02-30"),
        ("BACKUP_URL", "5ecret"),
        ("BACKUP_URL", "/var/5ecret"),
        ("BACKUP_URL", "file://5ecret/folder"),
        ("BACKUP_URL", "s3://key:5ecret@bucket/prefix"),
        ("BACKUP_URL", "s3://bucket/prefix?secret=5ecret"),
        ("BACKUP_URL", "https://5ecret.example/bucket"),
        ("OPERATOR_TOKEN", "5ecret"),
        ("DATABASE_URL", "mysql://user:5ecret@host/database"),
        ("DATABASE_URL", "host=localhost password=5ecret"),
        ("DATABASE_URL", "postgresql://user:5ecr%et@5ecret/database"),
        ("DATABASE_URL", "postgresql://user:5ecret@5ecret@host/database"),
        ("DATABASE_URL", "postgresql://user:5ecret/5ecret@host/database"),
        ("BACKUP_RECIPIENTS", "5ecret"),
        ("BACKUP_RECIPIENTS", f"AGE-SECRET-KEY-1{'5ECRET' * 10}5ecret"),
        ("BACKUP_RECIPIENTS", f"{RECIPIENT}, age15ecret"),
        ("BACKUP_RECIPIENTS", "ecdsa-sha2-nistp256 5ecret"),
        ("BACKUP_RECIPIENTS", "ssh-ed25519 5ecret!"),
    ],
)
def test_a_malformed_variable_stops_the_start_with_one_line_naming_it_and_never_its_value(
    make_app: MakeApp, name: str, value: str
) -> None:
    with pytest.raises(SettingsInvalid) as stopped:
        make_app(**{name: value})
    line = str(stopped.value)
    assert re.fullmatch(rf"The service cannot start: {name} must [^\n;]+\. See \.env\.example\.", line)
    assert "5ecret" not in line
    assert stopped.value.__cause__ is stopped.value.__context__ is None


def test_every_mistake_is_named_in_the_same_line(make_app: MakeApp) -> None:
    with pytest.raises(
        SettingsInvalid, match=r"^[^\n]*CLERK_ISSUER must be[^\n]*; UPSTASH_REDIS_REST_TOKEN is missing[^\n]*$"
    ):
        make_app(CLERK_ISSUER="x", UPSTASH_REDIS_REST_TOKEN=None)


@pytest.mark.parametrize("environment", ["staging", "production"])
@pytest.mark.parametrize("name", HTTPS)
def test_outside_local_and_test_urls_must_use_https(make_app: MakeApp, environment: str, name: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"{name} must use https"):
        make_app(**(HTTPS | {"ENVIRONMENT": environment, name: "http://plain.example"}))
    make_app(**HTTPS, ENVIRONMENT=environment)


def test_lists_are_separated_by_commas_and_may_have_spaces(make_app: MakeApp) -> None:
    parties, secrets = " https://a.example/ , chrome-extension://abc,", f"{SECRET} , {SECRET}"
    settings = get_settings(make_app(CLERK_AUTHORIZED_PARTIES=parties, CLERK_WEBHOOK_SECRETS=secrets))
    assert settings.clerk_authorized_parties == ("https://a.example", "chrome-extension://abc")
    assert [secret.get_secret_value() for secret in settings.clerk_webhook_secrets] == [SECRET, SECRET]


def test_the_defaults_are_clerks_own_api_and_no_backups(make_app: MakeApp) -> None:
    settings = get_settings(make_app(CLERK_API_URL=None, BACKUP_URL=""))
    assert (settings.clerk_api_url, settings.backup_url) == ("https://api.clerk.com", None)


@pytest.mark.parametrize(
    "place", ["s3://backups", "s3://my-backups.eu/one/prefix/", "gs://backups", "file:///mnt/back%20ups"]
)
def test_backup_url_may_be_a_bucket_or_a_folder(make_app: MakeApp, place: str) -> None:
    assert get_settings(make_app(BACKUP_URL=place)).backup_url == place


def test_backup_recipients_are_age_public_keys(make_app: MakeApp) -> None:
    keys = (RECIPIENT, f"age1{'p' * 58}")
    assert get_settings(make_app(BACKUP_RECIPIENTS=", ".join(keys))).backup_recipients == keys
    assert get_settings(make_app(BACKUP_RECIPIENTS="")).backup_recipients == ()


PLACES = {"BACKUP_URL": "s3://backups", "DATABASE_URL": "postgresql://postgres:5ecret@db.example:5432/postgres"}


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_outside_local_and_test_backups_must_be_encrypted(make_app: MakeApp, environment: str) -> None:
    with pytest.raises(
        SettingsInvalid, match=r"start: BACKUP_RECIPIENTS is missing: backups outside .* must be encrypted"
    ):
        make_app(**HTTPS, **PLACES, ENVIRONMENT=environment)
    make_app(**HTTPS, **PLACES, ENVIRONMENT=environment, BACKUP_RECIPIENTS=RECIPIENT)
    for place in PLACES:  # with one of them missing, the service makes no backups
        make_app(**(HTTPS | PLACES | {place: None}), ENVIRONMENT=environment)


def test_variables_missing_for_backups_are_named(make_app: MakeApp) -> None:
    assert get_settings(make_app()).missing_for_backups() == ("DATABASE_URL", "BACKUP_URL")
    assert get_settings(make_app(**PLACES)).missing_for_backups() == ()
    in_production = get_settings(make_app(**HTTPS, ENVIRONMENT="production", BACKUP_URL="s3://backups"))
    assert in_production.missing_for_backups() == ("DATABASE_URL", "BACKUP_RECIPIENTS")


def test_a_trailing_slash_in_a_url_is_ignored(make_app: MakeApp) -> None:
    assert get_settings(make_app(CLERK_ISSUER="http://clerk.example/")).clerk_issuer == "http://clerk.example"


def test_printing_the_settings_shows_no_secret(make_app: MakeApp) -> None:
    private = {"OPERATOR_TOKEN": "5ecret of the operator's, 32 and more", "DATABASE_URL": PLACES["DATABASE_URL"]}
    settings = get_settings(make_app(**private))
    shown = repr(settings) + str(settings)
    assert not [
        secret
        for secret in ("sb_secret_test", "whsec_", "sb_publishable_test", "sk_test_", "5ecret")
        if secret in shown
    ]


def get_settings(app: Flask) -> Settings:
    with app.app_context():
        return components().settings


def test_production_requires_the_legal_settings(make_app: MakeApp) -> None:
    addresses = ("SUPABASE_URL", "CLERK_ISSUER", "CLERK_API_URL", "UPSTASH_REDIS_REST_URL")
    elsewhere = dict.fromkeys(addresses, "https://elsewhere.example")
    make_app(ENVIRONMENT="production", **elsewhere)
    unnamed = {"LEGAL_COMPANY": "  ", "LEGAL_CONTACT": None}
    with pytest.raises(SettingsInvalid) as stopped:
        make_app(ENVIRONMENT="production", **elsewhere, **unnamed)
    assert "start: LEGAL_COMPANY is missing; LEGAL_CONTACT is missing. See" in str(stopped.value)
    make_app(ENVIRONMENT="staging", **elsewhere, **unnamed)


def test_gunicorn_exits_with_one_line_and_no_traceback() -> None:
    gunicorn = Path(sys.executable).with_name("gunicorn")
    ended = subprocess.run([gunicorn], cwd=ROOT, env={}, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr.startswith("The service cannot start: ENVIRONMENT is missing; SUPABASE_URL is missing; ")
    assert len(ended.stderr.strip().splitlines()) == 1


READ = re.compile(r"""environ(?:ment)?(?:\.get)?[\[(]['"]([A-Z_]+)['"]""")
# The shell, Vercel and our own gunicorn.conf.py set these.
SET_BY_OTHERS = {"PATH", "VERCEL_GIT_COMMIT_SHA", "PROMETHEUS_MULTIPROC_DIR"}


def test_the_example_files_explain_every_variable_that_the_code_reads() -> None:
    """`.env.example` has Ballast's variables, and `.env.<name>.example` those of a product."""
    lines = [line for file in sorted(ROOT.glob(".env*.example")) for line in file.read_text().splitlines()]
    named = {
        line.partition("=")[0]: lines[number - 1] for number, line in enumerate(lines) if re.match(r"[A-Z_]+=", line)
    }
    assert all(above.startswith("# ") for above in named.values())
    code = [
        ROOT / "gunicorn.conf.py",
        *(file for name in ("api", "service", "scripts") for file in (ROOT / name).rglob("*.py")),
    ]
    read = {name for file in code for name in READ.findall(file.read_text())}
    fields = Counter(name.upper() for kind in find_settings() for name in kind.model_fields if name != "environment")
    settings = {*fields, "ENVIRONMENT"}
    explained = named.keys() | set(re.findall(r"AWS_[A-Z_]+", "\n".join(lines)))
    assert len(read) > 10
    assert sorted((settings | read) - SET_BY_OTHERS - explained) == []
    assert sorted(named.keys() - settings - read) == []
    assert max(fields.values()) == 1


@pytest.fixture
def reminders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reminders.py").write_text(
        "from pydantic import SecretStr\n"
        "from service.settings.fields import LongSecret, SettingsFile\n"
        "class Reminders(SettingsFile):\n    reminder_days: int = 14\n    reminder_pass: LongSecret\n"
    )
    monkeypatch.delitem(sys.modules, "service.settings.reminders", raising=False)
    monkeypatch.setattr(settings_folder, "__path__", [*settings_folder.__path__, str(tmp_path)])


def reminders_of(app: Flask) -> SettingsFile:
    [kind] = [kind for kind in find_settings() if kind.__name__ == "Reminders"]
    return get_settings(app).of(kind)


def test_the_settings_of_another_module_are_read_and_not_shown(make_app: MakeApp, reminders: None) -> None:
    secret = "5ecret" * 6
    found = reminders_of(make_app(REMINDER_DAYS="3", REMINDER_PASS=secret))
    assert found.model_dump()["reminder_days"] == 3
    assert "5ecret" not in repr(found) + str(found)
    assert Context({"REMINDER_PASS": secret}, None).redact(f"It is {secret}.") == "It is …."


def test_a_check_of_several_settings_and_a_list_that_is_not_json_are_named_without_values(
    make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "payments.py").write_text(
        "from pydantic import model_validator\n"
        "from service.settings.fields import LongSecret, SettingsFile\n"
        "class Payments(SettingsFile):\n    pay_key: LongSecret\n    pay_days: list[int] = []\n"
        "    @model_validator(mode='after')\n    def check(self):\n        raise ValueError('needs PAY_KEY or PAY_URL')\n"
    )
    monkeypatch.delitem(sys.modules, "service.settings.payments", raising=False)
    monkeypatch.setattr(settings_folder, "__path__", [*settings_folder.__path__, str(tmp_path)])
    secret = "5ecret" * 6
    for days, reason in (("", "Payments needs PAY_KEY or PAY_URL"), (secret, "PAY_DAYS must be a valid list")):
        with pytest.raises(SettingsInvalid) as stopped:
            make_app(PAY_KEY=secret, PAY_DAYS=days)
        assert str(stopped.value) == f"The service cannot start: {reason}. See .env.example."
        assert secret not in "".join(traceback.format_exception(stopped.value))


def test_mistakes_in_every_module_are_named_in_one_line(make_app: MakeApp, reminders: None) -> None:
    with pytest.raises(SettingsInvalid) as stopped:
        make_app(CLERK_ISSUER="x", REMINDER_DAYS="often", REMINDER_PASS=None)
    assert re.fullmatch(
        r"The service cannot start: CLERK_ISSUER must [^;]+; REMINDER_DAYS must be [^;]+; REMINDER_PASS is missing\. See \.env\.example\.",
        str(stopped.value),
    )
