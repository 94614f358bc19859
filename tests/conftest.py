"""Fixtures of all tests: a PostgreSQL set up like hosted Supabase, and a whole running stack."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
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
# The files of a product, which work only in the product: tests/scripts/schema/test_product.py.
collect_ignore = ["product"]
Claims = dict[str, Any]
TOKEN_LIFE_SECONDS = 60
# For tests of README.md, which a product replaces.
needs_own_readme = pytest.mark.skipif(
    not any(file.read_text().startswith("# Ballast\n") for file in ROOT.glob("README.md")),
    reason="README.md is the product's own.",
)
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
    """Removes the variables of the developer's shell and `.env`, which name the checkout's stack, a database or a Clerk."""
    for file in ROOT.glob(".env*.example"):
        names = re.findall(r"^([A-Z_]+)=", file.read_text(), re.MULTILINE)
        for name in {*names} - {"BALLAST_CONTAINERS"}:  # `./scripts/test --stack containers` sets it
            os.environ.pop(name, None)
    os.environ["BALLAST_HOME"] = str(run.folder / "no-stack")


def _interrupt(*_: object) -> None:
    """SIGTERM ends the run like Ctrl-C."""
    raise KeyboardInterrupt


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The controller sends each process the run's folder."""
    run = node.config.stash[RUN]
    node.workerinput["ballast"] = {"folder": str(run.folder), "kept": run.kept and str(run.kept)}


def pytest_unconfigure(config: pytest.Config) -> None:
    if run := config.stash.get(RUN, None):
        run.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """There is one stack, so the files that use it run one at a time, also in several processes."""
    run = item.config.stash[RUN]
    if uses_the_stack(item):
        run.take_turn()
    answer = yield
    if nextitem is None or nextitem.path != item.path:
        run.end_turn()
    return answer


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --table, skips the files that neither name the table nor test each table: importing all takes half a minute."""
    table = config.getoption("--table")
    if not table or collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    text = f"{collection_path.name} {collection_path.read_text()}"
    return None if table in text or "tenant_tables" in text else True


def concerns(item: pytest.Item, table: str) -> bool:
    """Whether the test, its file or one of its parameters is named after the table."""
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
    # Files that use the stack come first: one process runs them, while the others start with the rest and steal from its end.
    on_the_stack = {item.path for item in items if uses_the_stack(item)}
    items.sort(key=lambda item: item.path not in on_the_stack)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def free_port_block() -> int:
    """A base B such that the ports B to B+6 are free now: all ports that a stack may use."""
    return free_ports(LAST_PORT_OFFSET + 1)


@pytest.fixture(scope="session")
def home(test_run: TestRun) -> Path:
    """A folder for this process. It is not inside pytest's folder, which only root may enter if we are root."""
    folder = test_run.folder / f"home-{os.getpid()}"
    folder.mkdir(mode=0o755)
    return folder


@dataclass(frozen=True)
class ServerElsewhere:
    """A server that this run did not start. `address` is its URL for postgres; its other users have the same password."""

    address: str

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        parts = urlsplit(self.address)
        return urlunsplit(
            parts._replace(netloc=f"{user}:{parts.password}@{parts.hostname}:{parts.port}", path=f"/{database}")
        )


@dataclass(frozen=True)
class OwnDatabase(Postgres):
    """A database of this process, on a server that all processes of the run share."""

    database: str = "postgres"

    def url(self, user: str = "postgres", database: str | None = None) -> str:
        return super().url(user, database or self.database)


@contextlib.contextmanager
def own_database(server: Postgres, template: str = MIGRATED_DATABASE) -> Iterator[OwnDatabase]:
    """A copy of a database, which is dropped when the block ends."""
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
    """A connection as postgres in a transaction that is rolled back, with a method to act as another role."""

    connection: psycopg.Connection[Any]

    @contextlib.contextmanager
    def acting(self, role: str, claims: Claims | str | None = None) -> Iterator[None]:
        """Sets the role and the claims like the Data API, and resets them after the block. A string is sent unchanged."""
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
        """Runs the command against this stack and returns its output.

        Only commands that start or stop processes run in their own process: in this process a command is 16 times as fast.
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
        """The origin of a page on another port, such as a development server's. The stack's `.env` names it."""
        return self.environment["CLERK_AUTHORIZED_PARTIES"].split(",")[1]

    def run_lines(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Runs the commands of a page in the checkout, with this stack's variables."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=ROOT, env=os.environ | self.environment | {"PATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def token(self, user: str, organization: str | None = None, **options: Any) -> str:
        """A session token of a user, valid for at least 20 s. `options` are second_factor and lifetime."""
        key = (user, organization, repr(options))
        minted_at, token = self.tokens.get(key, (0.0, ""))
        if time.monotonic() - minted_at > TOKEN_LIFE_SECONDS - 20:
            token = ClerkClient(self.environment["CLERK_ISSUER"]).token(user, organization, **options)["token"]
            self.tokens[key] = (time.monotonic(), token)
        return token


def start_stack(home: Path) -> Stack:
    """Starts a seeded stack in `home`, on free ports. Returns once it is healthy."""
    home.mkdir(exist_ok=True)
    (home / ".env").write_text(f"CLERK_AUTHORIZED_PARTIES=http://localhost:{free_ports(1)}\n")
    place = {"BALLAST_HOME": str(home), "BALLAST_PORT_BASE": str(free_port_block()), "BALLAST_JOBS": "off"}
    starting = Stack(home, place)
    started = starting.ballast("up", "--detach")
    assert started.returncode == 0, started.stdout + started.stderr
    return Stack(home, place | json.loads(starting.ballast("env", "--json").stdout))


@contextlib.contextmanager
def running_stack(home: Path) -> Iterator[Stack]:
    """Runs another seeded stack for the block."""
    try:
        yield start_stack(home)
    finally:
        assert Stack(home, {"BALLAST_HOME": str(home)}).ballast("down").returncode == 0


@pytest.fixture(scope="session")
def stack(test_run: TestRun) -> Stack:
    """The seeded stack, started once for all tests of the run that use it."""
    home = test_run.folder / "stack"
    return Stack(home, test_run.once("stack", lambda home: start_stack(home).environment))


@pytest.fixture(scope="session")
def connect(server: Postgres) -> Callable[[], psycopg.Connection[Any]]:
    """Returns a function that opens a new connection as postgres with autocommit, for tests of concurrency."""
    return lambda: psycopg.connect(server.url(), autocommit=True)


def wait_until_blocked(observer: psycopg.Connection[Any], connection: psycopg.Connection[Any]) -> None:
    """Returns once the connection waits for a lock. Raises TimeoutError after 10 seconds."""
    waiting = "select exists (select from pg_locks where not granted and pid = %s)"
    for _ in range(1000):
        if observer.execute(waiting, (connection.info.backend_pid,)).fetchone() == (True,):
            return
        time.sleep(0.01)
    raise TimeoutError("the connection did not wait for a lock within 10 seconds")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The path of Chromium. Without Chromium the browser tests are skipped, or fail in .ci/run."""
    found = subprocess.run([ROOT / "scripts/ci/find-chromium"], capture_output=True, text=True, check=False)
    if found.returncode:
        (pytest.fail if os.environ.get("CHROMIUM_REQUIRED") else pytest.skip)(found.stderr.strip())
    return found.stdout.strip()


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    """A headless Chromium for one module: while Playwright's event loop runs, other tests cannot run their own."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - most tests do not need it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=QUIET_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an S3 server."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - the import takes half a second, and most tests do not need it

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
    """Sets the variables that give access to a bucket."""
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "5ecret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    return monkeypatch
