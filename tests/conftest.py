"""What tests stand on: one PostgreSQL of their own, shaped like hosted Supabase, and one whole running stack."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import settings

from scripts.cli import ballast
from scripts.local.clerk.client import ClerkClient
from scripts.local.stack import LAST_PORT_OFFSET
from scripts.scratch.postgres import Postgres
from scripts.scratch.server import free_ports
from tests.schema import migrate
from tests.servers import MIGRATED_DATABASE, TestRun, folder_to_keep

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
Claims = dict[str, Any]
TOKEN_LIFE_SECONDS = 60
RUN = pytest.StashKey[TestRun]()
QUIET_CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres", metavar="BIN", type=Path, help="bin folder of the PostgreSQL that database tests run on"
    )
    parser.addoption(
        "--server-url",
        metavar="URL",
        help="the URL for postgres of an empty database, hosted or of `supabase start`, for tests/db; it is migrated",
    )
    parser.addoption(
        "--data-api-url",
        metavar="URL",
        help="a PostgREST on a freshly seeded database, for tests/api/test_contract.py; JWT_SECRET signs its tokens",
    )
    parser.addoption("--renew-readme-picture", action="store_true", help="write docs/demo.png (tests/e2e)")
    parser.addoption("--histories", type=int, help="how many histories the convergence test delivers")
    parser.addoption("--table", metavar="NAME", help="run only the tests that concern this table")
    parser.addoption("--thorough", action="store_true", help="run the expensive tests too (CONTRIBUTING.md lists them)")
    parser.addoption(
        "--keep", action="store_true", help="leave the database servers running for the next run with --keep"
    )


def pytest_configure(config: pytest.Config) -> None:
    thorough = config.getoption("--thorough")
    if config.option.histories is None:
        config.option.histories = 150 if thorough else 30
    # Test modules read the profile when they are imported, which is later.
    settings.register_profile("ballast", max_examples=300 if thorough else 50, deadline=None)
    settings.load_profile("ballast")
    if config.option.collectonly:
        return
    if given := getattr(config, "workerinput", {}).get("ballast"):
        config.stash[RUN] = TestRun(Path(given["folder"]), given["kept"] and Path(given["kept"]))
    else:
        signal.signal(signal.SIGTERM, _interrupt)
        config.stash[RUN] = TestRun.begin(
            folder_to_keep(config.getoption("--postgres")) if config.getoption("--keep") else None
        )
    forget_the_developers_settings(config.stash[RUN])


def forget_the_developers_settings(run: TestRun) -> None:
    """No test works with what a developer's shell or `.env` names: the checkout's own stack, a database, a Clerk."""
    for name in re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE):
        os.environ.pop(name, None)
    os.environ["BALLAST_HOME"] = str(run.folder / "no-stack")


def _interrupt(*_: object) -> None:
    """A polite kill ends the run as Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The controller of several processes says to each where the run's folder is."""
    run = node.config.stash[RUN]
    node.workerinput["ballast"] = {"folder": str(run.folder), "kept": run.kept and str(run.kept)}


def pytest_unconfigure(config: pytest.Config) -> None:
    if run := config.stash.get(RUN, None):
        run.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """There is one stack: the tests of a file that use it take turns with those of other processes."""
    run = item.config.stash[RUN]
    if uses_the_stack(item):
        run.take_turn()
    answer = yield
    if nextitem is None or nextitem.path != item.path:
        run.end_turn()
    return answer


