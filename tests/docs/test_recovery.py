"""docs/recovery.md: every command, run unchanged on real databases and real backups. Each section runs in one shell."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg
import pyrage
import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner
from moto.core.authorization import enable_iam_authentication
from psycopg import sql
from pyrage import x25519

from scripts.backup import checks, programs, structure
from scripts.backup.checksum import add_checksum
from scripts.backup.manifest import SCHEMAS
from scripts.backup.store import BackupStore
from scripts.cli import ballast
from tests.conftest import ROOT, Database, Stack
from tests.people import ADA, ADA_EMAILS, SIMILAR, delete_broadcasts, scan
from tests.schema import remove
from tests.scripts.conftest import Vault
from tests.service.outside import Outside, running_outside

pytestmark = pytest.mark.thorough

PAGE = (ROOT / "docs/recovery.md").read_text()
CODE_BLOCK = re.compile(r"^ *```([^\n]+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SETTING_UP = "Setting it up"
ROWS = "Rows of a table, or of one customer"
NEW_PROJECT = "Into a new project"
SAME_PROJECT = "Over the existing project"
AFTERWARDS = "After every restore"
WITHOUT_BALLAST = "Without Ballast"
DRILLS = "Drills"
KEYS = "Keys"
BAD_ROW = "A row that no server accepts"


def sections() -> dict[str, str]:
    """The text of each section, by heading."""
    return dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def blocks(text: str, language: str) -> dict[str, str]:
    """The dedented fenced blocks of a language, by name: the text after the language, or a number."""
    found = [(tag.split(), textwrap.dedent(body)) for tag, body in CODE_BLOCK.findall(text)]
    chosen = [(words[1:], body) for words, body in found if words[0] == language]
    return {" ".join(name) or str(number): body for number, (name, body) in enumerate(chosen)}


@pytest.fixture(scope="session")
def tools() -> None:
    """Requires age and zstd. Without them the tests are skipped; with RECOVERY_TOOLS_REQUIRED (.ci/run) they fail."""
    found = subprocess.run([ROOT / "scripts/ci/install-recovery-tools"], capture_output=True, text=True, check=False)
    if found.returncode:
        (pytest.fail if os.environ.get("RECOVERY_TOOLS_REQUIRED") else pytest.skip)(found.stderr.strip())


@pytest.fixture(scope="module")
def populated_database(populated_database: str, lasting_database: Callable[..., str]) -> str:
    """The same database without the tests' own table, which `ballast migrate check` would report as drift."""
    url = lasting_database(populated_database)
    remove(url)
    return url


@pytest.fixture
def clerk() -> Iterator[Outside]:
    with running_outside() as server:
        server.answer = lambda *_: (200, {}, b'{"deleted": true}')
        yield server


