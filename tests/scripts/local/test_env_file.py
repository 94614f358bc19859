"""The Clerk variables of `.env`: a real instance instead of the stand-in, and the origins of further pages."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast, options
from scripts.cli.doctor import local_stack
from scripts.local import services
from scripts.local.env_file import EnvFileInvalid
from scripts.local.stack import CHECKOUT, DEFAULT_HOME, OtherClerk, Secrets, Stack, client_environment
from tests.conftest import ROOT

ISSUER = "https://brave-gnu-1.clerk.accounts.dev"
SECRET = "whsec_plJ3nmyCDGBKInavdOK15jsl"
REAL = {"CLERK_ISSUER": ISSUER, "CLERK_SECRET_KEY": "sk_test_real", "CLERK_WEBHOOK_SECRETS": SECRET}
BASE = 40000
STAND_IN_URL = f"http://127.0.0.1:{BASE + 4}"

MakeStack = Callable[..., Stack]


@pytest.fixture
def stack_with(tmp_path: Path) -> MakeStack:
    """Returns a function that makes a stack in the test's folder with these variables in `.env`. It never runs."""

    def make(**variables: str | None) -> Stack:
        lines = [f"{name}={value}\n" for name, value in variables.items() if value is not None]
        (tmp_path / ".env").write_text("".join(lines))
        return Stack(tmp_path, BASE, Secrets.of(tmp_path))

    return make


def run(stack: Stack, *words: str) -> Result:
    place = {"BALLAST_HOME": str(stack.home), "BALLAST_PORT_BASE": str(stack.port_base)}
    return CliRunner().invoke(ballast, words, env=place)


def pretend_to_have_a_database(stack: Stack) -> None:
    file = stack.postgres.folder / "data" / "PG_VERSION"
    file.parent.mkdir(parents=True)
    file.touch()


# --- the variables ---------------------------------------------------------------------------------------------------


def test_a_real_instance_replaces_the_stand_in(stack_with: MakeStack) -> None:
    stack = stack_with(**REAL)
    assert stack.clerk == ISSUER
    environment = stack.environment()
    assert {name: environment[name] for name in REAL} == REAL
    assert environment["CLERK_API_URL"] == "https://api.clerk.com"
    assert environment["CLERK_AUTHORIZED_PARTIES"] == environment["SERVICE_URL"]
    clerk = next(part for part in services.build_services(stack) if part.name == "clerk")
    assert not clerk.is_wanted()


@pytest.mark.parametrize("variables", [{}, {"CLERK_ISSUER": "", "CLERK_SECRET_KEY": ""}, {"DATABASE_URL": "x"}])
def test_the_stand_in_is_used_unless_env_file_names_a_real_instance(
    stack_with: MakeStack, variables: dict[str, str]
) -> None:
    stack = stack_with(**variables)
    assert stack.environment() == Stack(stack.home / "none", BASE, stack.secrets).environment() | {
        name: stack.environment()[name] for name in ("BALLAST_HOME", "DATABASE_URL", "BACKUP_URL")
    }
    assert stack.environment()["CLERK_ISSUER"] == STAND_IN_URL
    clerk = next(part for part in services.build_services(stack) if part.name == "clerk")
    assert clerk.is_wanted()


def test_origins_are_added_to_the_services_own_with_the_stand_in_and_a_real_clerk(stack_with: MakeStack) -> None:
    origins = "http://localhost:5173/, http://localhost:3000"
    for clerk in ({}, REAL):
        environment = stack_with(**clerk, CLERK_AUTHORIZED_PARTIES=origins).environment()
        expected = f"{environment['SERVICE_URL']},http://localhost:5173,http://localhost:3000"
        assert environment["CLERK_AUTHORIZED_PARTIES"] == expected


@pytest.mark.parametrize(("given", "missing"), [
    (["CLERK_ISSUER"], ["CLERK_SECRET_KEY", "CLERK_WEBHOOK_SECRETS"]),
    (["CLERK_ISSUER", "CLERK_SECRET_KEY"], ["CLERK_WEBHOOK_SECRETS"]),
    (["CLERK_ISSUER", "CLERK_WEBHOOK_SECRETS"], ["CLERK_SECRET_KEY"]),
    (["CLERK_SECRET_KEY", "CLERK_WEBHOOK_SECRETS"], ["CLERK_ISSUER"]),
])  # fmt: skip
def test_missing_variables_are_named_before_anything_starts(
    stack_with: MakeStack, given: list[str], missing: list[str]
) -> None:
    stack = stack_with(**{name: REAL[name] for name in given})
    for words in (["up", "--detach"], ["env"], ["token", "--user", "user_ada"], ["clerk", "send", "user.created"]):
        result = run(stack, *words)
        named = "; ".join(f"{name} is missing" for name in missing)
        assert result.exit_code == 2
        assert result.stderr == (
            f"ballast: {stack.env_file} cannot be used: {named}. docs/local-stack.md lists the variables of a Clerk instance.\n"
        )
    assert sorted(each.name for each in stack.home.iterdir()) == [".env", "secrets.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLERK_ISSUER", "https://clerk.example/5ecret"),
        ("CLERK_SECRET_KEY", "pk_test_5ecret"),
        ("CLERK_SECRET_KEY", "sk_live_5ecret"),
        ("CLERK_WEBHOOK_SECRETS", "whsec_5ecret"),
        ("CLERK_WEBHOOK_SECRETS", ","),
        ("CLERK_API_URL", "5ecret"),
        ("CLERK_AUTHORIZED_PARTIES", "http://localhost:5173/5ecret"),
    ],
)
def test_a_malformed_variable_is_named_without_its_value(stack_with: MakeStack, name: str, value: str) -> None:
    with pytest.raises(EnvFileInvalid, match=rf"\.env cannot be used: {name} must [^;]+\.") as refusal:
        stack_with(**REAL | {name: value}).environment()
    assert "5ecret" not in str(refusal.value)
    assert refusal.value.__cause__ is refusal.value.__context__ is None


