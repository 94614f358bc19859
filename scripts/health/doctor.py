"""`ballast doctor`: whether Supabase, Clerk, the service, Redis and the backups fit together, seen from here.

Each check ends as passed, failed or skipped, and says what to do. None changes anything; only the service stores a ping
for each webhook secret. What is printed never holds the value of a variable that is secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

import click
import httpx
import obstore
import pyrage
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.backup import programs
from scripts.backup.store import BackupStore, StoreUnavailable
from scripts.cli import database
from scripts.errors import Failure
from scripts.local.clerk.client import ClerkClient
from scripts.local.stack import Stack
from scripts.schema import drift, migrations
from service import object_store
from service.settings import GUARDED, SettingsInvalid, load

TIMEOUT = httpx.Timeout(10)
PING_TYPE = "ballast.ping"
# Supabase's own.
STATEMENT_TIMEOUTS = {"anon": "3s", "authenticated": "8s"}
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|IDENTITY|DATABASE_URL|DSN")
PUBLIC_NAMES = {"SUPABASE_PUBLISHABLE_KEY"}
SHORTEST_HIDDEN = 6
ADVISORS = migrations.ROOT / "node_modules/.bin/supabase"
ACCEPTED_ADVICE = migrations.ROOT / "tests/db/accepted_advice.toml"

Outcome = Literal["passed", "failed", "skipped"]


class CheckFailed(Exception):
    """What was looked at is not as it has to be: `found` says how, `remedy` what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


class CheckSkipped(Exception):
    """There is nothing to look at: a variable is not set, or a program not there."""


@dataclass(frozen=True)
class Finding:
    """What became of a check."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


@click.command(epilog="Example: ballast doctor --json")
@database.url_option
@click.option("--write", is_flag=True, help="Also write a small file beside the backups, and delete it.")
@click.option("--session-token", metavar="TOKEN", help="A session token of Clerk's, to see that Supabase trusts Clerk.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(url: str | None, write: bool, session_token: str | None, as_json: bool) -> None:
    """Check that everything fits together, and say what to do where it does not. Exits with 1 when a check fails.

    Reads the service's variables from the environment; beside a local stack's own database, from the stack.
    """
    console = Console(stderr=True)
    with console.status("Looking …"):
        patient = Patient(database.environment(url), url, session_token=session_token, may_write=write)
        findings = examined(patient)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.outcome == "failed" for finding in findings):
        raise click.exceptions.Exit(1)


class Patient:
    """What is examined: the environment it runs in, and its database."""

    def __init__(
        self,
        environment: Mapping[str, str],
        url: str | None,
        *,
        session_token: str | None = None,
        may_write: bool = False,
    ) -> None:
        self.environment = environment
        self.session_token = session_token
        self.may_write = may_write
        self._url = url

    def __getitem__(self, name: str) -> str:
        """A variable. Raises CheckSkipped when it is not set."""
        if not (value := self.environment.get(name, "").strip()):
            raise CheckSkipped(f"{name} is not set.")
        return value

    def items(self, name: str) -> list[str]:
        """A variable's parts between commas. Raises CheckSkipped."""
        return [item.strip() for item in self[name].split(",") if item.strip()]

    @property
    def is_guarded(self) -> bool:
        return self.environment.get("ENVIRONMENT") in GUARDED

    @cached_property
    def database_url(self) -> str:
        return self._url or self["DATABASE_URL"]

    @property
    def is_local(self) -> bool:
        return self.database_url == Stack.from_environment().postgres.url()

    def hidden(self, text: str) -> str:
        """The text without any secret of the environment."""
        known = [
            value for name, value in self.environment.items() if SECRET_NAME.search(name) and name not in PUBLIC_NAMES
        ]
        pieces = {piece.strip() for value in known for piece in (value, *value.split(","))}
        if self._url:
            pieces |= {self._url}
        if self.session_token:
            pieces |= {self.session_token}
        for url in [piece for piece in pieces if "://" in piece]:
            if password := re.search(r"://[^:/@]*:([^@]+)@", url):
                pieces.add(password[1])
        for piece in sorted(pieces, key=len, reverse=True):
            if len(piece) >= SHORTEST_HIDDEN:
                text = text.replace(piece, "…")
        return text


