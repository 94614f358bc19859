"""The workflows: their permissions, their secrets, and that each command works with exactly these."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from scripts.backup.cron_monitors import MONITORS
from service.jobs import find_jobs
from tests.conftest import ROOT, Stack
from tests.service.outside import running_outside
from tests.shipped_jobs import SHIPPED_JOBS

FOLDER = ROOT / ".github/workflows"
MONITOR_OF = {"backup.yml": "ballast-backup", "restore-drill.yml": "ballast-restore-drill"}
EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")
NAMED = re.compile(r"\b(?:secrets|vars)\.(\w+)")
Step = dict[str, Any]


def workflow(name: str) -> dict[str, Any]:
    # YAML 1.1 takes the key `on` for true.
    return {"on" if key is True else key: value for key, value in yaml.safe_load((FOLDER / name).read_text()).items()}


def job_of(name: str) -> dict[str, Any]:
    [job] = workflow(name)["jobs"].values()
    return dict(job)


def steps_of(name: str) -> list[Step]:
    return list(job_of(name)["steps"])


def ballast_steps(name: str) -> list[Step]:
    return [step for step in steps_of(name) if step.get("run", "").startswith("ballast ")]


each_workflow = pytest.mark.parametrize("name", sorted(MONITOR_OF))


EVERY = sorted(file.name for file in FOLDER.iterdir())
# Without the job that only calls another workflow.
JOBS_OF = [(name, job) for name in EVERY for job, found in workflow(name)["jobs"].items() if "uses" not in found]
ACTION = ROOT / ".github/actions/set-up/action.yml"
any_workflow = pytest.mark.parametrize("name", EVERY)
any_job = pytest.mark.parametrize(("name", "job"), JOBS_OF)


def test_these_tests_cover_every_workflow() -> None:
    assert set(EVERY) == MONITOR_OF.keys() | {"jobs.yml", "main.yml", "security.yml"}


def test_zizmor_finds_nothing_even_in_pedantic_mode() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("zizmor"), "--offline", "--quiet", "--pedantic", FOLDER, ACTION],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout


def list_actions(file: Path) -> list[str]:
    """The actions that a file uses from other repositories."""
    return [line for line in re.findall(r"uses: *(.*)", file.read_text()) if not line.startswith("$/")]


@pytest.mark.parametrize("file", [*(FOLDER / name for name in EVERY), ACTION], ids=lambda file: file.name)
def test_every_action_is_pinned_by_commit_with_its_version_in_a_comment(file: Path) -> None:
    pinned = re.compile(r"(actions|github)/[a-z-]+(/[a-z]+)?@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [line for line in list_actions(file) if not pinned.fullmatch(line)] == []


def test_each_action_has_one_version() -> None:
    used = {line for file in (*(FOLDER / name for name in EVERY), ACTION) for line in list_actions(file)}
    assert len(used) == len({re.split(r"@", line)[0] for line in used})


# The first major version of each action that runs on Node 24. GitHub's runners no longer have Node 20.
ON_NODE_24 = {"checkout": 5, "setup-python": 6, "setup-node": 5, "upload-artifact": 6, "codeql-action": 4}


@pytest.mark.parametrize("file", [*(FOLDER / name for name in EVERY), ACTION], ids=lambda file: file.name)
def test_every_action_runs_on_the_runners_node_version(file: Path) -> None:
    versions = re.findall(r"(?:actions|github)/([a-z-]+)\S* # v(\d+)", "\n".join(list_actions(file)))
    assert [name for name, major in versions if int(major) < ON_NODE_24[name]] == []


@any_workflow
def test_a_workflow_has_no_permissions_beyond_those_that_its_jobs_name(name: str) -> None:
    assert workflow(name)["permissions"] in ({}, {"contents": "read"})
    assert workflow(name)["concurrency"]["group"]
    additional = {
        (job, permission, value)
        for job, found in workflow(name)["jobs"].items()
        for permission, value in found.get("permissions", {}).items()
        if (permission, value) != ("contents", "read")
    }
    # CodeQL needs more. A called workflow has at most the permissions of the job that calls it.
    job_with_codeql = {"security.yml": "codeql", "main.yml": "security"}.get(name)
    needed = {(job_with_codeql, "security-events", "write"), (job_with_codeql, "actions", "read")}
    assert additional == (needed if job_with_codeql else set())


@any_job
def test_a_job_with_secrets_uses_no_package_cache(name: str, job: str) -> None:
    found = workflow(name)["jobs"][job]
    if "secrets." in json.dumps(found):
        assert not [step for step in found["steps"] if step.get("uses", "").startswith("$/")]
        given = [step.get("with", {}) for step in found["steps"]]
        assert [words for words in given if "cache" in words] == []
        # setup-node uses a cache by default if package.json names a package manager.
        assert [words for words in given if "node-version" in words and words.get("package-manager-cache", True)] == []


@any_job
def test_a_job_has_a_timeout_and_leaves_no_credentials_in_the_checkout(name: str, job: str) -> None:
    found = workflow(name)["jobs"][job]
    assert found["timeout-minutes"] <= 270
    assert found["runs-on"] == "ubuntu-24.04"
    for step in found["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@any_job
def test_a_job_runs_only_project_commands_without_expressions(name: str, job: str) -> None:
    for step in workflow(name)["jobs"][job]["steps"]:
        words = shlex.split(step.get("run", "")) if name != "jobs.yml" else []
        if not words:
            continue
        assert "${{" not in step["run"]
        assert "\n" not in step["run"]
        command = words[1] if words[0] == "sudo" else words[0]
        if command.startswith("./"):
            assert os.access(ROOT / command, os.X_OK), command
        else:
            assert command == "ballast" or words[:2] in (["npm", "audit"], ["uvx", "pip-audit@2.10.1"])


# What a fresh runner lacks: which steps provide it, and which commands need it.
PROVIDES = {
    r"^actions/checkout@": "checkout",
    r"^(actions/setup-python@|\$/\.github/actions/set-up$)": "python",
    r"^(actions/setup-node@|\$/\.github/actions/set-up$)": "node",
    r"^\./scripts/setup": "ballast",
    r"^\./scripts/setup$": "uvx",
    r"install-postgres client 17$": "pg_dump",
    r"install-postgres server 15$": "PostgreSQL 15",
    r"install-postgres server 17$": "PostgreSQL 17",
    r"^sudo \./scripts/ci/install-recovery-tools --install$": "age and zstd",
    r"^sudo \./scripts/ci/install-pgbouncer --install$": "PgBouncer",
    r"^\./scripts/ci/start-supabase$": "Supabase",
    r"^\./scripts/ci/image build": "image",
}
NEEDS = {
    r"^(sudo )?\./": "checkout",
    r"^\./(\.ci/run|scripts/(setup|test|ci/start-supabase))": "python",
    r"^(\./(\.ci/run|scripts/(setup$|test|ci/(start-supabase|scan-secrets)))|npm )": "node",
    r"^ballast ": "ballast",
    r"^uvx ": "uvx",
    r"^ballast backup run": "pg_dump",
    r"^\./\.ci/run": "PostgreSQL 15",
    r"/postgresql/17/bin": "PostgreSQL 17",
    r"^\./\.ci/run --thorough": "age and zstd",
    r" --server-url ": "Supabase",
    r"^\./scripts/ci/image scan": "image",
}


def match_rules(rules: dict[str, str], text: str) -> set[str]:
    return {thing for pattern, thing in rules.items() if re.search(pattern, text)}


@any_job
def test_earlier_steps_provide_what_a_step_needs(name: str, job: str) -> None:
    provided: set[str] = set()
    for step in workflow(name)["jobs"][job]["steps"]:
        text = step.get("run") or step["uses"]
        assert match_rules(NEEDS, text) <= provided, text
        provided |= match_rules(PROVIDES, text)


@pytest.mark.parametrize("name", ["main.yml", "security.yml"])
def test_only_jobs_of_protected_environments_get_secrets(name: str) -> None:
    for job, found in workflow(name)["jobs"].items():
        used = set(re.findall(r"secrets\.(\w+)", json.dumps(found)))
        assert not used or "environment" in found, job
        if job not in {"push", "deploy"}:
            assert used == set()


DOCUMENTED = {
    "main.yml": "deploy.md", "security.yml": "deploy.md", "jobs.yml": "jobs.md",
    "backup.yml": "recovery.md", "restore-drill.yml": "recovery.md",
}  # fmt: skip


@any_workflow
def test_every_secret_and_variable_is_documented(name: str) -> None:
    page = (ROOT / "docs" / DOCUMENTED[name]).read_text()
    given = set(NAMED.findall((FOLDER / name).read_text()))
    assert [each for each in sorted(given) if f"`{each}`" not in page] == []


def test_the_deployment_page_lists_the_jobs_and_their_commands() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    table = dict(
        re.findall(r"^\| `([a-z]+)` \| (.*) \|$", page.partition("| [main.yml]")[2].partition("\n\n")[0], re.M)
    )
    jobs = workflow("main.yml")["jobs"]
    assert table.keys() == jobs.keys()
    for job, text in table.items():
        programs = [program.removeprefix("./") for program in re.findall(r"`((?:\./)?[.\w/-]+/[\w-]+)", text)]
        commands = " ".join(step.get("run", "") for step in jobs[job].get("steps", []))
        assert [program for program in programs if program not in commands and not program.startswith("tests/")] == []


def test_a_pull_request_gets_no_secrets_and_deploys_nothing() -> None:
    jobs = workflow("main.yml")["jobs"]
    assert jobs["push"]["if"] == "github.event_name == 'push'"
    assert set(jobs["push"]["needs"]) == jobs.keys() - {"push", "deploy"}
    assert jobs["deploy"]["needs"] == "push"
    for name in EVERY:
        assert "pull_request_target" not in workflow(name)["on"]


def test_a_deployment_waits_for_the_security_workflow_without_codeql() -> None:
    caller = workflow("main.yml")["jobs"]["security"]
    assert caller["uses"] == "$/.github/workflows/security.yml"
    assert caller["if"] == workflow("main.yml")["jobs"]["push"]["if"]
    assert "secrets" not in caller
    called = workflow("security.yml")
    assert "workflow_call" in called["on"]
    commands = {
        shlex.join(shlex.split(step["run"])[:2])
        for job in called["jobs"].values()
        for step in job["steps"]
        if "run" in step
    }
    assert commands >= {"uvx pip-audit@2.10.1", "npm audit", "./scripts/ci/scan-secrets", "./scripts/ci/image scan"}
    # A job that is skipped or may fail would let a deployment pass. A private repository may be unable to run CodeQL.
    assert {job for job, found in called["jobs"].items() if {"if", "continue-on-error"} & found.keys()} == {"codeql"}
    # A run that waits in a concurrency group is cancelled if another one arrives: the weekly run has its own group.
    assert "github.event_name" in called["concurrency"]["group"]


def test_a_deployment_backs_up_migrates_deploys_and_reports_in_this_order() -> None:
    commands = [step["run"] for step in workflow("main.yml")["jobs"]["deploy"]["steps"] if "run" in step]
    assert commands == [
        "./scripts/ci/install-postgres client 17", "./scripts/setup --service", "ballast backup run", "ballast migrate up",
        './scripts/ci/deploy "$GITHUB_SHA"', "./scripts/ci/notify succeeded", "./scripts/ci/notify failed",
    ]  # fmt: skip


def test_ci_runs_on_every_change_and_thoroughly_each_night_and_before_a_deployment() -> None:
    main = workflow("main.yml")
    runs = {
        (name, step["run"]): job.get("if")
        for name, job in main["jobs"].items()
        for step in job.get("steps", [])
        if step.get("run", "").startswith("./.ci/run")
    }
    assert runs == {
        ("everyday", "./.ci/run"): "github.event_name != 'schedule'",
        ("thorough", "./.ci/run --thorough"): "github.event_name != 'pull_request'",
    }
    assert main["on"].keys() == {"push", "pull_request", "schedule"}
    assert re.fullmatch(r"\d+ \d+ \* \* \*", main["on"]["schedule"][0]["cron"])


def test_pytest_knows_every_option_that_a_workflow_passes(pytestconfig: pytest.Config) -> None:
    for step in workflow("main.yml")["jobs"].values():
        for run in [each.get("run", "") for each in step.get("steps", [])]:
            if not run.startswith("./scripts/test "):
                continue
            words = shlex.split(run)[1:]
            assert [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()] == []
            options = [word for word in words if word.startswith("--")]
            assert [option for option in options if pytestconfig.getoption(option, "unknown") == "unknown"] == []


@pytest.mark.parametrize(
    ("words", "package"), [(("client", "17"), "postgresql-client-17"), (("server", "15"), "postgresql-15")]
)
def test_postgresql_is_installed_from_its_own_repository(tmp_path: Path, words: tuple[str, str], package: str) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\necho "$@"\n')
    sudo.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts/ci/install-postgres", *words],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[2] == "/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y"
    assert lines[3].split()[-1] == package
    assert subprocess.run([ROOT / "scripts/ci/install-postgres"], capture_output=True, check=False).returncode == 2


def run_jobs_workflow(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    [step] = steps_of("jobs.yml")
    assert "${{" not in step["run"]
    return run_step(step, {name: environment[name] for name in step["env"]})


def test_the_jobs_workflow_has_no_permissions() -> None:
    assert workflow("jobs.yml")["permissions"] == {}


def test_the_jobs_workflow_runs_every_scheduled_job_and_not_the_backup(stack: Stack) -> None:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as database:
        database.execute("delete from app.job_runs")
        done = run_jobs_workflow(stack.environment | {"SERVICE_URL": f"{stack.environment['SERVICE_URL']}/"})
        assert done.returncode == 0, done.stdout + done.stderr
        ran = database.execute("select name from app.job_runs where failures = 0").fetchall()
    assert {name for (name,) in ran} == find_jobs().keys() - {"backup"}


def test_the_jobs_workflow_names_the_job_that_failed_and_runs_the_others() -> None:
    def answer(path: str, *_: object) -> tuple[int, dict[str, str], bytes]:
        return (503 if path == "/jobs/mail" else 200), {}, b'{"scheduled": ["mail", "seals"]}'

    with running_outside() as service:
        service.answer = answer
        done = run_jobs_workflow({"SERVICE_URL": service.url, "JOBS_TOKEN": "5ecret"})
    assert (done.returncode, "Failed jobs: mail\n" in done.stdout) == (1, True)
    assert service.requests == ["/jobs", "/jobs/mail", "/jobs/seals"]


def test_the_jobs_workflow_fails_if_the_token_is_wrong(stack: Stack) -> None:
    done = run_jobs_workflow(stack.environment | {"JOBS_TOKEN": "another token of at least 32 characters"})
    assert (done.returncode != 0, "401" in done.stderr) == (True, True)


def test_the_jobs_workflow_fails_if_it_is_redirected() -> None:
    with running_outside() as service:
        service.answer = lambda path, *_: (308, {"Location": f"https://api.example.com{path}"}, b"")
        done = run_jobs_workflow({"SERVICE_URL": service.url, "JOBS_TOKEN": "5ecret"})
    assert (done.returncode != 0, service.requests) == (True, ["/jobs"])


def test_the_jobs_page_lists_every_job_and_its_command_works(stack: Stack) -> None:
    page = (ROOT / "docs/jobs.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == {*SHIPPED_JOBS, "backup"}
    [command] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    ran = subprocess.run(
        ["bash", "-euc", command], env=os.environ | stack.environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@each_workflow
def test_a_workflow_runs_on_its_monitors_schedule_and_on_demand(name: str) -> None:
    monitor = MONITORS[MONITOR_OF[name]]
    assert workflow(name)["on"] == {"schedule": [{"cron": monitor["schedule"]["value"]}], "workflow_dispatch": None}
    [minutes] = [step["timeout-minutes"] for step in ballast_steps(name)][:1]
    assert minutes <= monitor["max_runtime"]


@each_workflow
def test_a_workflow_may_only_read_the_code(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}
    assert "permissions" not in job_of(name)
    assert job_of(name)["environment"] == "production"
    [checkout] = [step for step in steps_of(name) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"] == {"persist-credentials": False}


@each_workflow
def test_runs_do_not_overlap_and_steps_end_before_the_job_is_cancelled(name: str) -> None:
    assert workflow(name)["concurrency"] == {"group": name.removesuffix(".yml"), "cancel-in-progress": False}
    running = [step for step in steps_of(name) if "run" in step]
    assert sum(step["timeout-minutes"] for step in running) < job_of(name)["timeout-minutes"]


@each_workflow
def test_no_script_of_a_workflow_contains_an_expression(name: str) -> None:
    assert [step["run"] for step in steps_of(name) if "${{" in step.get("run", "")] == []
    assert {key for step in steps_of(name) for key in step} <= {
        "name",
        "uses",
        "with",
        "run",
        "env",
        "if",
        "timeout-minutes",
    }


def test_the_backup_job_cannot_decrypt_and_the_drill_cannot_write_to_the_database() -> None:
    given = {name: set(NAMED.findall((FOLDER / name).read_text())) for name in MONITOR_OF}
    assert "BACKUP_IDENTITY" not in given["backup.yml"]
    assert not given["restore-drill.yml"] & {"DATABASE_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


# --- running the steps


def environment_of(step: Step, secrets: dict[str, str], variables: dict[str, str]) -> dict[str, str]:
    """A step's environment as GitHub builds it: unset values are empty, and `a || format(…)` takes the first that is not."""

    def value(expression: str) -> str:
        first, *fallback = expression.split(" || ")
        kind, _, name = first.partition(".")
        found = {"secrets": secrets, "vars": variables}[kind].get(name, "")
        if found or not fallback:
            return found
        form = re.fullmatch(r"format\('([^']+)', vars\.(\w+)\)", fallback[0])
        assert form, expression
        return form[1].format(variables.get(form[2], ""))

    return {name: EXPRESSION.sub(lambda found: value(found[1]), text) for name, text in step.get("env", {}).items()}


