"""`ballast new table`: what a table of the product needs, in the shape of the example `projects`, tests included.

The files are made of the templates in scripts/schema/table_templates/.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import click
import jinja2

from scripts.errors import Failure
from scripts.schema import migrations

TEMPLATES = Path(__file__).with_name("table_templates")
REGISTRY = "functions/5_personal_data/registry.sql"
# As .sqlfluff has it.
LINE_LENGTH = 140
# PostgreSQL's names end at 63 characters; the longest made of a table's is that of an index, 31 longer.
MAX_NAME_LENGTH = 32
OWN_COLUMNS = ("id", "organization_id", "created_by", "created_at", "updated_at")
SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
# Parameters of PostgREST's: by a column of that name nobody could filter. Others of them are reserved words.
PARAMETERS = ("columns", "on_conflict")
# What entries of the audit trail are about already. Clients log what begins with `client.` (app.audit_prefixes).
AUDITED_RESOURCES = ("client", "invitation", "member", "organization", "personal_data", "profile", "project")
# Who may what with projects.
ROLES = {
    "read": ("owner", "admin", "member", "viewer"),
    "create": ("owner", "admin", "member"),
    "update": ("owner", "admin", "member"),
    "delete": ("owner", "admin"),
}
# What SQL cannot take as a name without quotes: categories R and T of pg_get_keywords(), of PostgreSQL 18.
RESERVED = frozenset({
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary", "both",
    "case", "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create", "cross",
    "current_catalog", "current_date", "current_role", "current_schema", "current_time", "current_timestamp",
    "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end", "except", "false", "fetch", "for",
    "foreign", "freeze", "from", "full", "grant", "group", "having", "ilike", "in", "initially", "inner", "intersect",
    "into", "is", "isnull", "join", "lateral", "leading", "left", "like", "limit", "localtime", "localtimestamp",
    "natural", "not", "notnull", "null", "offset", "on", "only", "or", "order", "outer", "overlaps", "placing",
    "primary", "references", "returning", "right", "select", "session_user", "similar", "some", "symmetric",
    "system_user", "table", "tablesample", "then", "to", "trailing", "true", "union", "unique", "user", "using",
    "variadic", "verbose", "when", "where", "window", "with",
})  # fmt: skip


class TableRefused(Failure):
    """What was asked for cannot be a table of ours: nothing was written."""


class Type(NamedTuple):
    """A type that a column may have: what its comment says, what holds of its values, what it is when nothing is said.

    The last two are values as TOML has them, for tests.
    """

    description: str
    check: str
    default: str
    example: str
    other: str


# Infinity and NaN are refused: JSON has no word for them.
TYPES = {
    "text": Type("1 to 200 characters", "length({0}) between 1 and 200", "", '"A {unique}"', '"Changed {unique}"'),
    "integer": Type("a whole number", "", "", "1", "2"),
    "bigint": Type("a whole number", "", "", "1", "2"),
    "numeric": Type("a number, less than 10^15 either way", "abs({0}) < 1e15", "", "1.5", "2.5"),
    "boolean": Type("yes or no", "", "false", "true", "false"),
    "date": Type("a day", "isfinite({0})", "", '"2026-01-31"', '"2026-02-28"'),
    "timestamptz": Type("a moment", "isfinite({0})", "", '"2026-01-31T12:00:00Z"', '"2026-02-28T12:00:00Z"'),
    "uuid": Type("an id", "", "", '"00000000-0000-4000-8000-000000000001"', '"00000000-0000-4000-8000-000000000002"'),
    "jsonb": Type(
        "an object of at most 64 KiB",
        "jsonb_typeof({0}) = 'object' and octet_length({0}::text) <= 65536",
        "'{}'",
        '{ note = "A" }',
        '{ note = "Changed" }',
    ),
}


class Column(NamedTuple):
    """A column of the product's."""

    name: str
    type: str
    nullable: bool

    @property
    def kind(self) -> Type:
        return TYPES[self.type]

    @property
    def definition(self) -> str:
        """The column in `create table`."""
        words = f"{self.name} {self.type}"
        if not self.nullable:
            words += f" not null default {self.kind.default}" if self.kind.default else " not null"
        if not self.kind.check:
            return words
        check = f"check ({self.kind.check.format(self.name)})"
        return f"{words} {check}" if len(words) + len(check) + len("   ,") <= LINE_LENGTH else f"{words}\n  {check}"

    @property
    def comment(self) -> str:
        null = " Null where there is none." if self.nullable else ""
        return f"{_format_title(self.name)}, {self.kind.description}.{null}"