def concerns(item: pytest.Item, table: str) -> bool:
    """Whether the test, its file or a parameter of it is named after the table."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = re.search(rf"(?<![a-z]){re.escape(table)}(?![a-z])", item.nodeid)
    return bool(named) or any(getattr(each, "name", each) == table for each in parameters)


def uses_the_stack(item: pytest.Item) -> bool:
    return "stack" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("thorough")])
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    if table := config.getoption("--table"):
        config.hook.pytest_deselected(items=[item for item in items if not concerns(item, table)])
        items[:] = [item for item in items if concerns(item, table)]
    # Files that use the stack come first. So one process works on them, while the others begin with the rest and steal from its end.
    on_the_stack = {item.path for item in items if uses_the_stack(item)}
    items.sort(key=lambda item: item.path not in on_the_stack)


def free_port_block() -> int:
    """A base B such that the ports B to B+6, all that a stack may use, are free now."""
    return free_ports(LAST_PORT_OFFSET + 1)


@pytest.fixture(scope="session")
def home(test_run: TestRun) -> Path:
    """A folder of this process' own, outside pytest's, which only root may enter when we are root."""
    folder = test_run.folder / f"home-{os.getpid()}"
    folder.mkdir(mode=0o755)
    return folder


@dataclass(frozen=True)
class ServerElsewhere:
    """A server that we did not start. `address` is its URL for postgres; its other users have the same password."""

    address: str

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        parts = urlsplit(self.address)
        return urlunsplit(
            parts._replace(netloc=f"{user}:{parts.password}@{parts.hostname}:{parts.port}", path=f"/{database}")
        )


@dataclass(frozen=True)
class OwnDatabase(Postgres):
    """A server that all processes of the run share, and a database in it that is this process' own."""

    database: str = "postgres"

    def url(self, user: str = "postgres", database: str | None = None) -> str:
        return super().url(user, database or self.database)


@contextlib.contextmanager
def own_database(server: Postgres, template: str = MIGRATED_DATABASE) -> Iterator[OwnDatabase]:
    """A copy of a database, for as long as the block runs."""
    name = f"own_{secrets.token_hex(6)}"
    with psycopg.connect(server.url("supabase_admin", "template1"), autocommit=True) as admin:
        admin.execute(f"create database {name} template {template} strategy file_copy owner postgres".encode())
        try:
            yield OwnDatabase(server.home, server.port, server.password, server.programs, name)
        finally:
            admin.execute(f"drop database {name} with (force)".encode())


@pytest.fixture(scope="session")
def test_run(request: pytest.FixtureRequest) -> TestRun:
    return request.config.stash[RUN]


@pytest.fixture(scope="session")
def server(test_run: TestRun, request: pytest.FixtureRequest) -> Iterator[OwnDatabase | ServerElsewhere]:
    """A migrated database for tests that need no API; durable settings off."""
    if elsewhere := request.config.getoption("--server-url"):
        migrate(elsewhere)
        yield ServerElsewhere(elsewhere)
        return
    postgres = test_run.postgres("server", request.config.getoption("--postgres"), is_migrated=True)
    with own_database(postgres) as own:
        yield own


@dataclass(frozen=True)
class Database:
    """A connection as postgres inside a transaction that is rolled back, and a way to act as somebody else in it."""

    connection: psycopg.Connection[Any]

    @contextlib.contextmanager
    def acting(self, role: str, claims: Claims | str | None = None) -> Iterator[None]:
        """As the Data API does it: set the role and the claims, run, set them back. Text is sent as it is."""
        text = claims if isinstance(claims, str) else json.dumps(claims) if claims is not None else ""
        with self.connection.transaction():
            self.execute("select set_config('request.jwt.claims', %s, true)", text)
            self.execute(f"set local role {role}")
            yield
            self.execute("reset role")

    def execute(self, statement: str, *values: object) -> psycopg.Cursor[Any]:
        return self.connection.execute(statement, values or None)

    def value(self, statement: str, *values: object) -> Any:
        row = self.execute(statement, *values).fetchone()
        return row[0] if row else None

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self.execute(statement, *values).fetchall()


@pytest.fixture
def database(server: Postgres) -> Iterator[Database]:
    with psycopg.connect(server.url()) as connection, connection.transaction(force_rollback=True):
        yield Database(connection)


