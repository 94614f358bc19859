"""Makes definitions of every kind at random, and with each a changed one: another constant, operator or role.

All expressions are over the columns of public.made. The same seed makes the same definitions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

OTHERS = """
    create type public.mood as enum ('sad', 'ok', 'happy');
    create sequence public.made_id_seq;
    create table public.other (id bigint primary key, made_id bigint, label varchar(30), x int);
    create function public.touch() returns trigger language plpgsql as 'begin return new; end';
"""
TABLES = """
    create table public.made (
        id bigint primary key, kind varchar(20), code char(3), note text, x int, y smallint, n numeric(10, 2), f double precision, at timestamptz, day date,
        due interval, owner uuid, data jsonb, tags text[], numbers int[], raw bytea, ok boolean, feeling public.mood
    );
    alter table public.made enable row level security, force row level security;
    create table public.excluded (like public.made);
    create table public.defaulted (id int);
"""
# So many definitions of a kind share a table: PostgreSQL reads all of them again after each change of the table.
SHARING = 25
# Immutable conditions. {0} and {1} are words, {2} and {3} numbers, {4} and {5} days.
CONDITIONS = (
    "kind in ('{0}', '{1}')", "kind not in ('{0}', '{1}', 'x')", "kind = '{0}'", "code in ('{0}', '{1}')", "note in ('{0}', '{1}')",
    "kind = any (array['{0}', '{1}'])", "kind <> all ('{{{0},{1}}}')", "x = any ('{{{2},{3}}}')", "x in ({2}, {3})", "y in ({2}, {3})", "n in ({2}, 0.5)",
    "x between {2} and {3}", "y not between {2} and {3}", "n between {2} and {3}.25", "x between symmetric {3} and {2}", "f > {2}.1", "f < {2}e-7",
    "note like '{0}%'", "note ilike '%{0}'", "kind similar to '({0}|{1})'", "kind ~ '^{0}'", "note !~* '{0}$'", "kind || note <> '{0}'",
    "x is distinct from {2}", "coalesce(kind, '{0}') = note", "nullif(kind, '{0}') is null", "greatest(x, y, {2}) > {3}", "length(kind) between {2} and 200",
    "case when x > {2} then kind = '{0}' else note is null end", "case kind when '{0}' then true when '{1}' then false end", "(x, y) < ({2}, {3})",
    "(kind, x) = ('{0}', {2})", "(x, y) in (({2}, {3}), (1, 2))", "data ->> '{0}' = '{1}'", "data ? '{0}'", "data @> '{{\"{0}\": {2}}}'", "(data #>> '{{{0},{1}}}') is null",
    "(data ->> '{0}')::int > {2}", "tags && array['{0}', '{1}']", "tags[1] = '{0}'", "numbers @> array[{2}]", "cardinality(tags) < {2}", "raw = '\\x{2:02d}ff'", "ok is not true or x > {2}",
    "ok = (x > {2})", "not ok and y = {2}", "feeling in ('sad', 'ok') and x <> {2}", "feeling >= 'ok' or y <> {2}", "day > '{4}'", "day between '{4}' and date '{4}' + {2}", "at < '{4} 12:00:00+02'",
    "at >= timestamptz '{4} 00:00:00+00'", "at in ('{4}', '{5}')", "due > '{2} days 02:00'", "due < interval '{2} mon -3 days'", "at at time zone 'UTC' > '{4}'", "owner = '00000000-0000-0000-0000-{2:012d}'",
    "substring(note from {2} for 2) = '{0}'", "position('{0}' in note) > {2}", "trim(both 'x' from note) <> '{0}'", "note collate \"C\" < '{0}'", "kind::text || '{0}' = note",
    "extract(year from day) > {2}", "overlay(note placing '{0}' from 1 for 2) = '{1}'", "x::bigint * {2} > y + {3}", "x / {2}.5 > 1", "kind::char(2) = '{0}'", "int4range(x, {3}) @> {2}",
    "day = 'infinity' or x = {2}", "-x < -{2}", "@ x > {2}", "x % 2 = {2}", "kind is null = (x = {2})", "(kind < '{0}') is not unknown", "note between '{0}' and '{1}'", "lower(kind) in ('{0}', '{1}')",
)  # fmt: skip
# Only where the result may change between two calls.
STABLE = (
    "at < now() - interval '{2} days'", "current_date > day + {2}", "current_setting('a.b', true) = '{0}'", "made is distinct from null and x = {2}", "row_to_json(made) ->> '{0}' = '{1}'",
    "at::date = '{4}'", "to_char(at, 'YYYY') = '{2}'", "current_user = '{0}'", "at > 'now'::text::timestamptz + '{2} days'",
)  # fmt: skip
# Only where a subquery is allowed.
QUERIES = (
    "exists (select 1 from public.other as o where o.made_id = made.id and o.label in ('{0}', '{1}'))", "id in (select made_id from public.other where x between {2} and {3})",
    "x > (select max(o.x) from public.other as o where o.label = '{0}')", "x = any (array(select o.x from public.other as o where o.x <> {2} order by o.id limit 3))",
)  # fmt: skip
SELECTS = (
    "select made.* from public.made where {c}", "select id, kind, '{0}' as word from public.made where {c}", "select made.id, '{0}'::text as word from public.made where {c} union all select other.id, '{1}' from public.other",
    "select 'x' as a, count(*) filter (where {c}) from public.made group by kind having count(*) > {2}", "with m as (select * from public.made where {c}) select m.id, o.label from m join public.other as o on o.made_id = m.id and o.label in ('{0}', '{1}')",
    "select id, row_number() over (partition by kind order by x desc nulls last) + {2} as rank from public.made where {c}", "select made.id, l.label from public.made cross join lateral (select label from public.other where made_id = made.id limit {2}) as l where {c}",
    "with recursive t (step) as (select 1 union all select step + 1 from t where step < {2}) select t.step, made.kind from t left join public.made on made.x = t.step and ({c})", "select kind, x, sum(n) from public.made where {c} group by grouping sets ((kind, x), (kind), ()) ",
    "select * from public.made natural join (values ({2}, 'a'), ({3}, 'b')) as v (x, letter) where {c}", "select distinct on (kind) kind, at, coalesce(note, '{0}') from public.made where {c} order by kind, at desc",
    "select made.id, case when {c} then '{0}' else '{1}' end as word from public.made join public.other using (x)", "select u.tag, made.id from public.made, unnest(tags) with ordinality as u (tag, place) where u.place < {2} and ({c})",
    "select '{0}' intersect select kind from public.made where {c} except select '{1}'", "select array_agg(kind order by x, note) as kinds, string_agg(note, '{0}') from public.made where {c}",
    "select made, made.id from public.made where {c}", "select (select o.label from public.other as o where o.x = {2} and o.made_id = made.id) as label from public.made where {c} for update",
)  # fmt: skip
DEFAULTS = (
    ("varchar(20)", "'{0}'"), ("varchar(20)", "'{0}' || '{1}'"), ("text", "'{0}'::varchar"), ("text", "upper('{0}')"), ("char(6)", "'{0}'"), ("int", "{2}"), ("int", "-{2} * {3}"), ("numeric(10,2)", "{2}.5"), ("double precision", "0.{2}"),
    ("smallint", "{2}"), ("timestamptz", "now() + interval '{2} days'"), ("timestamptz", "'{4} 10:00'"), ("date", "'{4}'"), ("date", "current_date + {2}"), ("interval", "'{2} days -02:00'"), ("jsonb", "'{{\"a\": {2}}}'"),
    ("text[]", "'{{{0},{1}}}'"), ("text[]", "array['{0}', '{1}']"), ("varchar[]", "array['{0}', '{1}']"), ("bytea", "'\\x{2:02d}'"), ("boolean", "({2} in (1, {3}))"), ("uuid", "md5('{0}')::uuid"), ("text", "coalesce(current_setting('a.b', true), '{1}')"),
    ("text", "case when now() > '{4}' then '{0}' else null end"), ("bigint", "nextval('public.made_id_seq') + {2}"), ("varchar(20)", "substring('{0}{1}' from {2})"), ("timestamp", "(now() at time zone 'Europe/Berlin' - interval '{2} h')"),
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A definition: `create` makes it, and `change` replaces it by another one of the same kind and name."""

    kind: str
    name: str
    create: str
    change: str