@dataclass(frozen=True)
class Table:
    """A table to be made, in public."""

    name: str
    columns: tuple[Column, ...]

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")

    @property
    def title(self) -> str:
        return _format_title(self.name)

    @property
    def listed(self) -> str:
        return ", ".join(column.name for column in self.columns)

    @property
    def exported(self) -> str:
        names = ("id", "organization_id", *(column.name for column in self.columns), "created_at", "updated_at")
        return ", ".join(f"'t.{name}'" for name in names)

    @property
    def headline(self) -> str | None:
        """The column by which people know a row."""
        return next((column.name for column in self.columns if column.type == "text"), None)

    @property
    def resource(self) -> str | None:
        """What the audit trail calls a row; None where app.audit() finds the word itself."""
        word = singular(self.name)
        if word in AUDITED_RESOURCES:
            return self.name
        return None if word == self.name.rstrip("s") else word


class Decision(NamedTuple):
    """A line to be read by whoever made the table: where it is, and what there is to decide."""

    path: str
    number: int
    question: str


@click.group(epilog='Example: ballast new table invoices --columns "number:text amount:numeric due:date"')
def new() -> None:
    """Make what a product adds."""


@new.command("table", epilog='Example: ballast new table invoices --columns "number:text amount:numeric due:date"')
@click.argument("name")
@click.option("--columns", required=True, metavar="'NAME:TYPE …'", help="The table's own columns, with their types.")
def table_command(name: str, columns: str) -> None:
    """Write a table NAME of the schema public, whose rows belong to an organization.

    It has the shape of the example `projects`: id, organization_id, created_by, your columns, created_at, updated_at.
    With it come its policies, permissions of each role, audit trail, broadcasts, entry in the registry of personal
    data, and what tests write to it. docs/extend.md goes on from there.

    TYPE is text, integer, bigint, numeric, boolean, date, timestamptz, uuid or jsonb; a `?` behind it allows null.
    A boolean is false and a jsonb an empty object where nothing is said, unless null is allowed.
    """
    table = parse_table(name, columns)
    paths = write(table)
    click.echo("\n".join(f"Wrote {path}" for path in paths))
    click.echo("\nRead these lines, and make them yours:")
    for line in list_decisions(table, paths):
        click.echo(f"  {line.path}:{line.number}  {line.question}")
    click.echo("\nThen:\n  ballast migrate up\n  ballast types\n  ./scripts/test tests/db tests/api")
    click.echo("\nBefore you merge it, if Supabase deploys your migrations:\n  ballast migrate bundle")


def parse_table(name: str, columns: str) -> Table:
    """The table that was asked for. Raises TableRefused."""
    # Without digits, for permissions have none (public.role_permissions).
    if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name) or len(name) > MAX_NAME_LENGTH:
        raise TableRefused(
            f"{name!r} cannot name a table: use lower-case words without digits, joined by _, such as purchase_orders, "
            f"and at most {MAX_NAME_LENGTH} characters."
        )
    if name in RESERVED:
        raise TableRefused(f"{name} is a word of SQL's own: choose another name, such as {name}_items.")
    found = tuple(map(_parse_column, columns.split()))
    if not found:
        raise TableRefused("A table needs a column of its own: give --columns 'title:text'.")
    names = [column.name for column in found]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise TableRefused(f"{', '.join(twice)} is there more than once: name each column once.")
    return Table(name, found)


