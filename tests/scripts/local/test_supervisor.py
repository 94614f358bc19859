"""The supervisor with small real processes, and two whole stacks next to each other."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest
from click.testing import CliRunner

from scripts.cli import VERBS, ballast
from scripts.cli import stack as stack_commands
from scripts.local import services, supervisor
from scripts.local.processes import PortTaken, ProcessRecord, RunRecord, require_free
from scripts.local.scheduler import HEARTBEAT
from scripts.local.services import Service
from scripts.local.stack import Secrets, Stack
from scripts.local.supervisor import AlreadyRunning, CannotStart, ServiceEnded, Supervisor
from tests.conftest import ROOT, free_port_block
from tests.conftest import Stack as RunningStack

SLEEP = "import time; print('awake', flush=True); time.sleep(600)"
SLEEP_WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


def _service(name: str, code: str, *needs: str, once: bool = False) -> Service:
    return Service(name, lambda: [sys.executable, "-c", code], needs=needs, once=once)


@pytest.fixture
def small(tmp_path: Path) -> Stack:
    return Stack(tmp_path, free_port_block(), Secrets.of(tmp_path))


def _children() -> list[psutil.Process]:
    """All descendants of this process, except PostgreSQL: servers of other tests start and end workers at any time."""
    return [each for each in psutil.Process().children(recursive=True) if each.name() != "postgres"]


def _wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:g} s"
        time.sleep(0.02)


def _stop_soon() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_service_starts_without_an_unwanted_service_that_it_needs(small: Stack, tmp_path: Path) -> None:
    unwanted = replace(_service("seed", "raise SystemExit(1)", once=True), is_wanted=lambda: False)
    after = _service("after", f"open({str(tmp_path / 'ran')!r}, 'w')", "seed", once=True)
    Supervisor(small, [unwanted, after]).run(when_ready=_stop_soon)
    assert (tmp_path / "ran").exists()


def test_services_start_once_their_needs_are_healthy_and_stop_in_reverse_order(small: Stack, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    code = f"""
import signal, sys, time
def note(word): open({str(journal)!r}, 'a').write(word + sys.argv[1] + ' ')
signal.signal(signal.SIGTERM, lambda *_: (note('-'), sys.exit()))
note('+')
time.sleep(600)
"""

    def service(name: str, *needs: str) -> Service:
        return Service(
            name,
            lambda: [sys.executable, "-c", code, name],
            is_healthy=lambda: journal.exists() and f"+{name}" in journal.read_text(),
            needs=needs,
        )

    Supervisor(small, [service("a"), service("b", "a"), service("c", "b")]).run(when_ready=_stop_soon)
    assert journal.read_text().split() == ["+a", "+b", "+c", "-c", "-b", "-a"]


def test_a_stop_leaves_no_process_and_no_record(small: Stack) -> None:
    before = set(_children())
    Supervisor(small, [_service("family", SLEEP_WITH_CHILD)]).run(when_ready=_stop_soon)
    assert set(_children()) == before
    assert not (small.home / "run.json").exists()


def test_a_crashed_service_ends_the_run_with_its_name_and_log(small: Stack) -> None:
    before = set(_children())
    crash = "import sys, time; print('the reason', flush=True); time.sleep(0.3); sys.exit(7)"
    with pytest.raises(ServiceEnded, match=r"(?s)fragile ended with exit code 7.*fragile\.log.*the reason"):
        Supervisor(small, [_service("steady", SLEEP), _service("fragile", crash)]).run(when_ready=lambda: None)
    assert set(_children()) == before


def test_a_missing_program_is_reported_with_its_service(small: Stack) -> None:
    before = set(_children())
    services = [_service("steady", SLEEP), Service("absent", lambda: ["/nowhere/program"], needs=("steady",))]
    with pytest.raises(CannotStart, match=r"absent cannot be started: .*/nowhere/program"):
        Supervisor(small, services).run(when_ready=lambda: None)
    assert set(_children()) == before


def test_a_failed_step_ends_the_start(small: Stack) -> None:
    services = [_service("step", "print('no'); exit(3)", once=True), _service("next", SLEEP, "step")]
    with pytest.raises(ServiceEnded, match="step ended with exit code 3"):
        Supervisor(small, services).run(when_ready=lambda: None)
    assert not (small.logs / "next.log").exists()


def test_a_step_that_takes_too_long_is_reported_with_its_log(small: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "READY_SECONDS", 0.5)
    with pytest.raises(ServiceEnded, match=r"step did not finish within 0\.5 s\. The end of .*step\.log"):
        Supervisor(small, [_service("step", SLEEP, once=True)]).run(when_ready=lambda: None)


def test_a_second_supervisor_is_refused(small: Stack) -> None:
    refusals: list[BaseException] = []

    def try_another() -> None:
        with pytest.raises(AlreadyRunning) as refusal:
            Supervisor(small, [_service("other", SLEEP)]).run(when_ready=lambda: None)
        refusals.append(refusal.value)
        _stop_soon()

    Supervisor(small, [_service("one", SLEEP)]).run(when_ready=try_another)
    assert len(refusals) == 1


def test_output_is_printed_with_the_services_name_and_written_to_its_log(
    small: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_when_awake() -> None:
        _wait_until((small.logs / "sleeper.log").read_text)  # type: ignore[arg-type]
        _stop_soon()

    Supervisor(small, [_service("sleeper", SLEEP)]).run(when_ready=stop_when_awake)
    assert "  sleeper │ awake\n" in capsys.readouterr().out
    assert (small.logs / "sleeper.log").read_text() == "awake\n"


def test_a_log_is_bounded_and_ends_with_the_last_line(small: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10_000)
    chatty = "for n in range(5000): print(f'line {n}')"
    Supervisor(small, [_service("chatty", chatty, once=True)]).run(when_ready=_stop_soon)
    logs = sorted(small.logs.glob("chatty.log*"))
    assert [log.name for log in logs] == ["chatty.log", "chatty.log.1", "chatty.log.2"]
    assert all(log.stat().st_size <= 10_000 for log in logs)
    assert logs[0].read_text().endswith("line 4999\n")


def test_the_log_of_the_last_run_is_kept_at_the_next_start(small: Stack) -> None:
    for word in ("first", "second"):
        Supervisor(small, [_service("step", f"print({word!r})", once=True)]).run(when_ready=_stop_soon)
    assert (small.logs / "step.log").read_text() == "second\n"
    assert (small.logs / "step.log.1").read_text() == "first\n"


def test_a_full_disk_does_not_block_a_service_that_logs(small: Stack) -> None:
    small.logs.mkdir()
    (small.logs / "chatty.log").symlink_to("/dev/full")
    chatty = "for n in range(50000): print(f'line {n}')"
    with pytest.raises(ServiceEnded, match=r"(?s)chatty ended with exit code 3.*line 49999"):
        Supervisor(small, [_service("chatty", f"{chatty}\nexit(3)", once=True)]).run(when_ready=lambda: None)


def test_a_log_and_an_error_show_no_secret(small: Stack) -> None:
    leak = f"print('postgresql://postgres:{small.secrets.postgres_password}@host'); exit(1)"
    with pytest.raises(ServiceEnded, match="postgresql://postgres:…@host") as ended:
        Supervisor(small, [_service("leaky", leak, once=True)]).run(when_ready=lambda: None)
    shown = f"{ended.value}{(small.logs / 'leaky.log').read_text()}{supervisor.read_error(small)}"
    assert small.secrets.postgres_password not in shown


def test_a_killed_service_ends_the_run_with_the_signal_and_its_usual_cause(small: Stack) -> None:
    kill = "import os, signal, time; time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ServiceEnded, match=r"fragile was ended by SIGKILL: .*memory ran out"):
        Supervisor(small, [_service("steady", SLEEP), _service("fragile", kill)]).run(when_ready=lambda: None)


def test_the_error_of_the_last_run_is_kept_until_the_next_one(small: Stack) -> None:
    with pytest.raises(ServiceEnded):
        Supervisor(small, [_service("step", "exit(3)", once=True)]).run(when_ready=lambda: None)
    assert "step ended with exit code 3" in supervisor.read_error(small)
    Supervisor(small, [_service("step", "exit(0)", once=True)]).run(when_ready=_stop_soon)
    assert supervisor.read_error(small) == ""


def test_a_service_that_fails_while_another_starts_is_not_reported_ready(small: Stack, tmp_path: Path) -> None:
    answers = iter([True, False])
    fickle = replace(_service("fickle", SLEEP), is_healthy=lambda: next(answers))
    with pytest.raises(ServiceEnded, match="fickle does not answer any more"):
        Supervisor(small, [fickle, _service("step", "exit(0)", "fickle", once=True)]).run(
            when_ready=(tmp_path / "ready").touch
        )
    assert not (tmp_path / "ready").exists()


def test_an_interrupted_seed_goes_on_at_the_next_start(small: Stack) -> None:
    seed = next(each for each in services.build_services(small) if each.name == "seed")
    seed.before()
    assert seed.is_wanted()  # without a look at the database, which has a part of the data
    seed.after()
    assert not (small.clerk_folder / "unfinished").exists()


def test_a_silent_scheduler_is_not_healthy(small: Stack) -> None:
    scheduler = next(each for each in services.build_services(small) if each.name == "scheduler")
    scheduler.before()
    assert not scheduler.is_healthy()
    beat = small.home / HEARTBEAT
    beat.touch()
    assert scheduler.is_healthy()
    os.utime(beat, (time.time() - 91, time.time() - 91))
    assert not scheduler.is_healthy()


# --- what `ballast status` says -----------------------------------------------------------------------------------------


def _status(stack: Stack) -> str:
    place = {"BALLAST_HOME": str(stack.home), "BALLAST_PORT_BASE": str(stack.port_base), "DATABASE_URL": ""}
    result = CliRunner().invoke(ballast, ["status"], env=place)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    return " ".join(result.output.split())


def test_status_says_that_nothing_runs(small: Stack) -> None:
    assert "The stack is not running: `ballast up` starts it." in _status(small)


def test_status_says_why_the_last_run_ended(small: Stack) -> None:
    with pytest.raises(ServiceEnded):
        Supervisor(small, [_service("postgres", "print('no space left'); exit(3)")]).run(when_ready=lambda: None)
    assert re.search(r"postgres ended with exit code 3\. .*no space left", _status(small))


def test_status_says_that_the_stack_starts(small: Stack) -> None:
    said: list[str] = []

    def ask_and_stop() -> bool:
        said.append(_status(small))
        _stop_soon()
        return False

    starting = replace(_service("redis", SLEEP), is_healthy=ask_and_stop)
    Supervisor(small, [starting]).run(when_ready=lambda: None)
    assert "`ballast up` is still starting postgres" in said[0]


def test_status_names_the_ports_of_a_running_stack(small: Stack) -> None:
    said: list[str] = []

    def ask_and_stop() -> None:
        said.append(_status(replace(small, port_base=small.port_base + 1)))
        _stop_soon()

    Supervisor(small, [_service("redis", SLEEP)]).run(when_ready=ask_and_stop)
    assert f"runs with BALLAST_PORT_BASE={small.port_base}, not {small.port_base + 1}: set it" in said[0]


def test_status_says_that_the_disk_is_full(small: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_commands, "FULL_DISK_BYTES", 1 << 60)
    assert re.search(r"The disk of .* is full: \d+ MB are free", _status(small))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_record_of_a_run_counts_as_none(small: Stack, content: str) -> None:
    (small.home / "run.json").write_text(content)
    assert "The stack is not running" in _status(small)
    Supervisor(small, [_service("steady", SLEEP)]).run(when_ready=_stop_soon)


# --- processes that are left ------------------------------------------------------------------------------------------


def test_services_of_a_killed_supervisor_are_stopped(small: Stack) -> None:
    program = f"""