def examined(patient: Patient) -> list[Finding]:
    """Runs every check, whatever becomes of the others."""
    return [examine(name, patient) for name in CHECKS]


def examine(name: str, patient: Patient) -> Finding:
    """Runs one check."""
    try:
        return Finding(name, "passed", patient.hidden(CHECKS[name](patient)))
    except CheckSkipped as reason:
        return Finding(name, "skipped", patient.hidden(str(reason)))
    except CheckFailed as failure:
        return Finding(name, "failed", patient.hidden(failure.found), patient.hidden(failure.remedy))
    except Failure as failure:
        found, _, remedy = str(failure).partition("\n")
        return Finding(name, "failed", patient.hidden(found), patient.hidden(remedy))
    except httpx.HTTPError as failure:
        found = f"No answer: {type(failure).__name__}."
        return Finding(name, "failed", found, "Check the URL, and the way to it from here.")


# --- settings ---


def settings_are_complete(patient: Patient) -> str:
    """Every variable is there and of its form, as the service asks at its start."""
    with _environment(patient.environment):
        try:
            loaded = load()
        except SettingsInvalid as failure:
            raise CheckFailed(str(failure), "Set them as .env.example says, and start the service anew.") from None
    missing = loaded.missing_for_backups()
    note = f" No backups are made without {', '.join(missing)}." if missing else ""
    return f"Complete for {loaded.environment}.{note}"


def keys_are_in_their_places(patient: Patient) -> str:
    """The publishable key is no secret one, and Clerk's are those of an instance for this environment."""
    publishable, secret = patient["SUPABASE_PUBLISHABLE_KEY"], patient["SUPABASE_SECRET_KEY"]
    if _role(publishable) != "anon":
        raise CheckFailed(
            "SUPABASE_PUBLISHABLE_KEY is not the publishable key: browsers would get what passes by every policy.",
            "Take sb_publishable_… of Project settings → API keys. If the other one was ever published, revoke it.",
        )
    if _role(secret) != "service_role":
        raise CheckFailed(
            "SUPABASE_SECRET_KEY is not a secret key.", "Take sb_secret_… of Supabase's Project settings → API keys."
        )
    clerk = patient["CLERK_SECRET_KEY"]
    if patient.environment.get("ENVIRONMENT") == "production" and not clerk.startswith("sk_live_"):
        raise CheckFailed(
            "CLERK_SECRET_KEY is a development instance's: deletions at Clerk would find nobody.",
            "Take sk_live_… of the production instance, and its Frontend API URL as CLERK_ISSUER.",
        )
    return "Publishable, secret and Clerk's key are each of their kind."


def _role(key: str) -> str:
    """What an API key stands for: anon or service_role. Older keys are JWTs that say so."""
    if not key.startswith("eyJ"):
        return "anon" if key.startswith("sb_publishable_") else "service_role" if key.startswith("sb_secret_") else ""
    try:
        middle = key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    except (IndexError, ValueError):
        return ""
    return str(claims.get("role", "")) if isinstance(claims, dict) else ""


# --- Clerk and the Data API ---


def clerk_publishes_its_keys(patient: Patient) -> str:
    """Clerk's JWKS has keys for RS256, with which its tokens are checked."""
    url = f"{patient['CLERK_ISSUER'].rstrip('/')}/.well-known/jwks.json"
    remedy = "CLERK_ISSUER is the Frontend API URL of Clerk's dashboard (API keys), without a path."
    answer = httpx.get(url, timeout=TIMEOUT)
    keys = _json(answer).get("keys") if answer.is_success else None
    if not isinstance(keys, list):
        raise CheckFailed(f"{url} answers {answer.status_code} and no keys.", remedy)
    usable = [key for key in keys if key.get("kty") == "RSA" and key.get("alg", "RS256") == "RS256" and key.get("kid")]
    if not usable:
        raise CheckFailed(f"{url} has no key for RS256.", remedy)
    return f"{len(usable)} for RS256."