@dataclass(frozen=True)
class Stack:
    """A running embedded stack: `environment` as `ballast env` prints it."""

    home: Path
    environment: dict[str, str]
    tokens: dict[tuple[object, ...], tuple[float, str]] = field(default_factory=dict)

    def ballast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command against this stack and returns what it printed.

        Only what starts or ends processes is one itself: in this process a command costs a sixteenth.
        """
        if arguments[0] in {"up", "down", "reset"}:
            return subprocess.run(
                [Path(sys.executable).with_name("ballast"), *arguments],
                cwd=ROOT, env=os.environ | self.environment, capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
        result = CliRunner().invoke(ballast, arguments, env=self.environment)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    @property
    def other_origin(self) -> str:
        """That of a page on a port of its own, as a development server has it: the stack's `.env` names it."""
        return self.environment["CLERK_AUTHORIZED_PARTIES"].split(",")[1]

    def run_lines(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Runs what a page says to type, in the checkout, with this stack's variables."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=ROOT, env=os.environ | self.environment | {"PATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def token(self, user: str, organization: str | None = None, **wishes: Any) -> str:
        """A session token of a seeded person, good for 20 s. `wishes` are second_factor and lifetime."""
        asked = (user, organization, repr(wishes))
        minted, token = self.tokens.get(asked, (0.0, ""))
        if time.monotonic() - minted > TOKEN_LIFE_SECONDS - 20:
            token = ClerkClient(self.environment["CLERK_ISSUER"]).token(user, organization, **wishes)["token"]
            self.tokens[asked] = (time.monotonic(), token)
        return token


def start_stack(home: Path) -> Stack:
    """Starts a seeded stack in `home`, on free ports, and returns once it is healthy."""
    home.mkdir(exist_ok=True)
    (home / ".env").write_text(f"CLERK_AUTHORIZED_PARTIES=http://localhost:{free_ports(1)}\n")
    place = {"BALLAST_HOME": str(home), "BALLAST_PORT_BASE": str(free_port_block()), "BALLAST_JOBS": "off"}
    starting = Stack(home, place)
    started = starting.ballast("up", "--detach")
    assert started.returncode == 0, started.stdout + started.stderr
    return Stack(home, place | json.loads(starting.ballast("env", "--json").stdout))


@contextlib.contextmanager
def running_stack(home: Path) -> Iterator[Stack]:
    """A seeded stack of its own."""
    try:
        yield start_stack(home)
    finally:
        assert Stack(home, {"BALLAST_HOME": str(home)}).ballast("down").returncode == 0


@pytest.fixture(scope="session")
def stack(test_run: TestRun) -> Stack:
    """The seeded stack, started once for all tests that go through the API."""
    home = test_run.folder / "stack"
    return Stack(home, test_run.once("stack", lambda home: start_stack(home).environment))


@pytest.fixture(scope="session")
def connect(server: Postgres) -> Callable[[], psycopg.Connection[Any]]:
    """Opens a connection of its own as postgres, with autocommit: for tests about concurrency."""
    return lambda: psycopg.connect(server.url(), autocommit=True)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where Chromium is. Without one the browser tests are skipped, or fail where they must not be (.ci/run)."""
    found = subprocess.run([ROOT / "scripts/ci/find-chromium"], capture_output=True, text=True, check=False)
    if found.returncode:
        (pytest.fail if os.environ.get("CHROMIUM_REQUIRED") else pytest.skip)(found.stderr.strip())
    return found.stdout.strip()


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    """A headless Chromium. Not for the session: while it lives, Playwright's event loop keeps tests from running their own."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - most tests start sooner without it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=QUIET_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 that speaks the real protocol."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - takes half a second, which most tests save

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, aws: pytest.MonkeyPatch) -> str:
    name = f"backups-{secrets.token_hex(8)}"
    assert httpx.put(f"{s3}/{name}").is_success
    aws.setenv("AWS_ENDPOINT_URL", s3)
    return name


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of somebody who may use a bucket."""
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "5ecret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    return monkeypatch