def test_a_file_that_is_not_utf8_is_reported(stack_with: MakeStack) -> None:
    stack = stack_with()
    stack.env_file.write_bytes("CLERK_SECRET_KEY=sk_test_5ecreté\n".encode("latin-1"))
    result = run(stack, "env")
    assert (result.exit_code, result.stderr) == (
        2,
        f"ballast: {stack.env_file} cannot be read: it is not UTF-8 text.\n",
    )
    with pytest.raises(EnvFileInvalid) as refusal:
        stack.environment()
    assert refusal.value.__cause__ is refusal.value.__context__ is None


def test_a_file_without_read_permission_is_reported(stack_with: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")  # chmod does not stop root

    stack = stack_with()
    monkeypatch.setattr("scripts.local.env_file.dotenv_values", refuse)
    result = run(stack, "env")
    assert (result.exit_code, result.stderr) == (2, f"ballast: {stack.env_file} cannot be read: Permission denied.\n")


def test_a_stack_can_be_stopped_and_deleted_with_an_invalid_file(stack_with: MakeStack) -> None:
    stack = stack_with(CLERK_ISSUER=ISSUER)
    assert (run(stack, "down").exit_code, run(stack, "reset", "--yes").exit_code) == (0, 0)


def test_with_only_variables_of_the_stand_in_the_file_keeps_the_stand_in(stack_with: MakeStack) -> None:
    stack = stack_with()
    (stack.home / ".env").write_text(run(stack, "env").stdout)
    again = Stack(stack.home, BASE, stack.secrets)
    assert (again.clerk, again.environment()) == ("stand-in", stack.environment())


def test_the_variables_of_a_stand_in_on_other_ports_keep_the_stand_in(stack_with: MakeStack) -> None:
    stack = stack_with()
    stack.env_file.write_text(run(stack, "env").stdout)
    moved = Stack(stack.home, BASE + 100, stack.secrets)
    assert (moved.clerk, moved.environment()["CLERK_ISSUER"]) == ("stand-in", f"http://127.0.0.1:{BASE + 104}")


def test_a_file_of_a_real_instance_on_other_ports_keeps_the_instance(stack_with: MakeStack) -> None:
    stack = stack_with(**REAL)
    stack.env_file.write_text(run(stack, "env").stdout)
    assert Stack(stack.home, BASE + 100, stack.secrets).clerk == ISSUER


# --- the file --------------------------------------------------------------------------------------------------------


def test_only_the_default_stack_reads_the_file_of_the_checkout(tmp_path: Path) -> None:
    secrets = Secrets()
    assert Stack(DEFAULT_HOME, BASE, secrets).env_file == CHECKOUT / ".env"
    assert Stack(tmp_path, BASE, secrets).env_file == tmp_path / ".env"
    ignored = subprocess.run(["git", "check-ignore", "--quiet", ".env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_the_process_environment_does_not_choose_the_stacks_clerk(
    stack_with: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in REAL.items():
        monkeypatch.setenv(name, value)
    assert stack_with().environment()["CLERK_ISSUER"] == STAND_IN_URL
    other = REAL | {"CLERK_ISSUER": "https://other.clerk.accounts.dev"}
    assert stack_with(**other).environment()["CLERK_ISSUER"] == other["CLERK_ISSUER"]


def test_every_command_uses_the_same_variables(stack_with: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_with(**REAL)
    monkeypatch.setenv("BALLAST_HOME", str(stack.home))
    url = Stack.from_environment().postgres.url()
    for shell in ({}, {"CLERK_SECRET_KEY": "sk_test_shell"}):  # a variable of the shell takes precedence
        for name, value in shell.items():
            monkeypatch.setenv(name, value)
        expected = REAL | shell
        for environment in (client_environment(), options.build_environment(url)):
            assert {name: environment[name] for name in REAL} == expected


PROBE = """
from scripts.local.stack import CHECKOUT, Stack, client_environment

def test_probe():
    assert (CHECKOUT / ".env").exists()
    assert client_environment()["CLERK_ISSUER"].startswith("http://127.0.0.1:")

if __name__ == "__main__":
    test_probe()
"""


def test_tests_ignore_the_env_file_and_the_shell_of_a_developer(tmp_path: Path) -> None:
    """In a copy of the checkout with an invalid `.env`, a command fails because of it, but a test does not read it."""
    for folder in ("scripts", "service", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", ".env.example"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / ".env").write_text(f"CLERK_ISSUER={ISSUER}\n")
    (tmp_path / "tests/test_probe.py").write_text(PROBE)
    shell = {name: value for name, value in os.environ.items() if name != "BALLAST_HOME"} | {"CLERK_ISSUER": ISSUER}
    words = {"command": ["-m", "tests.test_probe"], "test": ["-m", "pytest", "-q", "tests/test_probe.py"]}
    ran = {
        name: subprocess.run(
            [sys.executable, *each], cwd=tmp_path, env=shell, capture_output=True, text=True, check=False
        )
        for name, each in words.items()
    }
    assert ran["command"].returncode == 1
    assert "CLERK_SECRET_KEY is missing" in ran["command"].stderr
    assert ran["test"].returncode == 0, ran["test"].stdout + ran["test"].stderr


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["token", "--user", "user_ada"], "await Clerk.session.getToken()"),
        (["clerk", "send", "user.created"], "Change the object there"),
        (["seed"], "ballast clerk backfill"),
    ],
)
def test_a_command_of_the_stand_in_reports_what_to_do_with_a_real_clerk(
    stack_with: MakeStack, words: list[str], instead: str
) -> None:
    result = run(stack_with(**REAL), *words)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"names the Clerk instance {ISSUER}, so no stand-in runs." in result.stderr
    assert instead in result.stderr


def test_an_empty_database_is_filled_from_the_clerk_in_use(stack_with: MakeStack) -> None:
    for variables, words in (({}, ["seed"]), (REAL, ["clerk", "backfill"])):
        seed = next(part for part in services.build_services(stack_with(**variables)) if part.name == "seed")
        assert seed.command()[-len(words) :] == words


def test_doctor_mints_a_session_token_only_with_the_stand_in(
    stack_with: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variables, is_minted in (({}, True), (REAL, False)):
        stack = stack_with(**variables)
        monkeypatch.setenv("BALLAST_HOME", str(stack.home))
        monkeypatch.setenv("BALLAST_PORT_BASE", str(BASE))
        assert bool(local_stack(stack.environment(), None).mint_token) == is_minted


@pytest.mark.parametrize("words", [["doctor", "--json"], ["status", "--json"]])
@pytest.mark.parametrize("is_option", [True, False])
def test_another_database_is_checked_with_an_invalid_file(
    stack_with: MakeStack, monkeypatch: pytest.MonkeyPatch, words: list[str], is_option: bool
) -> None:
    stack = stack_with(**REAL | {"CLERK_SECRET_KEY": "sk_live_real"})
    url = "postgresql://postgres@127.0.0.1:1/postgres"
    if not is_option:
        monkeypatch.setenv("DATABASE_URL", url)
    result = run(stack, *words, *(["--database-url", url] if is_option else []))
    assert (result.exit_code, result.stderr) == (1, "")
    report = json.loads(result.stdout)
    assert words[0] == "doctor" or report["clerk"] is None


def test_a_database_never_has_the_people_of_two_clerks(stack_with: MakeStack) -> None:
    stack_with().record_clerk()
    stack_with(**REAL).record_clerk()  # there is no database yet
    pretend_to_have_a_database(stack_with(**REAL))
    stack_with(**REAL).record_clerk()
    with pytest.raises(
        OtherClerk, match=rf"was filled from the Clerk instance {ISSUER}, but .* selects the Clerk stand-in\."
    ):
        stack_with().record_clerk()
    with pytest.raises(OtherClerk, match=r"selects the Clerk instance https://other"):
        stack_with(**REAL | {"CLERK_ISSUER": "https://other.clerk.accounts.dev"}).record_clerk()


def test_an_older_stack_counts_as_filled_from_the_stand_in(stack_with: MakeStack) -> None:
    pretend_to_have_a_database(stack_with(**REAL))
    up = run(stack_with(**REAL), "up", "--detach")
    assert (up.exit_code, up.stderr.count("\n")) == (1, 1)
    assert "was filled from the Clerk stand-in" in up.stderr
    assert "ballast reset" in up.stderr


@pytest.mark.parametrize(("variables", "clerk"), [({}, "stand-in"), (REAL, ISSUER)])
def test_status_shows_the_clerk_in_use(stack_with: MakeStack, variables: dict[str, str], clerk: str) -> None:
    status = run(stack_with(**variables), "status", "--json")
    assert json.loads(status.stdout)["clerk"] == clerk
    shown = run(stack_with(**variables), "status").stdout
    assert f"Clerk: {'the stand-in' if clerk == 'stand-in' else f'the real instance {clerk}'}" in shown