# https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#jobsjob_idstepsshell
SHELLS = {None: ["bash", "-e"], "bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail"]}


def run_step(step: Step, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs the step as a runner does, with no other environment variables."""
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    coverage = {name: value for name, value in os.environ.items() if name.startswith(("COVERAGE", "PYTHON"))}
    return subprocess.run(
        [*SHELLS[step.get("shell")], "-c", step["run"]],
        cwd=ROOT, env={"PATH": path, "CI": "true"} | coverage | environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.thorough
def test_the_commands_of_both_workflows_work_with_their_secrets(
    stack: Stack, tmp_path: Path, bucket: str, s3: str
) -> None:
    secrets = stack.environment | {
        "BACKUP_URL": f"s3://{bucket}/production", "AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "5ecret",
        "DRILL_AWS_ACCESS_KEY_ID": "reader", "DRILL_AWS_SECRET_ACCESS_KEY": "5ecret",
    }  # fmt: skip
    variables = {"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": s3}
    machine = {"BALLAST_HOME": str(tmp_path / "nothing"), "HOME": str(tmp_path), "AWS_ALLOW_HTTP": "true"}
    commands = []
    for name in ("backup.yml", "restore-drill.yml"):
        for step in ballast_steps(name):
            done = run_step(step, machine | environment_of(step, secrets, variables))
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Could not record this" not in done.stderr
            commands.append(step["run"])
    assert commands == ["ballast backup run --type automated", "ballast backup prune", "ballast backup drill latest"]
    [newest] = json.loads(list_backups(stack))[:1]
    assert (newest["backup_type"], newest["status"], newest["drill_passed"]) == ("automated", "completed", True)


def list_backups(stack: Stack) -> str:
    """Reads public.backup_logs through the service."""
    url, token = stack.environment["SERVICE_URL"], stack.environment["OPERATOR_TOKEN"]
    words = ["curl", "--silent", "--fail", f"{url}/api/v1/backups", "-H", f"Authorization: Bearer {token}"]
    answered = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.dumps(json.loads(answered.stdout)["backups"])


def test_without_its_secrets_every_command_fails(tmp_path: Path) -> None:
    machine = {"BALLAST_HOME": str(tmp_path / "nothing"), "HOME": str(tmp_path)}
    for name in MONITOR_OF:
        for step in ballast_steps(name):
            done = run_step(step, machine | environment_of(step, {}, {}))
            assert done.returncode != 0, (step["run"], done.stdout)
            assert "Traceback" not in done.stderr


@each_workflow
def test_a_failure_is_posted_to_the_alert_channel(name: str) -> None:
    [step] = [step for step in steps_of(name) if step.get("if") == "failure()"]
    assert step == steps_of(name)[-1]
    github = {
        "GITHUB_SERVER_URL": "https://github.example", "GITHUB_REPOSITORY": "acme/backend", "GITHUB_RUN_ID": "7",
        "GITHUB_WORKFLOW": workflow(name)["name"],
    }  # fmt: skip
    posted: list[bytes] = []
    with running_outside() as channel:
        channel.answer = lambda _, __, body: posted.append(body) or (200, {}, b"ok")  # type: ignore[func-returns-value]
        done = run_step(step, github | environment_of(step, {"ALERT_WEBHOOK_URL": f"{channel.url}/services/T0/B0"}, {}))
        assert done.returncode == 0, done.stderr
        assert channel.requests == ["/services/T0/B0"]
        channel.answer = lambda *_: (302, {"Location": "https://example.com/sign-in"}, b"")
        assert run_step(step, github | environment_of(step, {"ALERT_WEBHOOK_URL": channel.url}, {})).returncode != 0
    [body] = posted
    text = f"{workflow(name)['name']} of acme/backend failed: https://github.example/acme/backend/actions/runs/7"
    assert json.loads(body) == {"text": text}
    assert run_step(step, github | environment_of(step, {}, {})).returncode == 0  # no alert channel is set
