"""`ballast inbox`: lists failed events with their errors, and retries them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast

SECRET_NAME = "Adelheid"


@dataclass(frozen=True)
class Inbox:
    """Runs the command on a separate migrated database with an inbox."""

    url: str

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(ballast, ["inbox", *arguments], env={"DATABASE_URL": self.url})

    def receive(self, message_id: str, event: dict[str, Any]) -> str:
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(
                "select public.receive_clerk_event(%s, %s)", [message_id, json.dumps(event)]
            ).fetchone()
        assert row
        return str(row[0]["outcome"])


@pytest.fixture
def inbox(migrated_database: str, new_database: Callable[..., str]) -> Inbox:
    return Inbox(new_database(migrated_database))


@pytest.fixture
def inbox_with_failures(inbox: Inbox) -> Inbox:
    """An inbox with one processed, one ignored and two failed events."""
    assert inbox.receive("msg_ok", user_event(id="user_x", first_name=SECRET_NAME)) == "processed"
    assert inbox.receive("msg_sms", {"type": "sms.created", "data": {}}) == "ignored"
    assert inbox.receive("msg_bad", user_event(first_name=SECRET_NAME)) == "failed"
    assert inbox.receive("msg_worse", {"type": "organization.created", "data": {}}) == "failed"
    return inbox


def user_event(**data: str) -> dict[str, Any]:
    return {"type": "user.created", "timestamp": 1_700_000_000_000, "data": {"updated_at": 1_700_000_000_000} | data}


def test_failed_events_are_listed_with_their_error(inbox_with_failures: Inbox) -> None:
    listed = inbox_with_failures.run("list")
    assert listed.exit_code == 0
    assert "msg_bad" in listed.stdout
    assert "msg_worse" in listed.stdout
    assert "data.id is missing" in listed.stdout
    assert "msg_ok" not in listed.stdout


def test_all_events_are_listed_newest_first(inbox_with_failures: Inbox) -> None:
    listed = json.loads(inbox_with_failures.run("list", "--all", "--json").stdout)
    assert [(entry["message_id"], entry["outcome"]) for entry in listed] == [
        ("msg_worse", "failed"),
        ("msg_bad", "failed"),
        ("msg_sms", "ignored"),
        ("msg_ok", "processed"),
    ]


def test_a_list_can_be_limited(inbox_with_failures: Inbox) -> None:
    assert len(json.loads(inbox_with_failures.run("list", "--all", "--limit", "3", "--json").stdout)) == 3
    assert inbox_with_failures.run("list", "--limit", "0").exit_code == 2


def test_an_empty_inbox_is_reported(inbox: Inbox) -> None:
    assert inbox.run("list").stdout == "No event has failed.\n"
    assert inbox.run("list", "--all").stdout == "No event has been received yet.\n"
    retried = inbox.run("retry", "--all-failed")
    assert (retried.stdout, retried.exit_code) == ("No event has failed.\n", 0)


def test_personal_data_is_shown_only_with_payload(inbox_with_failures: Inbox) -> None:
    for arguments in (["list"], ["list", "--all"], ["list", "--all", "--json"], ["show", "msg_bad"]):
        assert SECRET_NAME not in inbox_with_failures.run(*arguments).output
    shown = json.loads(inbox_with_failures.run("show", "msg_bad", "--payload").stdout)
    assert shown["event"]["data"]["first_name"] == SECRET_NAME
    assert "data.id is missing" in shown["error"]


def test_an_unknown_message_is_an_error(inbox_with_failures: Inbox) -> None:
    shown = inbox_with_failures.run("show", "msg_none")
    assert shown.exit_code == 1
    assert "msg_none" in shown.stderr
    retried = inbox_with_failures.run("retry", "msg_none")
    assert retried.exit_code == 1
    assert "no such event" in retried.stdout


def test_the_command_fails_if_an_event_still_fails(inbox_with_failures: Inbox) -> None:
    retried = inbox_with_failures.run("retry", "msg_bad")
    assert (retried.stdout, retried.exit_code) == ("msg_bad failed\n", 1)
    assert json.loads(inbox_with_failures.run("show", "msg_bad").stdout)["attempts"] == 2


def test_all_failed_events_are_retried_oldest_first(inbox_with_failures: Inbox) -> None:
    with psycopg.connect(inbox_with_failures.url, autocommit=True) as connection:
        connection.execute("""
            update app.webhook_events
            set event = jsonb_set(event, '{data,id}', to_jsonb(replace(type, '.created', '_y')))
            where outcome = 'failed'
        """)
    retried = inbox_with_failures.run("retry", "--all-failed")
    assert (retried.stdout, retried.exit_code) == ("msg_bad processed\nmsg_worse processed\n", 0)
    assert inbox_with_failures.run("list").stdout == "No event has failed.\n"


@pytest.mark.parametrize("arguments", [[], ["msg_bad", "--all-failed"]])
def test_retry_requires_ids_or_all_failed(inbox: Inbox, arguments: list[str]) -> None:
    assert inbox.run("retry", *arguments).exit_code == 2


def test_a_dismissed_event_is_listed_with_its_reason_and_not_retried(inbox_with_failures: Inbox) -> None:
    dismissed = inbox_with_failures.run("dismiss", "msg_bad", "--reason", "no id", "--by", "ada")
    assert (dismissed.exit_code, "msg_bad (user.created) is dismissed" in dismissed.stdout) == (0, True)
    assert "msg_bad" not in inbox_with_failures.run("list").stdout
    shown = json.loads(inbox_with_failures.run("show", "msg_bad").stdout)
    assert (shown["outcome"], shown["dismissed_by"], shown["dismissal_reason"]) == ("dismissed", "ada", "no id")
    listed = " ".join(inbox_with_failures.run("list", "--all").stdout.split())
    assert "data.id is missing (dismissed by ada: no id)" in listed
    assert inbox_with_failures.run("retry", "msg_bad").stdout == "msg_bad dismissed\n"
    assert inbox_with_failures.receive("msg_bad", user_event(id="user_y")) == "duplicate"


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["msg_none", "--reason", "why"], "No message msg_none was received."),
        (["msg_ok", "--reason", "why"], "The outcome of msg_ok is processed"),
        (["msg_bad", "--reason", " "], "A dismissal needs a reason."),
        (["msg_bad", "--reason", "why", "--by", "x" * 101], "dismissed_by"),
    ],
)
def test_what_cannot_be_dismissed_is_reported(inbox_with_failures: Inbox, arguments: list[str], refusal: str) -> None:
    refused = inbox_with_failures.run("dismiss", *arguments)
    assert (refused.exit_code, refusal in refused.stderr) == (1, True)
    assert inbox_with_failures.run("dismiss", "msg_bad").exit_code == 2  # a reason is required


def test_an_event_that_ends_its_attempt_does_not_stop_the_others(inbox_with_failures: Inbox) -> None:
    with psycopg.connect(inbox_with_failures.url, autocommit=True) as connection:
        connection.execute(
            "create function public.test_cancel() returns trigger language plpgsql as "
            "$$ begin if new.clerk_id = 'user_y' then raise query_canceled; end if; return new; end $$"
        )
        connection.execute(
            "create trigger cancel before insert on app.clerk_records for each row execute function public.test_cancel()"
        )
        connection.execute("""
            update app.webhook_events
            set event = jsonb_set(event, '{data,id}', to_jsonb(replace(type, '.created', '_y')))
            where outcome = 'failed'
        """)
    retried = inbox_with_failures.run("retry", "--all-failed")
    assert (retried.stdout, retried.exit_code) == ("msg_bad failed\nmsg_worse processed\n", 1)
    assert "57014" in json.loads(inbox_with_failures.run("show", "msg_bad").stdout)["error"]


def test_a_database_without_an_inbox_gets_advice(new_database: Callable[..., str]) -> None:
    result = Inbox(new_database()).run("list")
    assert result.exit_code == 1
    assert "ballast migrate up" in result.stderr