def make_all(seed: int, number: int) -> Iterator[Made]:
    """Makes `number` definitions of each kind."""
    for make in MAKERS:
        random = Random(f"{seed} {make.__name__}")  # noqa: S311 - not for cryptography
        for each in range(number):
            made = make(random, each)
            yield Made(made.kind, *(_on(each, text) for text in (made.name, made.create, made.change)))


def make_tables(number: int) -> str:
    """Makes the tables of so many definitions of each kind."""
    return OTHERS + "".join(_on(each, TABLES) for each in range(0, number, SHARING))


def _on(number: int, text: str) -> str:
    """Puts a text about public.made into one about a copy of the table."""
    return re.sub(r"\b(made|excluded|defaulted)\b", rf"\1_{number // SHARING}", text)


def fill(random: Random, template: str) -> tuple[str, str]:
    """Fills a template in, twice: the second text has other constants."""
    words = random.sample(["ab", "cd", "it''s", "ü", "xyz", "100%"], 2)
    low, high = sorted(random.sample(range(3, 90), 2))
    text = template.format(*words, low, high, "2026-01-05", "2026-06-30")
    other = template.format("we''ll", "ö", low + 1, high + 1, "2025-02-03", "2027-07-07")
    return text, other


def condition(random: Random, *templates: str, depth: int = 2) -> tuple[str, str]:
    """A condition, and a changed one."""
    if depth == 0 or random.random() < 0.4:
        text, other = fill(random, random.choice(templates))
        return text, random.choice([other, other, f"not ({text})"])
    (left, changed), (right, _) = (condition(random, *templates, depth=depth - 1) for _ in range(2))
    link, unlike = random.sample(["and", "or"], 2)
    return f"({left}) {link} ({right})", random.choice(
        [f"({changed}) {link} ({right})", f"({left}) {unlike} ({right})", left, right]
    )


