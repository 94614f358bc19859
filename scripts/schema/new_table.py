"""`ballast new table`: writes the files of a new table, with the shape of the example `projects`, and its test rows.

The templates are in scripts/schema/table_templates/.
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
from scripts.schema import sql_files
from scripts.schema.statements import Statement, split

TEMPLATES = Path(__file__).with_name("table_templates")
REGISTRY = "functions/5_personal_data/registry.sql"
# The limit in .sqlfluff.
LINE_LENGTH = 140
# PostgreSQL truncates names to 63 characters. The longest derived name, of an index, has 31 more than the table's.
MAX_NAME_LENGTH = 32
OWN_COLUMNS = ("id", "organization_id", "created_by", "created_at", "updated_at")
SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
MAX_IDENTIFIER = 63
# What a reference does when the row it refers to is deleted, by the option's word.
ON_DELETE = ("restrict", "cascade")
# PostgREST's query parameters: clients could not filter by a column of such a name. Its others are reserved words.
PARAMETERS = ("columns", "on_conflict")
# Resource types that the audit trail already uses. Clients log actions with the prefix `client.` (app.audit_prefixes).
AUDITED_RESOURCES = ("client", "invitation", "member", "organization", "personal_data", "profile", "project")
# The permissions of each role for a new table: those of the example `projects`.
ROLES = {
    "read": ("owner", "admin", "member", "viewer"),
    "create": ("owner", "admin", "member"),
    "update": ("owner", "admin", "member"),
    "delete": ("owner", "admin"),
}
# Words that are not names without quotes: categories R and T of pg_get_keywords() in PostgreSQL 18.
RESERVED_WORDS = frozenset({
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
    """The requested table is not possible. Nothing was written."""


class Type(NamedTuple):
    """A column type. `description` is for the column's comment; `example` and `other` are TOML values for tests.

    `check` is written on one line if it fits, otherwise in its own lines. `unique` has the same two TOML values for a
    column whose values are unique in an organization; without them, such a column is refused.
    """

    description: str
    check: str
    default: str
    example: str
    other: str
    unique: tuple[str, str] | None = None


# Infinity and NaN are rejected, because JSON cannot represent them.
NUMBERS = ('"{unique_number}"', '"-{unique_number}"')
TEXTS = ('"A {unique}"', '"Changed {unique}"')
IDS = ('"00000000-0000-4000-8000-{unique}"', '"00000000-0000-4000-9000-{unique}"')
TYPES = {
    "text": Type("1 to 200 characters", "length({0}) between 1 and 200", "", *TEXTS, TEXTS),
    "integer": Type("a whole number", "", "", "1", "2", NUMBERS),
    "bigint": Type("a whole number", "", "", "1", "2", NUMBERS),
    "numeric": Type("a number, less than 10^15 either way", "abs({0}) < 1e15", "", "1.5", "2.5", NUMBERS),
    "boolean": Type("yes or no", "", "false", "true", "false"),
    "date": Type("a day", "isfinite({0})", "", '"2026-01-31"', '"2026-02-28"'),
    "timestamptz": Type("a moment", "isfinite({0})", "", '"2026-01-31T12:00:00Z"', '"2026-02-28T12:00:00Z"'),
    "uuid": Type(
        "an id", "", "", '"00000000-0000-4000-8000-000000000001"', '"00000000-0000-4000-8000-000000000002"', IDS
    ),
    "jsonb": Type(
        "an object of at most 64 KiB and 64 levels",
        "jsonb_typeof({0}) = 'object' and octet_length({0}::text) <= 65536\n"
        "and not jsonb_path_exists({0}, 'strict $.**{{64}}')",
        "'{}'",
        '{ note = "A" }',
        '{ note = "Changed" }',
    ),
}


class Column(NamedTuple):
    """One of the table's own columns. `parent` is the table that it refers to."""

    name: str
    type: str
    kind: Type
    nullable: bool
    is_unique: bool = False
    parent: str = ""
    on_delete: str = ""

    @property
    def example(self) -> str:
        return self.kind.unique[0] if self.is_unique and self.kind.unique else self.kind.example

    @property
    def other(self) -> str:
        return self.kind.unique[1] if self.is_unique and self.kind.unique else self.kind.other

    @property
    def definition(self) -> str:
        """The column in `create table`: one line, or several."""
        start = f"{self.name} {self.type}"
        if not self.nullable:
            start += f" not null default {self.kind.default}" if self.kind.default else " not null"
        if not self.kind.check:
            return start
        conditions = self.kind.check.format(self.name).splitlines()
        line = f"{start} check ({' '.join(map(str.strip, conditions))})".replace("( ", "(").replace(" )", ")")
        if len(line) + len("  ,") <= LINE_LENGTH:
            return line
        return "\n    ".join((f"{start} check (", *conditions)) + "\n  )"

    @property
    def comment(self) -> str:
        unique = " Unique in the organization." if self.is_unique else ""
        null = " Null if there is none." if self.nullable else ""
        name = self.name.removesuffix("_id") if self.parent else self.name
        return f"{_format_title(name)}, {self.kind.description}.{unique}{null}"

    @property
    def constraints(self) -> Iterator[str]:
        """The table's constraints for this column. Each includes organization_id, because RLS does not see them."""
        if self.is_unique:
            yield f"unique (organization_id, {self.name})"
        if self.parent:
            columns = f"foreign key (organization_id, {self.name})"
            yield f"{columns} references public.{self.parent} (organization_id, id)\n  on delete {self.on_delete}"