def the_data_api_knows_the_publishable_key(patient: Patient) -> str:
    """A call with it gets as far as the database, which refuses it: nothing is granted to anon."""
    answer = _rest(patient, "GET", "role_permissions?limit=1", patient["SUPABASE_PUBLISHABLE_KEY"])
    if answer.is_success and _json(answer, list):
        raise CheckFailed(
            "Somebody who is not signed in reads public.role_permissions.",
            "Run `ballast migrate check`: a grant has drifted.",
        )
    if answer.is_success or _json(answer).get("code") == "42501":
        return "It answers, and gives nothing to those who are not signed in."
    raise CheckFailed(
        f"The Data API answers {answer.status_code}: {_said(answer)}",
        "Check SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY, and that the Data API is on and public is an exposed schema.",
    )


def the_data_api_knows_the_secret_key(patient: Patient) -> str:
    """public.ready() is true for the service."""
    answer = _rest(patient, "POST", "rpc/ready", patient["SUPABASE_SECRET_KEY"])
    if answer.is_success and answer.text.strip() == "true":
        return "The service reaches the database through it."
    raise CheckFailed(
        f"public.ready() answers {answer.status_code}: {_said(answer)}",
        "Check SUPABASE_SECRET_KEY; if it is right, run `ballast migrate up` and `notify pgrst, 'reload schema'`.",
    )


def supabase_trusts_clerk(patient: Patient) -> str:
    """A session token of Clerk's is a signed-in person to the Data API."""
    answer = httpx.post(
        _rest_url(patient, "rpc/my_permissions"),
        headers={"apikey": patient["SUPABASE_PUBLISHABLE_KEY"], "Authorization": f"Bearer {_session_token(patient)}"},
        timeout=TIMEOUT,
    )
    if answer.is_success:
        return "A session token of Clerk's is accepted."
    raise CheckFailed(
        f"A session token is answered {answer.status_code}: {_said(answer)}",
        "Enter CLERK_ISSUER under Supabase's Authentication → Third-party auth → Clerk, and activate Clerk's Supabase "
        'integration, which puts "role": "authenticated" into tokens. A token lives for 60 seconds.',
    )


def _session_token(patient: Patient) -> str:
    if patient.session_token:
        return patient.session_token
    if patient.environment.get("ENVIRONMENT") != "local":
        raise CheckSkipped("Pass --session-token, from a signed-in browser: await Clerk.session.getToken().")
    with database.connected(patient.database_url) as connection:
        row = connection.execute(
            "select clerk_user_id from public.profiles where not banned order by created_at limit 1"
        ).fetchone()
    if row is None:
        raise CheckSkipped("The local stack has no person who could sign in: run `ballast seed`.")
    return str(ClerkClient(patient["CLERK_ISSUER"]).token(row[0], None)["token"])


def only_public_is_exposed(patient: Patient) -> str:
    """The Data API knows no schema app, nor ops."""
    for schema, relation in (("app", "settings"), ("ops", "tenants")):
        answer = _rest(
            patient, "GET", f"{relation}?limit=1", patient["SUPABASE_SECRET_KEY"], {"Accept-Profile": schema}
        )
        if _json(answer).get("code") != "PGRST106":
            raise CheckFailed(
                f"The schema {schema} is reachable through the Data API ({answer.status_code}).",
                "Remove it from the exposed schemas: Supabase's Project settings → Data API.",
            )
    return "app and ops are not reachable."


# --- the database ---