def make_check(random: Random, n: int) -> Made:
    text, other = condition(random, *CONDITIONS, *STABLE)
    add = "alter table public.made add constraint check_{n} check ({text})"
    return Made(
        "constraint",
        f"check_{n} on public.made",
        add.format(n=n, text=text),
        f"alter table public.made drop constraint check_{n}; {add.format(n=n, text=other)}",
    )


def make_policy(random: Random, n: int) -> Made:
    using, other = condition(random, *CONDITIONS, *STABLE, *QUERIES)
    check, _ = condition(random, *CONDITIONS)
    name, role, command = f'"Policy {n}" on public.made', "authenticated", "update"
    make = "create policy {} as {} for {} to {} using ({}) with check ({})"
    changes = [
        make.format(name, "permissive", command, role, other, check),
        make.format(name, "restrictive", command, role, using, check),
        make.format(name, "permissive", "all", role, using, check),
        make.format(name, "permissive", command, f"{role}, anon", using, check),
        make.format(name, "permissive", command, role, using, f"not ({check})"),
    ]
    create = make.format(name, "permissive", command, role, using, check)
    return Made("policy", name, create, f"drop policy {name}; {random.choice(changes)}")


def make_view(random: Random, n: int) -> Made:
    text, other = _select(random)
    create = f"create view public.view_{n} as {text}"
    return Made(
        "view", f"public.view_{n}", create, f"drop view public.view_{n}; create view public.view_{n} as {other}"
    )


def make_materialized_view(random: Random, n: int) -> Made:
    text, other = _select(random)
    name = f"public.stored_{n}"
    create = f"create materialized view {name} as {text}"
    return Made(
        "materialized view", name, create, f"drop materialized view {name}; create materialized view {name} as {other}"
    )