@dataclass(frozen=True)
class Table:
    """A table to be created, in public."""

    name: str
    columns: tuple[Column, ...]

    @property
    def plural(self) -> str:
        return self.name.replace("_", " ")

    @property
    def title(self) -> str:
        return _format_title(self.name)

    @property
    def listed(self) -> str:
        return ", ".join(column.name for column in self.columns)

    @property
    def parents(self) -> dict[str, str]:
        """The tables that tests fill first, by the column that refers to them."""
        return {column.name: column.parent for column in self.columns if column.parent not in ("", self.name)}

    @property
    def constraints(self) -> list[str]:
        own = [constraint for column in self.columns for constraint in column.constraints]
        return ["unique (organization_id, id)", *own]

    @property
    def exported_columns(self) -> str:
        names = ("id", "organization_id", *(column.name for column in self.columns), "created_at", "updated_at")
        return ", ".join(f"'t.{name}'" for name in names)

    @property
    def title_column(self) -> str | None:
        """The column by which people recognize a row."""
        return next((column.name for column in self.columns if column.type == "text"), None)

    @property
    def resource(self) -> str | None:
        """The audit trail's resource type for a row; None if app.audit() derives it from the table's name."""
        word = make_singular(self.name)
        if word in AUDITED_RESOURCES:
            return self.name
        return None if word == self.name.rstrip("s") else word


class Decision(NamedTuple):
    """A line that the developer has to check: its file, its number, and what to decide."""

    path: str
    number: int
    question: str


EXAMPLE = """Example:
  ballast new table clients --columns 'name:text(unique)'
  ballast new table invoices --columns 'client:ref(clients) number:text(unique) status:enum(draft,sent,paid)'"""


@click.group(epilog="Example: ballast new table clients --columns 'name:text(unique)'")
def new() -> None:
    """Add a table to your product."""