def statements_of_people_end(patient: Patient) -> str:
    """A statement through the Data API is ended after a while."""
    with database.connected(patient.database_url) as connection:
        # What is set for this database alone comes later, and counts.
        found = dict(
            connection.execute(
                "select r.rolname, split_part(c, '=', 2) from pg_db_role_setting as s "
                "join pg_roles as r on r.oid = s.setrole cross join unnest(s.setconfig) as c "
                "where r.rolname in ('anon', 'authenticated') and c like 'statement_timeout=%' and s.setdatabase in "
                "(0, (select oid from pg_database where datname = current_database())) order by s.setdatabase"
            ).fetchall()
        )
    unlimited = [role for role in STATEMENT_TIMEOUTS if found.get(role) in {None, "0"}]
    if unlimited:
        raise CheckFailed(
            f"Without a statement_timeout: {', '.join(unlimited)}. One slow query would hold a connection for ever.",
            "; ".join(f"alter role {role} set statement_timeout = '{STATEMENT_TIMEOUTS[role]}'" for role in unlimited)
            + "; notify pgrst, 'reload config'.",
        )
    return ", ".join(f"{role} {limit}" for role, limit in sorted(found.items()))


def the_schema_is_as_the_files_say(patient: Patient) -> str:
    """Every migration is applied, and nothing has drifted. Locks tables for a moment, as `ballast migrate check`."""
    plan, drifted = drift.check(patient.database_url)
    if not plan.empty:
        pending = [*plan.paths, *plan.removed]
        raise CheckFailed(f"Not applied: {_some(pending)}.", "Run `ballast migrate up`.")
    if drifted:
        raise CheckFailed(
            f"Drifted: {_some([f'{each.kind} {each.name} ({each.problem})' for each in drifted])}.",
            "See `ballast migrate check`: put what should stay into functions/ or policies/; drop what is undeclared.",
        )
    return f"{len(plan.files.migrations)} migrations, {len(plan.files.sources)} sources, no drift."