def _select(random: Random) -> tuple[str, str]:
    where, other = condition(random, *CONDITIONS, *STABLE, *QUERIES)
    # A column x of the other table would make the condition ambiguous.
    template = random.choice(SELECTS).replace(
        "join public.other using (x)", "join (select x from public.other) as o using (x)"
    )
    numbered = template.replace("{c}", "@@")
    text, _ = fill(random, numbered)
    return text.replace("@@", where), text.replace("@@", other)


def make_index(random: Random, n: int) -> Made:
    where, other = condition(random, *CONDITIONS)
    expression, another = condition(random, *CONDITIONS, depth=0)
    key = random.choice(
        ["x desc", "lower(kind)", "(kind || note)", "coalesce(kind, 'a')", '(note collate "C") text_pattern_ops']
    )
    make = f"create index index_{n} on public.made ({key}, ({{}})) include (id) where {{}}"
    change = random.choice([make.format(expression, other), make.format(another, where)])
    return Made(
        "index", f"index_{n} on public.made", make.format(expression, where), f"drop index public.index_{n}; {change}"
    )


def make_default(random: Random, n: int) -> Made:
    type_, template = random.choice(DEFAULTS)
    text, other = fill(random, template)
    return Made(
        "default",
        f"public.defaulted.default_{n}",
        f"alter table public.defaulted add column default_{n} {type_} default {text}",
        f"alter table public.defaulted alter column default_{n} set default {other}",
    )


def make_generated(random: Random, n: int) -> Made:
    text, other = condition(random, *CONDITIONS)
    make = "create table public.generated_{n} (like public.made, truth boolean generated always as ({text}) stored, shout text generated always as (upper(kind || note)) stored)"
    return Made(
        "generated columns",
        f"of public.generated_{n}",
        make.format(n=n, text=text),
        f"alter table public.generated_{n} drop column truth; alter table public.generated_{n} add column truth boolean generated always as ({other}) stored",
    )


def make_trigger(random: Random, n: int) -> Made:
    templates = [each for each in CONDITIONS if "ok" not in each]
    text, other = condition(random, *templates, depth=1)
    name = f"trigger_{n} on public.made"
    make = (
        f"create trigger trigger_{n} {{}} on public.made for each row when ({{}}) execute function public.touch('a{n}')"
    )
    text, other = _of_new(text), _of_new(other)
    changes = [("before update", other), ("after update", text), ("before update of x", text)]
    return Made(
        "trigger",
        name,
        make.format("before update", text),
        f"drop trigger {name}; {make.format(*random.choice(changes))}",
    )


def _of_new(text: str) -> str:
    """Puts the condition of columns into one of a trigger."""
    columns = "kind|code|note|x|y|n|f|at|day|due|owner|data|tags|numbers|raw|feeling"
    outside = re.split(r"('(?:[^']|'')*')", text)
    return "".join(
        part if part.startswith("'") else re.sub(rf"\b({columns})\b(?!\()(?! time zone)", r"new.\1", part)
        for part in outside
    )


def make_domain(random: Random, n: int) -> Made:
    texts = ("value in ('{0}', '{1}')", "value ~ '^{0}' and length(value) between {2} and {3}", "value like '{0}%' or value is null",
             "value <> '{0}' and (value > '{1}' or char_length(value) < {2})", "upper(value) = any (array['{0}', '{1}'])")  # fmt: skip
    text, other = condition(random, *texts)
    add = "add constraint kept check ({})"
    return Made(
        "constraint",
        f"kept on public.domain_{n}",
        f"create domain public.domain_{n} as varchar(40) default '{n}'; alter domain public.domain_{n} {add.format(text)}",
        f"alter domain public.domain_{n} drop constraint kept; alter domain public.domain_{n} {add.format(other)}",
    )


def make_domain_default(random: Random, n: int) -> Made:
    type_, template = random.choice([each for each in DEFAULTS if each[0] not in {"bigint"}])
    text, other = fill(random, template)
    return Made(
        "default of domain",
        f"public.kept_{n}",
        f"create domain public.kept_{n} as {type_} default {text}",
        f"alter domain public.kept_{n} set default {other}",
    )