@dataclass(frozen=True)
class Operator:
    """An operator who follows the page, in a folder with a key. `target` is an empty project."""

    vault: Vault
    folder: Path
    target: str
    clerk: Outside
    has_ballast: bool = True

    @property
    def environment(self) -> dict[str, str]:
        with psycopg.connect(self.vault.url) as connection:
            place = programs.choose_programs(connection).folder
        own = [str(Path(sys.executable).parent)] if self.has_ballast else []
        given = {name: value for name, value in self.vault.environment.items() if value is not None}
        path = os.pathsep.join([str(place), *own, "/usr/local/bin", "/usr/bin", "/bin"])
        without = {"BACKUP_IDENTITY", "SUPABASE_URL", "SENTRY_DSN"}
        return {name: value for name, value in (os.environ | given).items() if name not in without} | {
            "PATH": path, "NEW_DATABASE_URL": self.target, "CLERK_API_URL": self.clerk.url, "CLERK_SECRET_KEY": "sk_test_recovery",
        }  # fmt: skip

    def try_to_follow(
        self, heading: str, *, change: tuple[str, str] = ("", ""), **more: str
    ) -> subprocess.CompletedProcess[str]:
        commands = "\n".join(blocks(sections()[heading], "sh").values())
        assert commands
        return self.run(re.sub(*change, commands) if change[0] else commands, **more)

    def run(self, commands: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder, env=self.environment | more, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def follow(self, heading: str, **more: str) -> str:
        """Runs a section's commands, which must succeed, and returns their output."""
        ran = self.try_to_follow(heading, **more)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def erase_ada(self) -> None:
        words = ["person", "erase", ADA, "--yes"]
        result = CliRunner().invoke(ballast, words, env=self.environment)
        assert result.exit_code == 0, result.output


@pytest.fixture
def operator(
    tools: None, folder_vault: Vault, new_database: Callable[..., str], tmp_path: Path, clerk: Outside
) -> Operator:
    return create_operator(folder_vault, new_database(), tmp_path, clerk)


@pytest.fixture
def operator_with_a_bucket(
    tools: None, bucket_vault: Vault, new_database: Callable[..., str], tmp_path: Path, clerk: Outside
) -> Operator:
    return create_operator(bucket_vault, new_database(), tmp_path, clerk)


def create_operator(vault: Vault, target: str, tmp_path: Path, clerk: Outside) -> Operator:
    folder = tmp_path / "operator"
    folder.mkdir()
    (folder / "backup-key.txt").write_text(f"# as age-keygen writes it\n{vault.identity}\n")
    return Operator(vault, folder, target, clerk)


def rows(url: str, table: str = "public.projects") -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(f"select t::text from {table} as t order by 1".encode()).fetchall()


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def traces_of_ada(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return scan(Database(connection), ADA, *ADA_EMAILS)


def require_anon_is_refused(url: str) -> None:
    """Asserts that the role of the publishable key cannot read any table or view of public."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = connection.execute(
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm')"
        ).fetchall()
        assert len(names) >= 8
        connection.execute("set role anon")
        for (name,) in names:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(sql.SQL("select count(*) from public.{}").format(sql.Identifier(name)))


# --- the page itself


def test_these_tests_run_every_command_of_the_page() -> None:
    followed = {SETTING_UP, ROWS, NEW_PROJECT, SAME_PROJECT, AFTERWARDS, WITHOUT_BALLAST, DRILLS, KEYS, BAD_ROW}
    assert {heading for heading, text in sections().items() if blocks(text, "sh")} == followed
    fences = len(re.findall(r"^ *```", PAGE, re.MULTILINE))
    assert fences % 2 == 0
    parsed = sum(len(blocks(PAGE, language)) for language in ("sh", "sql", "json", "console"))
    assert parsed == fences // 2 - 1  # the other one is the drawing of the store


def test_every_message_on_the_page_exists_in_the_code() -> None:
    messages = re.findall(r"^\| `([^`]+)` \|", sections()["When something fails"], re.MULTILINE)
    assert len(messages) > 10
    places = [
        *(ROOT / "scripts/backup").glob("*.*"),
        ROOT / "scripts/cli/options.py",
        ROOT / "scripts/cli/backup.py",
        ROOT / "scripts/schema/database.py",
        ROOT / "service/object_store.py",
    ]
    source = "\n".join(place.read_text() for place in places)
    assert [message for message in messages if message not in source] == []


def test_every_link_of_the_page_has_a_target() -> None:
    def anchors(text: str) -> set[str]:
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = target.partition("#")
        text = (ROOT / "docs" / file).read_text() if file else PAGE
        assert not anchor or anchor in anchors(text), target


def test_the_queries_of_the_page_work(populated_database: str, new_database: Callable[..., str]) -> None:
    with psycopg.connect(new_database(populated_database)) as connection:
        query, setting = blocks(PAGE, "sql").values()
        [[status, *_]] = connection.execute(query.encode()).fetchall()
        assert status == "red"  # no backup was recorded
        connection.execute(setting.encode())


def test_missing_tools_are_reported_with_how_to_install_them(tmp_path: Path) -> None:
    words = [shutil.which("bash") or "bash", ROOT / "scripts/ci/install-recovery-tools"]
    ran = subprocess.run(words, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "install the packages age and zstd" in ran.stderr


# --- the procedures


def test_the_setup_makes_a_backup_that_either_key_decrypts(operator_with_a_bucket: Operator) -> None:
    operator = operator_with_a_bucket
    for file in operator.folder.iterdir():
        file.unlink()
    output = operator.follow(SETTING_UP, ENVIRONMENT="production", BACKUP_RECIPIENTS="")
    assert "proven" in output
    [name] = operator.vault.store.names()
    sealed = b"".join(operator.vault.store.stream(name, "dump.pgc.zst.age"))
    for key in ("backup-key.txt", "offline-key.txt"):
        assert (operator.folder / key).stat().st_mode & 0o077 == 0
        opened = subprocess.run(
            ["age", "--decrypt", "--identity", operator.folder / key], input=sealed, capture_output=True, check=False
        )
        assert opened.returncode == 0, opened.stderr


def test_deleted_rows_are_restored_and_later_writes_stay(operator: Operator) -> None:
    url = operator.vault.url
    before, members = rows(url), rows(url, "public.organization_memberships")
    backup = operator.vault.back_up()
    change(
        url,
        "delete from public.projects",
        "insert into public.projects (organization_id, title) select id, 'Written since' from public.organizations where name = 'Globex'",
    )
    assert before
    operator.follow(ROWS, BACKUP=backup)
    after = rows(url)
    assert set(before) < set(after)
    assert len(after) == len(before) + 1
    assert rows(url, "public.organization_memberships") == members


def test_a_damaged_database_is_restored_into_a_new_project(operator: Operator) -> None:
    url, target = operator.vault.url, operator.target
    backup = operator.vault.back_up()
    before = rows(url, "public.organizations")
    operator.erase_ada()
    change(url, "delete from public.projects")
    operator.follow(NEW_PROJECT, BACKUP=backup)
    assert rows(target, "public.organizations") == before
    assert rows(target)
    assert traces_of_ada(target).keys() <= {"app.erasure_log"}
    require_anon_is_refused(target)


def test_a_backup_replaces_the_existing_project(operator: Operator) -> None:
    url = operator.vault.url
    before = rows(url)
    backup = operator.vault.back_up()
    change(url, "drop table public.projects cascade", "create table public.test_unwanted ()")
    output = operator.follow(SAME_PROJECT, BACKUP=backup, PROJECT=url.rpartition("/")[2])
    assert len(operator.vault.store.names()) == 2, output
    assert rows(url) == before
    with psycopg.connect(url) as connection:
        assert connection.execute("select to_regclass('public.test_unwanted')").fetchone() == (None,)
    require_anon_is_refused(url)


def test_after_a_restore_erasures_are_repeated_and_the_cache_is_empty(
    operator: Operator, populated_database: str, new_database: Callable[..., str], stack: Stack
) -> None:
    operator.erase_ada()
    operator.clerk.requests.clear()
    restored = new_database(populated_database)
    delete_broadcasts(restored)
    assert len(traces_of_ada(restored)) > 3
    redis = {name: stack.environment[name] for name in ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN")}
    assert ask_redis(redis, "SET", "old", "1") == "OK"
    output = operator.follow(AFTERWARDS, NEW_DATABASE_URL=restored, **redis)
    assert traces_of_ada(restored) == {}
    assert operator.clerk.requests == [f"/v1/users/{ADA}"]
    assert ask_redis(redis, "EXISTS", "old") == 0
    assert "proven" in output


def test_an_older_backup_brings_no_erased_person_back(operator: Operator) -> None:
    """The erasure and its ledger are those of `ballast person erase`; it is repeated by restore, drill and extract."""
    vault, output = operator.vault, operator.folder / "acme.sql"
    backup = vault.back_up()
    operator.erase_ada()
    vault.back_up()
    assert vault.store.folder is not None
    assert len(list((vault.store.folder / "erasures").iterdir())) == 1
    vault.run_to_end("restore", backup, "--to", operator.target)
    assert traces_of_ada(operator.target).keys() <= {"app.erasure_log"}
    report = json.loads(vault.run_to_end("drill", backup, "--json").stdout)
    details = {each["name"]: each["detail"] for each in report["checks"]}
    assert details["erasures replayed"] == "entries in the ledger: 1; people in the backup, erased again: 1"
    vault.run_to_end("extract", backup, "--organization", "org_acme", "--output", str(output))
    text = output.read_text()
    for alike in (*SIMILAR, *SIMILAR.values()):  # of other people, who stay
        assert alike in text
        text = text.replace(alike, "")
    assert [word for word in (ADA, *ADA_EMAILS) if word in text] == []


def ask_redis(environment: dict[str, str], *command: str) -> Any:
    headers = {"Authorization": f"Bearer {environment['UPSTASH_REDIS_REST_TOKEN']}"}
    return httpx.post(environment["UPSTASH_REDIS_REST_URL"], headers=headers, json=command).json()["result"]


def test_a_manual_drill_proves_the_backup(operator: Operator) -> None:
    operator.vault.back_up()
    assert "proven" in operator.follow(DRILLS)


def test_rotated_keys_decrypt_the_new_and_the_old_backup(operator: Operator) -> None:
    old = operator.vault.back_up()
    (operator.folder / "offline-key.txt").write_text(str(x25519.Identity.generate()))
    output = operator.follow(KEYS, BACKUP=old)
    assert output.count(": proven") == 2
    [new] = set(operator.vault.store.names()) - {old}
    refused = operator.vault.run("verify", new)  # with the old key
    assert "not encrypted for this key" in refused.stderr


# --- without Ballast


@pytest.fixture
def bystander(operator_with_a_bucket: Operator) -> Operator:
    """An operator with the key and the bucket's content, but without Ballast. Ada was erased after the backup."""
    vault, folder = operator_with_a_bucket.vault, operator_with_a_bucket.folder
    name = vault.back_up()
    operator_with_a_bucket.erase_ada()
    bucket, prefix = vault.backup_url.removeprefix("s3://").split("/", 1)
    fetch(bucket, f"{prefix}/database/{name}/", folder / "backup")
    fetch(bucket, f"{prefix}/erasures/", folder / "erasures")
    vault.store.discard(name)
    own = operator_with_a_bucket
    return Operator(vault, folder, own.target, own.clerk, has_ballast=False)


def fetch(bucket: str, prefix: str, folder: Path) -> None:
    """As `aws s3 cp --recursive` does."""
    folder.mkdir()
    client = boto3.client("s3")
    for each in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        client.download_file(bucket, each["Key"], str(folder / each["Key"].removeprefix(prefix)))


def test_a_backup_is_recovered_with_packaged_programs_only(bystander: Operator) -> None:
    assert shutil.which("ballast", path=bystander.environment["PATH"]) is None
    output = bystander.follow(WITHOUT_BALLAST)
    assert output.count('"checksum"') == 1
    assert output.count('"sha256"') == 3
    assert "differs" not in output
    assert "open" not in output
    backup = bystander.folder / "backup"
    manifest = json.loads((backup / "manifest.json").read_text())
    assert len((backup / "counts").read_text().splitlines()) == len(manifest["rows"])
    with psycopg.connect(bystander.target) as connection:
        hidden = "select banned, full_name from public.profiles where clerk_user_id = %s"
        assert connection.execute(hidden, [ADA]).fetchall() in ([], [(True, None)])
    require_anon_is_refused(bystander.target)
    environment = bystander.vault.environment | {
        "CLERK_API_URL": bystander.clerk.url,
        "CLERK_SECRET_KEY": "sk_test_recovery",
    }
    result = CliRunner().invoke(ballast, ["person", "replay", "--database-url", bystander.target], env=environment)
    assert result.exit_code == 0, result.output


def test_a_recovery_without_ballast_passes_the_checks_of_a_drill(bystander: Operator) -> None:
    for entry in (
        bystander.folder / "erasures"
    ).iterdir():  # without subjects, so that the compared rows stay unchanged
        entry.write_text('{"salt": "", "subject_hash": "", "requested_at": "2026-01-01T00:00:00Z", "receipt": null}')
    bystander.follow(WITHOUT_BALLAST)
    manifest = checks.Manifest.model_validate_json((bystander.folder / "backup/manifest.json").read_bytes())
    assert manifest.structure.keys() > {"grant", "policy"}
    stored = (bystander.folder / f"backup/{manifest.definitions}").read_bytes()
    key = x25519.Identity.from_str(bystander.vault.identity)
    definitions = structure.JSON.validate_json(pyrage.decrypt(stored, [key]))
    with psycopg.connect(bystander.target, autocommit=True) as connection:
        results = [
            *checks.compare_with_manifest(connection, manifest, definitions),
            checks.check_tenant_isolation(connection),
        ]
    assert [(each.name, each.detail) for each in results if not each.passed] == []


def test_without_the_first_script_every_table_is_open_and_the_page_detects_it(bystander: Operator) -> None:
    ran = bystander.try_to_follow(WITHOUT_BALLAST, change=(r"sql_only before.sql .*\n", ""))
    assert ran.returncode == 0, ran.stderr
    assert "open: organizations" in ran.stdout
    assert "differs" not in ran.stdout
    with psycopg.connect(bystander.target) as connection:
        connection.execute("set role anon")
        connection.execute("select count(*) from public.organizations")


def test_a_row_of_the_dump_can_be_looked_at(bystander: Operator) -> None:
    decrypt = list(blocks(sections()[WITHOUT_BALLAST], "sh").values())[:2]
    [look] = blocks(sections()[BAD_ROW], "sh").values()
    commands = [*decrypt, *(look.replace("1 + 3", f"1 + {row}") for row in (1, 2, 3))]
    heading, *lines = bystander.run("\n".join(commands)).stdout.splitlines()[-6:]
    assert heading.startswith("COPY public.projects (id, organization_id, ")
    shown = {line.partition("\t")[0] for line in lines} - {heading}
    with psycopg.connect(bystander.vault.url) as connection:
        projects = connection.execute("select id::text from public.projects").fetchall()
    assert len(shown) == 3
    assert shown <= {each for (each,) in projects}


def test_a_damaged_file_stops_the_recovery(bystander: Operator) -> None:
    dump = bystander.folder / "backup/dump.pgc.zst.age"
    body = bytearray(dump.read_bytes())
    body[len(body) // 2] ^= 1
    dump.write_bytes(body)
    with_checksums = bystander.try_to_follow(WITHOUT_BALLAST)
    assert with_checksums.returncode == 1
    assert re.fullmatch(r'\{"checksum": "[0-9a-f]{64}",\n', with_checksums.stdout)  # only the manifest is undamaged
    without_checksums = bystander.try_to_follow(WITHOUT_BALLAST, change=(r"(?s)for file.*?done\n", ""))
    assert "failed to decrypt" in without_checksums.stderr
    assert without_checksums.returncode == 1
    with psycopg.connect(bystander.target) as connection:
        assert connection.execute("select from pg_namespace where nspname = any(%s)", [[*SCHEMAS[1:]]]).fetchall() == []
    manifest = bystander.folder / "backup/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"public.', b'"publik.', 1))
    refused = bystander.try_to_follow(WITHOUT_BALLAST)
    assert (refused.returncode, refused.stdout) == (1, "")


# --- the store


def test_s3_accepts_the_rules_of_the_bucket(s3: str, aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL", s3)
    given = {name: json.loads(body) for name, body in blocks(PAGE, "json").items()}
    client = boto3.client("s3")
    place = {"LocationConstraint": "eu-central-1"}
    name = f"backups-{secrets.token_hex(8)}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True, CreateBucketConfiguration=place)
    client.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=given["lock.json"])
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=given["lifecycle.json"])
    stored = client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    assert [rule["ID"] for rule in stored] == [rule["ID"] for rule in given["lifecycle.json"]["Rules"]]
    locked_days = given["lock.json"]["Rule"]["DefaultRetention"]["Days"]
    assert given["lifecycle.json"]["Rules"][1]["NoncurrentVersionExpiration"]["NoncurrentDays"] > locked_days


@dataclass(frozen=True)
class Account:
    """A bucket, and the page's two users with their policies enforced."""

    vault: Vault
    bucket: str
    keys: dict[str, dict[str, str]]

    def run(self, user: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs `ballast backup …` in its own process, because boto3 keeps the first keys that it read."""
        given = {name: value or "" for name, value in (os.environ | self.vault.environment).items()} | self.keys[user]
        command = [Path(sys.executable).with_name("ballast"), "backup", *words]
        return subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=300)

    def client(self, user: str) -> Any:
        keys = self.keys[user]
        return boto3.client(
            "s3",
            region_name="eu-central-1",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )


@pytest.fixture
def account(
    bucket: str, populated_database: str, new_database: Callable[..., str], tmp_path: Path
) -> Iterator[Account]:
    iam = boto3.client("iam", region_name="us-east-1")
    keys: dict[str, dict[str, str]] = {}
    for name in ("writer", "reader"):
        user = f"{name}-{bucket}"
        policy = json.loads(blocks(PAGE, "json")[f"{name}.json"].replace("your-backups", bucket))
        for statement in policy["Statement"]:
            # To delete several objects, moto checks the permission on the bucket, whereas S3 checks it on each object.
            if "s3:DeleteObject" in statement["Action"]:
                statement["Resource"] = [statement["Resource"], f"arn:aws:s3:::{bucket}"]
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName=name, PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        keys[name] = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    with enable_iam_authentication():
        yield Account(Vault(new_database(populated_database), f"s3://{bucket}/production", tmp_path), bucket, keys)


def test_the_two_users_may_do_what_the_page_states(account: Account, tmp_path: Path) -> None:
    commands = [
        ("writer", "run"), ("writer", "list"), ("reader", "list"), ("reader", "verify"), ("reader", "drill"),
        ("reader", "extract", "latest", "--organization", "org_acme", "--output", str(tmp_path / "acme.sql")),
        ("writer", "run"),
    ]  # fmt: skip
    for user, *words in commands:
        done = account.run(user, *words)
        assert done.returncode == 0, (user, words, done.stdout, done.stderr)


def test_the_writer_deletes_expired_backups_and_failed_uploads(account: Account) -> None:
    made = json.loads(account.run("writer", "run", "--json").stdout)
    old = "20200101T020003Z-1a2b3c4d"
    client = account.client("writer")
    manifest = add_checksum(json.dumps(made | {"name": old, "created_at": "2020-01-01T02:00:03Z"}).encode())
    client.put_object(Bucket=account.bucket, Key=f"production/database/{old}/manifest.json", Body=manifest)
    client.create_multipart_upload(Bucket=account.bucket, Key=f"production/database/{old}/dump.pgc.zst.age")
    assert len(client.list_multipart_uploads(Bucket=account.bucket)["Uploads"]) == 1  # moto dates every upload to 2010
    done = account.run("writer", "prune", "--daily", "1", "--weekly", "0", "--monthly", "0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["going"] == [old]
    left = account.run("writer", "list").stdout
    assert made["name"] in left
    assert old not in left
    assert "Uploads" not in client.list_multipart_uploads(Bucket=account.bucket)


def test_the_writer_cannot_read_dumps_and_the_reader_cannot_make_or_delete_backups(account: Account) -> None:
    made = json.loads(account.run("writer", "run", "--json").stdout)
    for user, words in (("writer", ("verify",)), ("reader", ("run",))):
        refused = account.run(user, *words)
        assert refused.returncode == 1
        assert ": 403." in refused.stderr, refused.stderr
    key = f"production/database/{made['name']}/manifest.json"
    for forbidden in (account.client("reader").delete_object, account.client("reader").put_object):
        with pytest.raises(ClientError, match="AccessDenied"):
            forbidden(Bucket=account.bucket, Key=key)


def test_uploads_carry_the_checksum_that_a_locked_bucket_requires(aws: pytest.MonkeyPatch) -> None:
    sent: list[str | None] = []

    def answer(_: str, headers: Any, __: bytes) -> tuple[int, dict[str, str], bytes]:
        sent.append(headers.get("x-amz-checksum-sha256"))
        return 200, {"ETag": '"1"'}, b""

    with running_outside() as server:
        server.answer = answer
        aws.setenv("AWS_ENDPOINT_URL", server.url)
        aws.setenv("AWS_CHECKSUM_ALGORITHM", "SHA256")
        BackupStore("s3://bucket/prefix").put("20261124T020003Z-1a2b3c4d", "before.sql", b"select 1;")
    assert sent == [base64.b64encode(hashlib.sha256(b"select 1;").digest()).decode()]