@new.command("table", epilog=f"\b\n{EXAMPLE}")
@click.argument("name")
@click.option("--columns", required=True, metavar="'NAME:TYPE …'", help="The table's own columns, with their types.")
def table_command(name: str, columns: str) -> None:
    """Write the files of a new table NAME.

    The table is in the schema public, and each row belongs to an organization.

    It has the columns of the example `projects`: id, organization_id, created_by, your columns, created_at, updated_at.
    The files also define its policies, permissions of each role, audit trail, broadcasts, registry entry for personal
    data, and test rows. docs/extend.md describes the next steps.

    TYPE is text, integer, bigint, numeric, boolean, date, timestamptz, uuid or jsonb; or one of these:

    \b
    enum(draft,sent,paid)  one of these words; the first is the default
    ref(clients)           a row of clients in the same organization, in a column with the suffix _id.
                           It prevents that row's deletion; with ref(clients,cascade) it is deleted too.
    text(unique)           no two rows of an organization have the same value; also for numbers and uuid

    A `?` after the type allows null. Without it, the default of a boolean is false, and that of a jsonb is an empty
    object. A reference that allows null becomes null when the row it refers to is deleted.
    """
    table = parse_table(name, columns)
    paths = write(table)
    click.echo("\n".join(f"Wrote {path}" for path in paths))
    click.echo("\nCheck these lines, and change them as you need:")
    for line in list_decisions(table, paths):
        click.echo(f"  {line.path}:{line.number}  {line.question}")
    click.echo(f"\nThen:\n  ballast migrate up\n  ballast types\n  ./scripts/test --keep --table {name}")
    click.echo("\nIf Supabase deploys your migrations, before you merge:\n  ballast migrate bundle")


def parse_table(name: str, columns: str) -> Table:
    """Parses the arguments of `ballast new table`. Raises TableRefused."""
    # Without digits, because permissions must not contain any (public.role_permissions).
    if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name) or len(name) > MAX_NAME_LENGTH:
        raise TableRefused(
            f"{name!r} is not a valid table name: use lower-case words without digits, joined by _, such as "
            f"purchase_orders, and at most {MAX_NAME_LENGTH} characters."
        )
    if name == "specimens" or name.startswith("test_"):
        raise TableRefused(f"{name} is a name of the tests, which create tables: choose another name.")
    if name in RESERVED_WORDS:
        raise TableRefused(f"{name} is a reserved word in SQL: choose another name, such as {name}_items.")
    found = tuple(_parse_column(name, text) for text in re.findall(r"(?:[^\s(]|\([^)]*\)?)+", columns))
    if not found:
        raise TableRefused("A table needs at least one column of its own: pass --columns 'title:text'.")
    names = [column.name for column in found]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise TableRefused(f"Duplicate column: {', '.join(twice)}. Name each column once.")
    return Table(name, found)


def _parse_column(table: str, text: str) -> Column:
    name, _, given_type = text.partition(":")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > MAX_NAME_LENGTH:
        raise TableRefused(
            f"{name!r} is not a valid column name: use lower-case words joined by _, such as due_on, "
            f"and at most {MAX_NAME_LENGTH} characters."
        )
    if name in OWN_COLUMNS:
        raise TableRefused(f"Every table has a column {name}: leave it out.")
    if name in RESERVED_WORDS or name in SYSTEM_COLUMNS or name in PARAMETERS:
        raise TableRefused(f"{name} is reserved by PostgreSQL or PostgREST: choose another name.")
    match = re.fullmatch(r"(?P<word>[a-z]+)(?:\((?P<inside>[^()]*)\))?(?P<null>\?)?", given_type)
    inside = [part.strip() for part in (match["inside"] or "").split(",")] if match else []
    match match and (match["word"], match["inside"]):
        case ("ref", str()):
            return _parse_reference(table, name, inside, is_nullable=given_type.endswith("?"))
        case ("enum", str()):
            return Column(name, "text", _parse_enum(name, inside), given_type.endswith("?"))
        case (str() as word, None | "unique" as option) if word in TYPES:
            if option and TYPES[word].unique is None:
                raise TableRefused(f"{text!r}: a {word} cannot be unique here. Edit the migration before you apply it.")
            return Column(name, word, TYPES[word], given_type.endswith("?"), option is not None)
    raise TableRefused(
        f"{text!r} has no supported type: write {name}:TYPE with one of {', '.join(TYPES)}, enum(a,b) or ref(table). "
        "For another type, edit the migration before you apply it."
    )


