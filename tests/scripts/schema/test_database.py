"""No command shows a part of a database's password, however the URL is malformed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.backup.borrowed import borrow_database
from scripts.backup.programs import split_password
from scripts.cli import VERBS, ballast
from scripts.schema.database import DatabaseUnreachable, DatabaseUrlInvalid, connect, parse_url

# Every password has one of these at each end, so that a test finds any piece of it.
START, END = "Qz7", "x9W"
ODD = "%@/:?#[]&= '\"\\,;+{}|^`<>~!$*()ä€\n\t"
PASSWORDS = st.text(st.sampled_from(f"{ODD}0aF"), max_size=8).map(lambda middle: f"{START}{middle}{END}")
SHAPES = (
    "postgresql://postgres:{}@127.0.0.1:1/postgres",
    "postgres://postgres.project:{}@127.0.0.1:1/postgres?sslmode=disable",
    "postgresql://postgres:{}@127.0.0.1:1/postgres?pgbouncer=true",
    "postgresql://postgres:{}@127.0.0.1:port/postgres",
    "postgresql://postgres:{}@127.0.0.1:99999/postgres",
    "postgresql://postgres:{}@[::1/postgres",
    "postgresql://postgres:{}@a..b/postgres",
    "postgresql://127.0.0.1:1/postgres?user=postgres&password={}",
    "postgresq://postgres:{}@127.0.0.1:1/postgres",
    " postgresql://postgres:{}@127.0.0.1:1/postgres",
    '"postgresql://postgres:{}@127.0.0.1:1/postgres"',
    "postgres:{}@127.0.0.1:1/postgres",
    "host=127.0.0.1 port=1 user=postgres password={} dbname=postgres",
    "host=127.0.0.1 port=1 user=postgres password='{} dbname=postgres",
    "{}",
)
# Here, what follows an @ in the password is the host: the two cannot be distinguished.
WITHOUT_HOST = ("postgresql://postgres:{}", "postgresql://postgres:{}/postgres")
URLS = st.builds(str.format, st.sampled_from(SHAPES), PASSWORDS) | st.builds(
    str.format, st.sampled_from(WITHOUT_HOST), PASSWORDS.filter(lambda password: "@" not in password)
)


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Each command that takes the URL of a database, with what else it requires."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            each = command.get_command(context, name)
            assert each is not None
            yield from _commands(each, (*words, name))
    elif any(each.name == "url" for each in command.params):
        arguments = [each for each in command.params if isinstance(each, click.Argument)]
        required = [each for each in command.params if isinstance(each, click.Option) and each.required]
        skips_prompt = any(each.name == "yes" for each in command.params)
        yield (
            *words,
            *("latest" for _ in arguments),
            *(word for each in required if each.name != "url" for word in (each.opts[0], "reason")),
            *(["--yes"] if skips_prompt else []),
        )


COMMANDS = list(_commands(ballast))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("store")
    return {
        "ENVIRONMENT": "test",
        "BALLAST_HOME": str(folder / "home"),
        "BACKUP_URL": folder.as_uri(),
        "CLERK_SECRET_KEY": "sk_test_x",
        "CLERK_API_URL": "http://127.0.0.1:1",
        "UPSTASH_REDIS_REST_URL": "http://127.0.0.1:1",
        "UPSTASH_REDIS_REST_TOKEN": "x",
    }


def test_the_commands_that_take_a_url_are_found() -> None:
    found = {words[:2] for words in COMMANDS}
    assert {("migrate", "status"), ("backup", "run"), ("backup", "restore"), ("audit", "verify")} <= found
    assert {words[0] for words in COMMANDS} >= {"status", "doctor", "person", "inbox", "clerk", "upgrade-check"}
    assert set(VERBS) >= {words[0] for words in COMMANDS}


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=[pytest.mark.thorough] if words == ("doctor",) else []) for words in COMMANDS],
    ids=" ".join,
)
@given(url=URLS)
@settings(max_examples=15, deadline=None)
def test_no_command_shows_the_password_of_any_url(
    environment: dict[str, str], words: tuple[str, ...], url: str
) -> None:
    given = ("--to", url) if words[:2] == ("backup", "restore") else ()
    result = CliRunner().invoke(ballast, [*words, *given], env=environment | {"DATABASE_URL": url})
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code != 0
    assert result.output.strip()
    assert START not in result.output
    assert END not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("words", [["migrate", "status"], ["status", "--json"], ["doctor"], ["person", "export", "x"]])
@pytest.mark.parametrize("password", ["s3cr%et", "s3cr@et", "s3cr/et", "s3 cret"])
def test_a_malformed_url_is_explained(environment: dict[str, str], words: list[str], password: str) -> None:
    url = f"postgresql://postgres:{password}@127.0.0.1:1/postgres"
    result = CliRunner().invoke(ballast, words, env=environment | {"DATABASE_URL": url})
    assert result.exit_code == (1 if words[0] in {"status", "doctor"} else 2)
    assert "percent-encode" in " ".join(result.output.split())
    assert "% as %25" in " ".join(result.output.split())


@pytest.mark.parametrize("words", [["migrate", "status"], ["backup", "verify"], ["backup", "restore", "--to"]])
def test_a_misplaced_url_is_quoted_without_its_password(environment: dict[str, str], words: list[str]) -> None:
    result = CliRunner().invoke(ballast, [*words, "postgresql://postgres:s3 cr@et@127.0.0.1/postgres"], env=environment)
    assert result.exit_code != 0
    assert "s3" not in result.output
    assert "et@" not in result.output


@given(url=URLS)
@settings(deadline=None)
def test_any_url_is_parsed_or_refused_without_its_password(url: str) -> None:
    with pytest.raises((DatabaseUrlInvalid, DatabaseUnreachable)) as refused, connect(url):
        pass
    shown = str(refused.value)
    if isinstance(refused.value, DatabaseUnreachable):
        shown += json.dumps(parse_url(url) | {"password": ""}) + split_password(url)[0]
    elif refused.value.__context__ is not None:
        shown += f"a chained traceback shows {refused.value.__context__}"
    assert START not in shown
    assert END not in shown


@given(password=PASSWORDS)
@settings(deadline=None)
def test_an_encoded_password_reaches_the_program(password: str) -> None:
    url = f"postgresql://postgres:{quote(password, safe='')}@db.example:5432/postgres?sslmode=require"
    hidden, environment = split_password(url)
    assert hidden == "postgresql://postgres@db.example:5432/postgres?sslmode=require"
    assert environment["PGPASSWORD"] == password


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("host=127.0.0.1", "does not start with postgresql://"),
        ("postgresql://u:p@ss@h/d", "an @ or a / that is not percent-encoded"),
        ("postgresql://u:p/ss@h/d", "an @ or a / that is not percent-encoded"),
        ("postgresql://u:p%s@h/d", "a character is not percent-encoded"),
        ("postgresql://u:%ff@h/d", "a character is not percent-encoded"),
        ("postgresql://u:p", "its port is not a number"),
        ("postgresql://u:p@h:0/d", "its port is not a number"),
        ("postgresql://u@h/d?password=p", "its password is not before the @"),
        ("postgresql://u:p@h/d?pgbouncer=true", "an option after the ?"),
    ],
)
def test_the_reason_of_a_refusal_is_named(url: str, reason: str) -> None:
    with pytest.raises(DatabaseUrlInvalid, match=reason.replace("?", "[?]")):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:1/postgres",
        "postgresql:///postgres",
        "postgres://u:p@[::1]:5432/d",
        "postgresql://u:p@a:1,b:2/d?target_session_attrs=read-write",
        "postgresql://u:p?#[:x@h/d",
    ],
)
def test_urls_that_libpq_accepts_are_accepted(url: str) -> None:
    assert parse_url(url)


def test_the_server_of_a_drill_is_refused_without_its_password() -> None:
    server = borrow_database("postgresql://postgres:s3@cret@127.0.0.1:1/postgres", [])
    with pytest.raises(DatabaseUrlInvalid, match="percent-encode") as refused, server:
        pass
    assert "cret" not in str(refused.value)