import sys
from scripts.local.scheduler import HEARTBEAT
from scripts.local.services import Service
from scripts.local.stack import Stack
from scripts.local.supervisor import Supervisor
Supervisor(Stack.from_environment(), [Service("family", lambda: [sys.executable, "-c", {SLEEP_WITH_CHILD!r}])]).run(
    when_ready=lambda: print("ready", flush=True))
"""
    place = {"BALLAST_HOME": str(small.home), "BALLAST_PORT_BASE": str(small.port_base)}
    supervisor = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=os.environ | place)
    _wait_until(lambda: RunRecord.read(small.home).ready)
    record = RunRecord.read(small.home).services["family"]
    _wait_until(lambda: len(record.group()) == 2)
    supervisor.kill()
    supervisor.wait()
    assert len(record.group()) == 2
    assert RunRecord.read(small.home).stop() == ["family"]
    assert record.group() == []
    assert RunRecord.read(small.home).stop() == []


def test_another_process_with_a_reused_id_is_not_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as other:
        record = ProcessRecord.of(other.pid)
        ProcessRecord(record.pid, record.started - 60).stop()
        assert other.poll() is None
        record.stop()
        assert other.wait() == -signal.SIGTERM


def test_a_service_that_ignores_the_signal_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        reaper = threading.Thread(target=stubborn.wait)
        reaper.start()
        ProcessRecord.of(stubborn.pid).stop(seconds=0.2)
        reaper.join()
        assert stubborn.returncode == -signal.SIGKILL


def test_a_port_in_use_is_reported_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port}, which the gateway needs, .* process {os.getpid()} \("):
            require_free(port, "the gateway")


# --- the command -----------------------------------------------------------------------------------------------------


def test_help_lists_every_verb_without_importing_its_module() -> None:
    program = (
        "import sys; from scripts.cli import ballast; ballast(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    usage, _, modules = shown.rpartition("\n\n") if "\n\n" in shown.rstrip() else ("", "", shown)
    assert all(f"  {verb}" in shown for verb in VERBS), usage
    assert not {"psycopg", "httpx", "rich", "aiohttp"} & set(modules.split())


def test_a_malformed_port_base_is_a_usage_error(tmp_path: Path) -> None:
    for base in ("abc", "-1", "80", "65535", "1e4"):
        environment = {"BALLAST_HOME": str(tmp_path), "BALLAST_PORT_BASE": base}
        result = CliRunner().invoke(ballast, ["status"], env=environment)
        assert (result.exit_code, result.output.count("\n")) == (2, 1), base
        assert "BALLAST_PORT_BASE" in result.output


def test_an_older_stack_keeps_its_secrets_and_gets_the_missing_ones(tmp_path: Path) -> None:
    first, file = Secrets.of(tmp_path), tmp_path / "secrets.json"
    older = json.loads(file.read_text())
    del older["clerk_secret_key"]
    file.write_text(json.dumps(older))
    completed = Secrets.of(tmp_path)
    assert completed.clerk_secret_key not in {"", first.clerk_secret_key}
    assert completed == replace(first, clerk_secret_key=completed.clerk_secret_key)
    assert Secrets.of(tmp_path) == completed
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"", b'{"jwt_secret": "a', b"[]", b'{"jwt_secret": 1}', b"\xff", '{"jwt_secret": "\u00e9"}'.encode()]
)
def test_damaged_secrets_are_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secrets.json"
    file.write_bytes(content)
    result = CliRunner().invoke(ballast, ["status"], env={"BALLAST_HOME": str(tmp_path)})
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert f"{file} is damaged or unreadable" in result.output
    assert file.read_bytes() == content


@pytest.mark.parametrize("command", ["backup list", "clerk backfill", "doctor", "migrate status", "status"])
def test_a_command_that_starts_no_stack_creates_no_folder(tmp_path: Path, command: str) -> None:
    home = tmp_path / "stack"
    elsewhere = {"BALLAST_HOME": str(home), "DATABASE_URL": "postgresql://127.0.0.1:1/postgres"}
    result = CliRunner().invoke(ballast, command.split(), env=elsewhere)
    assert isinstance(result.exception, SystemExit)
    assert not home.exists()


def test_the_environment_of_a_new_stack_is_kept_for_its_start(tmp_path: Path) -> None:
    place = {"BALLAST_HOME": str(tmp_path / "stack")}
    first, second = (CliRunner().invoke(ballast, ["env"], env=place).output for _ in range(2))
    assert "SUPABASE_SECRET_KEY" in first
    assert first == second


@pytest.fixture
def second(home: Path) -> Iterator[RunningStack]:
    """A second whole stack, not started."""
    place = {"BALLAST_HOME": str(home / "second"), "BALLAST_PORT_BASE": str(free_port_block())}
    stack = RunningStack(home / "second", place)
    yield stack
    stack.ballast("down")


def _jobs_ran(stack: RunningStack) -> bool:
    """Waits until the scheduler has called each job, and none has failed."""
    environment = json.loads(stack.ballast("env", "--json").stdout)
    query = "select count(*) from ops.jobs join ops.job_schedule as s using (name) where s.schedule is not null and (last_run_at is null or failures > 0)"
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        _wait_until(lambda: connection.execute(query).fetchall() == [(0,)], 40)
        assert connection.execute("select mail_enabled from app.settings").fetchall() == [(True,)]
    return True


def test_a_stack_does_not_start_on_the_ports_of_another_stack(stack: RunningStack, second: RunningStack) -> None:
    ports = {"BALLAST_PORT_BASE": stack.environment["BALLAST_PORT_BASE"]}
    up = RunningStack(second.home, second.environment | ports).ballast("up", "--detach")
    assert up.returncode == 1
    assert "is in use by process" in up.stderr


@pytest.mark.thorough
def test_two_stacks_run_next_to_each_other_and_a_reset_leaves_no_trace(
    stack: RunningStack, second: RunningStack
) -> None:
    assert second.ballast("status").returncode == 1
    up = second.ballast("up", "--detach")
    assert up.returncode == 0, up.stderr
    again = second.ballast("up", "--detach")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "running already" in again.stderr
    status = json.loads(second.ballast("status", "--json").stdout)
    assert {service["state"] for service in status["parts"]} == {"healthy"}
    assert stack.ballast("status").returncode == 0
    assert _jobs_ran(second)
    lights = {
        check["name"]: check["status"] for check in json.loads(second.ballast("status", "--json").stdout)["checks"]
    }
    assert {name for name, light in lights.items() if light != "green"} == {"backup", "mail"}
    processes = [psutil.Process(service["pid"]) for service in status["parts"]]
    families = [child for each in processes for child in [each, *each.children(recursive=True)]]

    redis = RunRecord.read(second.home).services["redis"].process()
    assert redis is not None
    redis.suspend()
    assert "Not answering: redis, upstash." in second.ballast("status").stderr
    redis.kill()
    _wait_until(lambda: "redis was ended by SIGKILL" in second.ballast("status").stderr)
    assert second.ballast("up", "--detach").returncode == 0
    record = RunRecord.read(second.home)
    assert record.supervisor is not None
    os.kill(record.supervisor.pid, signal.SIGKILL)
    _wait_until(lambda: "`ballast up` was killed and left postgres" in second.ballast("status").stderr)
    assert second.ballast("up", "--detach").returncode == 0
    assert second.ballast("reset", "--yes").returncode == 0

    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in families)
    assert sorted(file.name for file in second.home.iterdir()) == ["lock", "secrets.json"]
    assert second.ballast("status").returncode == 1
    assert stack.ballast("status").returncode == 0