def the_advisors_are_content(patient: Patient) -> str:
    """Supabase's lints find nothing but what is explained in tests/db/accepted_advice.toml."""
    if not ADVISORS.exists():
        raise CheckSkipped("The Supabase CLI is not here: `npm ci` in the checkout installs it.")
    url = patient.database_url
    if patient.is_local:
        url += "?sslmode=disable"
    command = [str(ADVISORS), "db", "advisors", f"--remote={url}", "--level", "warn", "--output-format", "json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        results = json.loads(ran.stdout)["results"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        raise CheckSkipped("`supabase db advisors` gave no answer. See Advisors in Supabase's dashboard.") from None
    accepted = tomllib.loads(ACCEPTED_ADVICE.read_text())["accepted"] if ACCEPTED_ADVICE.exists() else []
    unexplained = [found["detail"] for found in results if not any(_is_accepted(entry, found) for entry in accepted)]
    if unexplained:
        raise CheckFailed(_some(unexplained), "See Advisors in Supabase's dashboard: each has a page on what to do.")
    return "Nothing that is not explained."


def _is_accepted(entry: Mapping[str, str], finding: Mapping[str, Any]) -> bool:
    place = f"{finding['metadata'].get('schema')}.{finding['metadata'].get('name')}"
    return entry["advice"] == finding["name"] and fnmatchcase(place, entry["on"])


# --- backups ---


def a_pg_dump_fits(patient: Patient) -> str:
    """Programs here can dump this server."""
    with database.connected(patient.database_url) as connection:
        try:
            fit = programs.fitting(connection)
        except programs.ProgramsMissing as failure:
            found, _, remedy = str(failure).partition("). ")
            raise CheckFailed(f"{found}).", remedy) from None
    return f"Version {fit.version}, in {fit.folder}."


def the_store_is_reachable(patient: Patient) -> str:
    """The place of the backups can be listed and, with --write, written."""
    store_url = patient["BACKUP_URL"]
    with _environment(patient.environment):
        try:
            names = BackupStore(store_url).names()
            if patient.may_write:
                _write_probe(store_url)
        except StoreUnavailable as failure:
            found, _, remedy = str(failure).partition(". ")
            raise CheckFailed(f"{found}.", f"{remedy} The bucket or folder must exist.") from None
    count = f"{len(names)} backup{'' if len(names) == 1 else 's'}"
    return f"{count}; {'it can be written' if patient.may_write else 'writing was not tried (--write)'}."


def _write_probe(store_url: str) -> None:
    path = f"doctor-{secrets.token_hex(8)}"
    try:
        store = object_store.opened(store_url, attempt_seconds=10, retries=1)
        obstore.put(store, path, b"ballast doctor")
        obstore.delete(store, path)
    except Exception as failure:  # obstore's errors have no common base with what its stores raise
        raise StoreUnavailable("write", store_url, object_store.reason(failure)) from None


def backups_are_encrypted(patient: Patient) -> str:
    """Backups have recipients whose keys are age's."""
    patient["BACKUP_URL"]
    try:
        recipients = patient.items("BACKUP_RECIPIENTS")
    except CheckSkipped:
        if not patient.is_guarded:
            raise
        raise CheckFailed(
            "BACKUP_RECIPIENTS is not set: no backup is made.",
            "age-keygen makes a key pair; set the public one, age1….",
        ) from None
    for number, recipient in enumerate(recipients, 1):
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError:
            raise CheckFailed(
                f"Recipient {number} of BACKUP_RECIPIENTS is no public key of age's.",
                "It begins with age1; copy all of it.",
            ) from None
    if len(recipients) == 1 and patient.is_guarded:
        return (
            "One recipient. Add a second, whose secret key is kept offline: without the first, nothing could be read."
        )
    return f"{len(recipients)} recipient{'' if len(recipients) == 1 else 's'}."


# --- the service ---


def the_service_is_ready(patient: Patient) -> str:
    """/readyz answers 200."""
    answer = httpx.get(f"{_service(patient)}/readyz", timeout=TIMEOUT)
    if answer.is_success:
        return "It answers, and reaches the database and Redis."
    raise CheckFailed(
        f"/readyz answers {answer.status_code}: {_said(answer)}",
        "See that SERVICE_URL is the service's, and its log for what it does not reach.",
    )


def the_service_knows_the_webhook_secrets(patient: Patient) -> str:
    """An event signed with each secret is stored and ignored, one signed with another is refused."""
    url = f"{_service(patient)}/webhooks/clerk"
    signing = patient.items("CLERK_WEBHOOK_SECRETS")
    for number, secret in enumerate(signing, 1):
        answer = _ping(url, secret)
        if not answer.is_success:
            raise CheckFailed(
                f"An event signed with secret {number} of {len(signing)} is answered {answer.status_code}: "
                f"{_said(answer)}",
                "Give the service the CLERK_WEBHOOK_SECRETS that are set here, and start it anew. "
                "SERVICE_URL must be where the service is.",
            )
        if _json(answer).get("outcome") != "ignored":
            raise CheckFailed(f"{url} does not answer as the service does.", "Set SERVICE_URL to where the service is.")
    wrong = _ping(url, f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}")
    if wrong.status_code != httpx.codes.UNAUTHORIZED:
        raise CheckFailed(
            f"An event with a wrong signature is answered {wrong.status_code}: whoever knows the URL could write.",
            "See what stands between here and the service, and that it is Ballast's.",
        )
    return "A signed ping is accepted, a forged one refused."


def _ping(url: str, secret: str) -> httpx.Response:
    """As Svix signs: https://docs.svix.com/receiving/verifying-payloads/how-manual."""
    message_id, timestamp = f"msg_ballast_doctor_{secrets.token_hex(8)}", str(int(time.time()))
    event = {"type": PING_TYPE, "object": "event", "timestamp": int(time.time() * 1000), "data": {}}
    body = json.dumps(event).encode()
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise CheckFailed("A secret of CLERK_WEBHOOK_SECRETS is not base64.", "Copy all of it: whsec_….") from None
    signature = base64.b64encode(
        hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    ).decode()
    headers = {
        "content-type": "application/json",
        "svix-id": message_id,
        "svix-timestamp": timestamp,
        "svix-signature": f"v1,{signature}",
    }
    return httpx.post(url, content=body, headers=headers, timeout=TIMEOUT)


def the_scheduler_is_let_in(patient: Patient) -> str:
    """The service knows the jobs' token, and asks for it. No job is run."""
    url, token = f"{_service(patient)}/jobs/none-of-them", patient["JOBS_TOKEN"]
    if httpx.post(url, timeout=TIMEOUT).status_code != httpx.codes.UNAUTHORIZED:
        raise CheckFailed("Jobs can be run without a token.", "See that SERVICE_URL is the service's.")
    answer = httpx.post(url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT)
    if answer.status_code != httpx.codes.NOT_FOUND:
        raise CheckFailed(
            f"The service does not know JOBS_TOKEN: it answers {answer.status_code}.",
            "Give the service the same JOBS_TOKEN as here, and start it anew.",
        )
    return "JOBS_TOKEN is the service's."


def redis_answers(patient: Patient) -> str:
    """Redis answers a PING over its REST protocol."""
    url, token = patient["UPSTASH_REDIS_REST_URL"].rstrip("/"), patient["UPSTASH_REDIS_REST_TOKEN"]
    answer = httpx.post(url, json=["PING"], headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT)
    if answer.is_success and _json(answer).get("result") == "PONG":
        return "PONG."
    raise CheckFailed(
        f"Redis answers {answer.status_code}: {_said(answer)}",
        "Copy both UPSTASH_REDIS_REST_… from Upstash's console, under REST API.",
    )


CHECKS: dict[str, Callable[[Patient], str]] = {
    "settings": settings_are_complete,
    "keys": keys_are_in_their_places,
    "Clerk's keys": clerk_publishes_its_keys,
    "publishable key": the_data_api_knows_the_publishable_key,
    "secret key": the_data_api_knows_the_secret_key,
    "third-party auth": supabase_trusts_clerk,
    "exposed schemas": only_public_is_exposed,
    "role timeouts": statements_of_people_end,
    "migrations": the_schema_is_as_the_files_say,
    "advisors": the_advisors_are_content,
    "pg_dump": a_pg_dump_fits,
    "backup store": the_store_is_reachable,
    "recipients": backups_are_encrypted,
    "service": the_service_is_ready,
    "webhook secret": the_service_knows_the_webhook_secrets,
    "jobs token": the_scheduler_is_let_in,
    "Redis": redis_answers,
}


# --- how ---


def _service(patient: Patient) -> str:
    return patient["SERVICE_URL"].rstrip("/")


def _rest_url(patient: Patient, path: str) -> str:
    return f"{patient['SUPABASE_URL'].rstrip('/')}/rest/v1/{path}"


def _rest(
    patient: Patient, method: str, path: str, key: str, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    # As the service does. Supabase's gateway takes a key that is no JWT as bearer token when it is the apikey's too.
    sent = {"apikey": key, "Authorization": f"Bearer {key}"} | dict(headers or {})
    return httpx.request(method, _rest_url(patient, path), headers=sent, timeout=TIMEOUT)


def _json(answer: httpx.Response, kind: type[Any] = dict) -> Any:
    """The body, when it is JSON of that kind; else an empty one."""
    try:
        body = answer.json()
    except ValueError:
        return kind()
    return body if isinstance(body, kind) else kind()


def _said(answer: httpx.Response) -> str:
    """What an error says of itself: PostgREST's message, a problem's detail, or the beginning of the text."""
    body = _json(answer)
    words = body.get("detail") or body.get("message") or body.get("error") or body.get("title")
    return " ".join(str(words or answer.text or answer.reason_phrase).split())[:200]


def _some(things: list[str], most: int = 3) -> str:
    rest = f", and {len(things) - most} more" if len(things) > most else ""
    return f"{', '.join(things[:most])}{rest}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The process' own environment, for a while: settings and the store's keys are read from nowhere else."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _print(findings: list[Finding]) -> None:
    styles = {"passed": "green", "failed": "red", "skipped": "yellow"}
    table = Table("check", "", "found", box=None)
    for finding in findings:
        remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
        table.add_row(
            finding.name, f"[{styles[finding.outcome]}]{finding.outcome}[/]", escape(f"{finding.found}{remedy}")
        )
    database.print_table(table)