def make_exclusion(random: Random, n: int) -> Made:
    where, other = condition(random, *CONDITIONS)
    low, _ = fill(random, random.choice(["x + {2}", "case when kind in ('{0}', '{1}') then x end", "nullif(x, {2})"]))
    make = "alter table public.excluded add constraint exclusion_{n} exclude using gist (int4range({low}, y) with {operator}) where ({where})"
    change = random.choice([("&&", other), ("=", where)])
    return Made(
        "constraint",
        f"exclusion_{n} on public.excluded",
        make.format(n=n, low=low, operator="&&", where=where),
        f"alter table public.excluded drop constraint exclusion_{n}; "
        + make.format(n=n, low=low, operator=change[0], where=change[1]),
    )


def make_partition(random: Random, n: int) -> Made:
    """A partition, whose bounds depend on the time zone, and whose parent has a check, an index and a trigger."""
    day, other = fill(random, "{4}")
    where, _ = condition(random, *CONDITIONS, depth=1)
    name = f"public.parted_{n}_1"
    make = f"create table {name} partition of public.parted_{n} for values from ('{{}} 01:00:00+00') to ('2028-01-01 00:00:00+00')"
    return Made(
        "table",
        name,
        f"create table public.parted_{n} (like public.made) partition by range (at); {make.format(day)}; "
        f"alter table public.parted_{n} add constraint kept check ({where}); create index on public.parted_{n} (x) where {where}; "
        f"create trigger touch before update on public.parted_{n} for each row when (new.kind in ('a', 'b')) execute function public.touch()",
        f"alter table public.parted_{n} detach partition {name}; alter table public.parted_{n} attach partition {name} "
        f"for values from ('{other} 01:00:00+00') to ('2028-01-01 00:00:00+00')",
    )


def make_partition_key(random: Random, n: int) -> Made:
    text, other = fill(random, random.choice(["kind || '{0}'", "x + {2}", "case when kind in ('{0}', '{1}') then 1 else 2 end", "coalesce(code, '{0}')", "x between {2} and {3}"]))  # fmt: skip
    make = "create table public.listed_{n} (like public.made) partition by list (({text}))"
    return Made(
        "partition key",
        f"public.listed_{n}",
        make.format(n=n, text=text),
        f"drop table public.listed_{n}; {make.format(n=n, text=other)}",
    )


def make_rule(random: Random, n: int) -> Made:
    text, other = condition(random, *(each for each in CONDITIONS if "ok" not in each), depth=1)
    name = f"rule_{n} on public.made"
    make = f"create rule rule_{n} as on update to public.made where {{}} do also insert into public.other (id, label) values (new.id, {{}})"
    changes = [(_of_new(other), "'a'"), (_of_new(text), "'b'")]
    return Made(
        "rule", name, make.format(_of_new(text), "'a'"), f"drop rule {name}; {make.format(*random.choice(changes))}"
    )


def make_function(random: Random, n: int) -> Made:
    text, other = condition(random, *CONDITIONS, *STABLE, *QUERIES)
    make = "create or replace function public.counted_{n}(word varchar default '{word}') returns bigint language sql stable begin atomic select count(*) from public.made where {text}; end"
    changes = [make.format(n=n, word="a", text=other), make.format(n=n, word="b", text=text)]
    return Made(
        "function",
        f"public.counted_{n}(word character varying)",
        make.format(n=n, word="a", text=text),
        random.choice(changes),
    )


def make_statistics(random: Random, n: int) -> Made:
    text, other = condition(random, *CONDITIONS, depth=0)
    make = "create statistics public.statistics_{n} (mcv) on kind, ({text}) from public.made"
    return Made(
        "statistics",
        f"public.statistics_{n}",
        make.format(n=n, text=text),
        f"drop statistics public.statistics_{n}; {make.format(n=n, text=other)}",
    )


MAKERS: tuple[Callable[[Random, int], Made], ...] = (
    make_check, make_policy, make_view, make_materialized_view, make_index, make_default, make_generated, make_trigger, make_domain, make_domain_default,
    make_exclusion, make_partition, make_partition_key, make_rule, make_function, make_statistics,
)  # fmt: skip