def _parse_enum(name: str, values: list[str]) -> Type:
    if len(set(values)) < max(2, len(values)) or not all(
        re.fullmatch(r"[a-z][a-z0-9_]{0,62}", each) for each in values
    ):
        raise TableRefused(
            f"{name}: the values of an enum are two or more different lower-case words without quotes, such as "
            "enum(draft,sent). For other values, edit the migration before you apply it."
        )
    description = f"one of {', '.join(values[:-1])} or {values[-1]}"
    listed = textwrap.wrap(", ".join(f"'{value}'" for value in values), LINE_LENGTH - 10, break_long_words=False)
    check = "\n".join(("{0} in (", *(f"  {line}" for line in listed), ")"))
    return Type(description, check, f"'{values[0]}'", f'"{values[1]}"', f'"{values[0]}"')


def _parse_reference(table: str, name: str, inside: list[str], *, is_nullable: bool) -> Column:
    parent, on_delete = (inside[0], inside[1]) if len(inside) == 2 else ("".join(inside), "")
    if not re.fullmatch(r"[a-z]+(_[a-z]+)*", parent) or on_delete not in ("", *ON_DELETE):
        raise TableRefused(
            f"{name}:ref({','.join(inside)}) is not valid: write ref(table) or ref(table,cascade), with the name of "
            "the table, without schema and quotes."
        )
    if parent == table and not is_nullable:
        raise TableRefused(f"{name}: the first row of {table} has no other to refer to. Write {name}:ref({table})?.")
    column = f"{name.removesuffix('_id')}_id"
    if column in OWN_COLUMNS:
        raise TableRefused(f"Every table has a column {column}: choose another name than {name}.")
    if len(index := f"{table}_{column}_idx") > MAX_IDENTIFIER:
        raise TableRefused(f"The index {index} has more than {MAX_IDENTIFIER} characters: choose shorter names.")
    action = on_delete or (f"set null ({column})" if is_nullable else "restrict")
    kind = Type(f"a row of {parent} in the same organization", "", "", "", "")
    return Column(column, "uuid", kind, is_nullable, parent=parent, on_delete=action)


def write(table: Table, *, root: Path = sql_files.ROOT, now: datetime | None = None) -> list[str]:
    """Writes the table's files, and returns their paths. Raises TableRefused or FilesInvalid before it writes any."""
    files = {
        f"policies/{table.name}.sql": "policies.sql",
        f"functions/9_tables/{table.name}.sql": "functions.sql",
        f"tests/tables/{table.name}.toml": "rows.toml",
    }
    _refuse_existing(table, root, files)
    made = render("migration.sql", table, _list_parents_without_key(table, root))
    migration = sql_files.write_next_migration(f"add_{table.name}", made, root=root, now=now)
    for path, template in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(render(template, table).encode())
    return [f"migrations/{migration.name}", *files]


def _refuse_existing(table: Table, root: Path, paths: Iterable[str]) -> None:
    made = re.compile(rf"\b(?:table|view)\s+(?:if\s+not\s+exists\s+)?public\.{table.name}\b", re.IGNORECASE)
    found = sql_files.read_files(root)
    texts = {file.path: file.text for file in found.migrations} | {file.path: file.text for file in found.sources}
    for path in (path for path, text in texts.items() if made.search(text)):
        raise TableRefused(f"{path} already creates {table.name}: choose another name.")
    for path in (path for path, text in texts.items() if f"'{table.name}:" in text):
        raise TableRefused(f"{path} already has permissions {table.name}:…: choose another name.")
    if f"'{table.name}'" in texts.get(REGISTRY, ""):
        raise TableRefused(f"{REGISTRY} already uses {table.name} for something else: choose another name.")
    for path in paths:
        if (root / path).exists():
            raise TableRefused(
                f"{path} already exists: choose another name, or delete the files of the previous table."
            )