def _parse_column(text: str) -> Column:
    name, _, words = text.partition(":")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > MAX_NAME_LENGTH:
        raise TableRefused(
            f"{name!r} cannot name a column: use lower-case words joined by _, such as due_on, "
            f"and at most {MAX_NAME_LENGTH} characters."
        )
    if name in OWN_COLUMNS:
        raise TableRefused(f"{name} is a column of every table: leave it out.")
    if name in RESERVED or name in SYSTEM_COLUMNS or name in PARAMETERS:
        raise TableRefused(f"{name} means something to PostgreSQL or PostgREST already: choose another name.")
    if (type_name := words.removesuffix("?")) not in TYPES:
        raise TableRefused(
            f"{text!r} has no type that is known here: write {name}:TYPE with one of {', '.join(TYPES)}. "
            "For any other, change the migration before it is applied."
        )
    return Column(name, type_name, words.endswith("?"))


def write(table: Table, *, root: Path = migrations.ROOT, now: datetime | None = None) -> list[str]:
    """Writes the table's files, and returns their paths. Raises TableRefused and FilesInvalid, with nothing written."""
    files = {
        f"policies/{table.name}.sql": "policies.sql",
        f"functions/9_tables/{table.name}.sql": "functions.sql",
        f"tests/tables/{table.name}.toml": "rows.toml",
    }
    _refuse_existing(table, root, files)
    migration = migrations.write_next_migration(f"add_{table.name}", render("migration.sql", table), root=root, now=now)
    for path, template in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(render(template, table).encode())
    return [f"migrations/{migration.name}", *files]


def _refuse_existing(table: Table, root: Path, paths: Iterable[str]) -> None:
    made = re.compile(rf"\b(?:table|view)\s+(?:if\s+not\s+exists\s+)?public\.{table.name}\b", re.IGNORECASE)
    found = migrations.read_files(root)
    texts = {file.path: file.text for file in found.migrations} | {file.path: file.text for file in found.sources}
    for path in (path for path, text in texts.items() if made.search(text)):
        raise TableRefused(f"{path} makes {table.name} already: choose another name.")
    for path in (path for path, text in texts.items() if f"'{table.name}:" in text):
        raise TableRefused(f"{path} has permissions {table.name}:… already: choose another name.")
    if f"'{table.name}'" in texts.get(REGISTRY, ""):
        raise TableRefused(f"{REGISTRY} has {table.name} already, of something else: choose another name.")
    for path in paths:
        if (root / path).exists():
            raise TableRefused(
                f"{path} is there already: choose another name, or delete what is left of another table."
            )


def render(template: str, table: Table) -> str:
    """A template of scripts/schema/table_templates/, of the table."""
    environment = jinja2.Environment(  # noqa: S701 - what is made is SQL, of names that read() has checked
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["wrap"] = _wrap_list
    return environment.get_template(template).render(table=table, roles=ROLES)


def list_decisions(table: Table, paths: Iterable[str], *, root: Path = migrations.ROOT) -> Iterator[Decision]:
    """The lines in which there is something to decide."""
    questions = {
        "migrations/": (
            (f"  {table.columns[0].definition},", "what the columns may hold; their comments are below"),
            ("insert into public.role_permissions", "which role may do what"),
        ),
        "policies/": (("grant insert", "which columns people write, and which they may change"),),
        "functions/9_tables/": (
            ("select app.audit", "what entries repeat (named), and must not keep (redacted)"),
            (f"'Which {table.words} you created'", "what the privacy page says; who else is in the data"),
        ),
        "tests/": (("[new]", "what tests write, once you have changed the columns"),),
    }
    for start, lines in questions.items():
        path = next(path for path in paths if path.startswith(start))
        written = (root / path).read_text().splitlines()
        for text, question in lines:
            yield Decision(path, next(number for number, line in enumerate(written, 1) if text in line), question)


def singular(plural: str) -> str:
    """One of them, as regular nouns have it."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if plural.endswith(ending):
            return plural.removesuffix(ending) + instead
    return plural if plural.endswith("ss") else plural.removesuffix("s")


def _format_title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _wrap_list(items: str, besides: int, indent: str = "") -> str:
    """A list within parentheses: in their line, or in lines of its own where the `besides` characters leave no room."""
    if len(items) + besides <= LINE_LENGTH:
        return items
    lines = textwrap.wrap(items, LINE_LENGTH - 10, break_long_words=False)
    return "".join(f"\n{indent}  {line}" for line in lines) + f"\n{indent}"
