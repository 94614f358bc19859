"""`ballast up`, `down`, `status`, `env` and `reset`: run the local stack, and show the health of any database."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from dataclasses import dataclass
from typing import Literal

import click
from rich.markup import escape
from rich.table import Table

from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.errors import Failure
from scripts.health import traffic_lights
from scripts.local import containers, services, supervisor
from scripts.local.processes import RunRecord
from scripts.local.scheduler import HEARTBEAT
from scripts.local.services import Service
from scripts.local.stack import STAND_IN, Stack, containers_are_wanted

FULL_DISK_BYTES = 50_000_000


@click.command(epilog="Example: ballast up --detach")
@click.option("--detach", is_flag=True, help="Return once everything is healthy, and leave it running.")
def up(detach: bool) -> None:
    """Start the local stack, seed an empty database, print URLs and keys, and run until Ctrl-C.

    `ballast --help` describes BALLAST_HOME and BALLAST_PORT_BASE, which select another folder and other ports.
    """
    stack = Stack.from_environment(create=True)
    stack.record_clerk()
    wanted = _build_services(stack)
    began = time.monotonic()

    def show() -> None:
        show_summary(stack, time.monotonic() - began)

    if detach:
        supervisor.start_detached(stack, wanted)
        show()
    else:
        supervisor.Supervisor(stack, wanted).run(when_ready=show)


@click.command(epilog="Example: ballast down")
def down() -> None:
    """Stop everything that `ballast up` started, even if `up` itself was killed."""
    stopped = RunRecord.read(Stack.from_environment().home).stop()
    click.echo(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was running.", err=True)


@click.command(epilog="Example: ballast status --json")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(url: str | None, as_json: bool) -> None:
    """Show the health of the database as traffic lights, and the services of the local stack.

    The exit code is 1 if a check is red, or a service is not healthy. The services are shown if the local stack runs,
    or if no other database is named.
    """
    stack = Stack.from_environment()
    record = RunRecord.read(stack.home)
    has_database = record.is_running() or stack.postgres.exists()
    chosen = url or os.environ.get("DATABASE_URL") or (stack.postgres.url() if has_database else None)
    is_local = chosen in {None, stack.postgres.url()}
    shows_services = is_local or record.is_running()
    if record.is_running() and record.port_base not in {0, stack.port_base}:
        raise OtherPorts(
            f"The stack in {stack.home} runs with BALLAST_PORT_BASE={record.port_base}, not {stack.port_base}: set it."
        )
    states = (
        [_state(service, record) for service in _build_services(stack) if not service.once and service.is_wanted()]
        if shows_services
        else []
    )
    has_service = record.is_running() or not is_local
    environment = options.build_environment(url) if has_service else {}
    found = traffic_lights.run_checks(chosen, is_local=is_local, environment=environment) if chosen else []
    if as_json:
        light = traffic_lights.find_worst_light(found)
        print_json(
            {
                "home": stack.home, "running": record.is_running(), "parts": states,
                "reason": explain(stack, record, states) if shows_services else None,
                "clerk": stack.clerk_in_use if shows_services else None, "status": light, "checks": found,
            }
        )  # fmt: skip
    else:
        _show_services(stack, record, states)
        _show_checks(found)
    if any(state.state != "healthy" for state in states) or traffic_lights.find_worst_light(found) == "red":
        raise click.exceptions.Exit(1)


@click.command(epilog="Example: ballast env --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def env(as_json: bool) -> None:
    """Print the environment variables of the local stack. Set them in a shell with: eval "$(ballast env)"."""
    environment = Stack.from_environment(create=True).environment()
    if as_json:
        print_json(environment)
    else:
        for name, value in environment.items():
            click.echo(f"export {name}={shlex.quote(value)}")


@click.command(epilog="Example: ballast reset --yes")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
def reset(yes: bool) -> None:
    """Stop the local stack and delete its data. Its keys stay valid, so clients need no new ones."""
    stack = Stack.from_environment()
    if not yes:
        click.confirm(f"Delete the database and everything else in {stack.home}?", abort=True)
    RunRecord.read(stack.home).stop()
    for folder in (stack.postgres.home, stack.postgres.folder, stack.clerk_folder, stack.backups, stack.logs):
        shutil.rmtree(folder, ignore_errors=True)
    (stack.home / HEARTBEAT).unlink(missing_ok=True)
    click.echo("Deleted. `ballast up` creates a new database.", err=True)


class OtherPorts(Failure):
    """The stack of this folder runs on the ports of another BALLAST_PORT_BASE."""

    exit_code = 2


@dataclass(frozen=True)
class State:
    """The row of a service in `ballast status`."""

    name: str
    state: Literal["healthy", "starting", "not answering", "down"]
    pid: int | None
    address: str


def _build_services(stack: Stack) -> list[Service]:
    return containers.build_services(stack) if containers_are_wanted() else services.build_services(stack)


def _state(service: Service, record: RunRecord) -> State:
    recorded = record.services.get(service.name)
    process = recorded.process() if recorded else None
    is_starting = record.is_running() and not record.ready
    if process is None:
        return State(service.name, "starting" if is_starting else "down", None, service.address)
    if service.is_healthy():
        return State(service.name, "healthy", process.pid, service.address)
    return State(service.name, "starting" if is_starting else "not answering", process.pid, service.address)


def explain(stack: Stack, record: RunRecord, states: list[State]) -> str | None:
    """Returns why the stack is not healthy, and what to do; None if it is healthy."""
    free = shutil.disk_usage(stack.home if stack.home.exists() else stack.home.anchor).free
    full = f"The disk of {stack.home} is full: {free / 1e6:.0f} MB are free.\n" if free < FULL_DISK_BYTES else ""
    unhealthy = [state.name for state in states if state.state != "healthy"]
    left = [state.name for state in states if state.pid is not None]
    if record.is_running() and not record.ready:
        reason = f"`ballast up` is still starting {', '.join(unhealthy) or 'the stack'}: see the logs in {stack.logs}."
    elif record.is_running() and unhealthy:
        remedy = f"See the logs in {stack.logs}. Run `ballast down`, then `ballast up`."
        reason = f"Not answering: {', '.join(unhealthy)}. {remedy}"
    elif record.is_running():
        reason = ""
    elif left:
        reason = (
            f"`ballast up` was killed and left {', '.join(left)} running: `ballast up` starts the stack again, and "
            "`ballast down` stops it."
        )
    else:
        reason = supervisor.read_error(stack).strip() or "The stack is not running: `ballast up` starts it."
    return (full + reason).strip() or None


def _show_services(stack: Stack, record: RunRecord, states: list[State]) -> None:
    if not states:
        return
    table = Table("service", "state", "process", "address", box=None)
    for state in states:
        table.add_row(state.name, state.state, str(state.pid or ""), state.address)
    print_table(table)
    click.echo(f"Clerk: {_describe_clerk(stack.clerk_in_use)}")
    if reason := explain(stack, record, states):
        click.echo(reason, err=True)


def _describe_clerk(clerk: str) -> str:
    return "the stand-in" if clerk == STAND_IN else f"the real instance {clerk}"


def _show_checks(found: list[traffic_lights.Check]) -> None:
    if not found:
        return
    table = Table("", "check", "found", "what to do", box=None)
    for check in found:
        light = f"[{check.status}]●[/] {check.status}"
        advice = escape(check.advice) if check.status != "green" else ""
        table.add_row(light, check.name, escape(traffic_lights.format_facts(check.facts)), advice)
    click.echo()
    print_table(table)


def show_summary(stack: Stack, seconds: float) -> None:
    """Prints the addresses and keys, and the commands to try first."""
    environment = stack.environment()
    notes = {
        "SERVICE_URL": " (open it: the demo page)",
        "CLERK_ISSUER": " (the stand-in)" if stack.clerk == STAND_IN else f" (a real instance, from {stack.env_file})",
    }
    click.secho(f"\nReady in {seconds:.1f} s.\n", bold=True)
    for label, name in {
        "Supabase API": "SUPABASE_URL",
        "publishable key": "SUPABASE_PUBLISHABLE_KEY",
        "secret key": "SUPABASE_SECRET_KEY",
        "database": "DATABASE_URL",
        "service": "SERVICE_URL",
        "Clerk issuer": "CLERK_ISSUER",
        "webhook secret": "CLERK_WEBHOOK_SECRETS",
        "Upstash REST": "UPSTASH_REDIS_REST_URL",
    }.items():
        click.echo(f"{label:>16}  {environment[name]}{notes.get(name, '')}")
    click.echo(f"{'logs':>16}  {stack.logs}\n")
    if stack.clerk == STAND_IN:
        click.echo("Sign in as:              ballast token --user user_ada --org org_acme")
        click.echo('Simulate a Clerk event:  ballast clerk send user.created --data \'{"id": "user_zoe"}\'\n')
    else:
        click.echo("Sign in on your own page. docs/local-stack.md describes tokens, and the tunnel for webhooks.\n")