def _list_parents_without_key(table: Table, root: Path) -> list[str]:
    """Lists the parents whose unique key (organization_id, id) no migration creates. Raises TableRefused for others."""
    found = sql_files.read_files(root)
    made = [_simplify(statement) for file in found.migrations for statement in split(file.text)]
    tenants = [
        Path(source.path).stem
        for source in found.sources
        if source.path.startswith("functions/9_tables/") and _find_table(made, Path(source.path).stem)
    ]
    for parent in table.parents.values():
        if parent not in tenants:
            raise TableRefused(
                f"There is no table {parent} whose rows belong to an organization: create it first with "
                f"`ballast new table {parent}`, or refer to one of {', '.join(tenants)}."
            )
    return sorted({parent for parent in table.parents.values() if not _has_key(made, parent)})


def _simplify(statement: Statement) -> str:
    text = statement.text[(statement.start or statement.offset) - statement.offset :]
    without_comments = re.sub(r"--[^\n]*|/\*(.|\n)*?\*/", " ", text.lower())
    return re.sub(r"\s*([(,)])\s*", r"\1", " ".join(without_comments.replace('"', "").split()))


def _find_table(made: list[str], name: str) -> bool:
    create = re.compile(rf"create table (if not exists )?public\.{name}\(.*\borganization_id uuid\b")
    return any(create.match(statement) for statement in made)


def _has_key(made: list[str], name: str) -> bool:
    columns = r"\(organization_id,id\)"
    key = re.compile(
        rf"(create table (if not exists )?public\.{name}\(|alter table (if exists )?(only )?public\.{name} )"
        rf".*\b(unique|primary key){columns}"
        rf"|create unique index .*\bon (only )?public\.{name}( using btree)?{columns}$"
    )
    return any(key.match(statement) for statement in made)


def render(template: str, table: Table, keyless: Iterable[str] = ()) -> str:
    """Renders a template of scripts/schema/table_templates/ for the table.

    `keyless` are the parents whose unique key (organization_id, id) the migration has to create.
    """
    environment = jinja2.Environment(  # noqa: S701 - renders SQL, with names that parse_table() has checked
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["wrap"] = _wrap_list
    return environment.get_template(template).render(table=table, roles=ROLES, keyless=keyless)


def list_decisions(table: Table, paths: Iterable[str], *, root: Path = sql_files.ROOT) -> Iterator[Decision]:
    """Lists the lines that the developer has to check."""
    parents = [column for column in table.columns if column.parent]
    questions = {
        "migrations/": (
            *(
                (
                    f"foreign key (organization_id, {column.name})",
                    f"what the deletion of its row of {column.parent} does",
                )
                for column in parents
            ),
            (f"  {table.columns[0].definition.splitlines()[0]}", "what the columns may hold; their comments are below"),
            ("insert into public.role_permissions", "the permissions of each role"),
        ),
        "policies/": (("grant insert", "the columns that people may insert, and those that they may update"),),
        "functions/9_tables/": (
            ("select app.audit", "the columns that audit entries repeat (named) or must not store (redacted)"),
            (f"'Which {table.plural} you created'", "the privacy page's text; other people in the data"),
        ),
        "tests/": (("[new]", "the rows that tests write, if you change the columns"),),
    }
    for start, lines in questions.items():
        path = next(path for path in paths if path.startswith(start))
        written = (root / path).read_text().splitlines()
        numbers = {next(n for n, line in enumerate(written, 1) if text in line): question for text, question in lines}
        for number, question in sorted(numbers.items()):
            yield Decision(path, number, question)


def make_singular(plural: str) -> str:
    """Returns the singular of a regular noun."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if plural.endswith(ending):
            return plural.removesuffix(ending) + instead
    return plural if plural.endswith("ss") else plural.removesuffix("s")


def _format_title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _wrap_list(items: str, besides: int, indent: str = "") -> str:
    """Formats a list in parentheses: on one line if it fits with `besides` other characters, else on its own lines."""
    if len(items) + besides <= LINE_LENGTH:
        return items
    lines = textwrap.wrap(items, LINE_LENGTH - 10, break_long_words=False)
    return "".join(f"\n{indent}  {line}" for line in lines) + f"\n{indent}"
