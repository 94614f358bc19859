"""The rules of the schema, checked in the catalogue. A failing test lists the objects that break its rule."""

from __future__ import annotations

import re

import pytest

from scripts.schema import drift
from scripts.schema.sql_files import ROOT
from tests.conftest import Database
from tests.deep_json import find_unchecked_arguments, find_unchecked_columns
from tests.tenant_tables import declared_roles, permissions_of
from tests.unfiltered_writes import find_unfiltered_writes

OURS = "('public', 'app', 'ops')"

RULES = {
    "row level security is enabled and forced on every table": f"""
        select c.oid::regclass::text from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and not (c.relrowsecurity and c.relforcerowsecurity)""",
    "every table has a primary key": f"""
        select c.oid::regclass::text from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where n.nspname in {OURS} and c.relkind in ('r', 'p')
          and not exists (select from pg_index as i where i.indrelid = c.oid and i.indisprimary)""",
    "every foreign key has an index that begins with its columns": f"""
        select k.conrelid::regclass || '.' || k.conname from pg_constraint as k join pg_namespace as n on n.oid = k.connamespace
        where n.nspname in {OURS} and k.contype = 'f' and k.conparentid = 0 and not exists (
          select from pg_index as i
          where i.indrelid = k.conrelid and (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] @> k.conkey)""",
    "every foreign key defines what a deletion does": f"""
        select k.conrelid::regclass || '.' || k.conname from pg_constraint as k join pg_namespace as n on n.oid = k.connamespace
        where n.nspname in {OURS} and k.contype = 'f' and k.confdeltype = 'a'""",
    "every table, view and column has a comment": f"""
        select c.oid::regclass || coalesce('.' || a.attname, '')
        from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        left join lateral (
          select attname, attnum from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped and c.relkind <> 'v'
          union all select null, 0
        ) as a on true
        where n.nspname in {OURS} and c.relkind in ('r', 'p', 'v') and not c.relispartition
          and col_description(c.oid, a.attnum) is null and not (a.attnum = 0 and obj_description(c.oid, 'pg_class') is not null)""",
    "every function has a comment": f"""
        select p.oid::regprocedure::text from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname in {OURS} and obj_description(p.oid, 'pg_proc') is null""",
    "every function pins its search path": f"""
        select p.oid::regprocedure::text from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname in {OURS} and not coalesce(p.proconfig @> '{{"search_path=pg_catalog, pg_temp"}}', false)""",
    "the comment of a definer function explains why it is one, and ops has none": f"""
        select p.oid::regprocedure::text from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname in {OURS} and p.prosecdef and (n.nspname = 'ops' or obj_description(p.oid, 'pg_proc') not like '%Definer:%')""",
    "a definer function in public is executable by service_role only": """
        select p.oid::regprocedure || ' by ' || coalesce(g.role, 'not service_role') from pg_proc as p, lateral (
          select case a.grantee when 0 then 'PUBLIC' else pg_get_userbyid(a.grantee) end as role
          from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a where a.grantee not in (p.proowner, 'service_role'::regrole)
          union all
          select null where not has_function_privilege('service_role', p.oid, 'execute')) as g
        where p.pronamespace = 'public'::regnamespace and p.prosecdef""",
    "a function for the service refuses Clerk's tokens first": f"""
        select p.oid::regprocedure::text from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname in {OURS} and has_function_privilege('service_role', p.oid, 'execute')
          and not has_function_privilege('authenticated', p.oid, 'execute') and p.oid <> 'app.refuse_clerk_tokens()'::regprocedure
          and p.prosrc !~ '^\\s*((#variable_conflict use_variable\\s+)?(declare\\s.*\\n)?begin\\s+perform|select) app\\.refuse_clerk_tokens\\(\\);'""",
    "nothing is granted to anon or PUBLIC": f"""
        select 'table ' || c.oid::regclass from pg_class as c join pg_namespace as n on n.oid = c.relnamespace,
          aclexplode(c.relacl) as g where n.nspname in {OURS} and g.grantee in (0, 'anon'::regrole)
        union all
        select 'function ' || p.oid::regprocedure from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace,
          aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as g
        where n.nspname in {OURS} and g.grantee in (0, 'anon'::regrole)""",
    "no column is granted to anon or PUBLIC": f"""
        select c.oid::regclass || '.' || a.attname from pg_attribute as a
        join pg_class as c on c.oid = a.attrelid join pg_namespace as n on n.oid = c.relnamespace,
          aclexplode(a.attacl) as g where n.nspname in {OURS} and g.grantee in (0, 'anon'::regrole)""",
    "no extension is needed": f"""
        select object.type || ' ' || object.identity || ' needs ' || e.extname
        from pg_extension as e
        join pg_depend as member on member.refclassid = 'pg_extension'::regclass and member.refobjid = e.oid and member.deptype = 'e'
        join pg_depend as d on d.refclassid = member.classid and d.refobjid = member.objid and d.deptype <> 'e'
        cross join pg_identify_object(d.classid, d.objid, d.objsubid) as object
        where e.extname <> 'plpgsql' and object.identity ~ '\\m(public|app|ops)\\.'
          and (d.classid, d.objid) not in (select classid, objid from pg_depend where deptype = 'e')
        union all
        select p.oid::regprocedure || ' names the schema extensions' from pg_proc as p
        where p.pronamespace::regnamespace::text in {OURS} and p.prosrc like '%extensions.%'""",
    "no table of app or ops is granted to an API role": """
        select c.oid::regclass || ' to ' || g.grantee::regrole from pg_class as c join pg_namespace as n on n.oid = c.relnamespace,
          aclexplode(c.relacl) as g
        where n.nspname in ('app', 'ops') and g.grantee in ('authenticated'::regrole, 'service_role'::regrole)""",
    "a table, command and role have at most one permissive policy": """
        select polrelid::regclass || ' ' || polcmd::text from pg_policy where polpermissive group by polrelid, polcmd, polroles having count(*) > 1
        union all
        select polrelid::regclass || ' for all' from pg_policy where polcmd = '*'""",
    "no policy applies to PUBLIC": "select polrelid::regclass || ' ' || polname from pg_policy where 0 = any(polroles)",
    "no function or policy calls auth functions that raise on a Clerk id": f"""
        select p.oid::regprocedure::text from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname in {OURS} and p.prosrc ~ 'auth\\.(uid|role|email|jwt)'
        union all
        select tablename || ' ' || policyname from pg_policies where coalesce(qual, '') || coalesce(with_check, '') ~ 'auth\\.uid'""",
    "functions that policies call are stable, so that they run once per statement": """
        select p.oid::regprocedure::text from pg_proc as p
        join pg_namespace as n on n.oid = p.pronamespace
        join pg_depend as d on d.refobjid = p.oid and d.refclassid = 'pg_proc'::regclass and d.classid = 'pg_policy'::regclass
        where n.nspname = 'app' and p.provolatile <> 's'""",
    "a published table has no column that clients may not read: Realtime would show when it changes": f"""
        select p.schemaname || '.' || p.tablename || '.' || a.attname from pg_publication_tables as p
        join pg_attribute as a on a.attrelid = format('%I.%I', p.schemaname, p.tablename)::regclass and a.attnum > 0 and not a.attisdropped
        where p.schemaname in {OURS} and not has_column_privilege('authenticated', a.attrelid, a.attnum, 'select')""",
    "a deletion never clears organization_id": f"""
        select k.conrelid::regclass || '.' || k.conname from pg_constraint as k
        join pg_namespace as n on n.oid = k.connamespace join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = any(k.conkey)
        where n.nspname in {OURS} and k.contype = 'f' and a.attname = 'organization_id' and k.confdeltype in ('n', 'd')
          and (k.confdelsetcols is null or a.attnum = any(k.confdelsetcols))""",
    "a view in public obeys the policies of its reader: security_invoker": """
        select c.oid::regclass::text from pg_class as c
        where c.relnamespace = 'public'::regnamespace and (
          c.relkind = 'v' and not exists (select from unnest(c.reloptions) as o where o ~ '^security_invoker=(true|on|1|yes)$')
          or c.relkind = 'm' and (has_any_column_privilege('anon', c.oid, 'select') or has_any_column_privilege('authenticated', c.oid, 'select')))""",
    "every constraint is valid": f"""
        select k.conname::text from pg_constraint as k join pg_namespace as n on n.oid = k.connamespace
        where n.nspname in {OURS} and not k.convalidated""",
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(database: Database, rule: str) -> None:
    assert [row[0] for row in database.rows(RULES[rule])] == [], rule


# Each handler that catches every error, and why that hides no trouble of the server. Two handlers in one function need two entries.
CATCHES_ALL = {
    "app.record_changes()": "raises transient trouble again; counts other losses",
    "app.try_clerk_event(jsonb)": "raises transient trouble again; stores other failures with the event",
    "app.retry_clerk_event(text,boolean)": "the event is stored, and stays failed with this error",
    "app.read_clerk_event(text)": "repairs the text and reads it again, outside the handler",
    "app.apply_erasure(app.erasure_log,app.person,boolean)": "raises transient trouble again; a new plan replaces this one",
    "app.broadcast_changes()": "a lost broadcast never fails a write; it is counted",
    "app.broadcast_changes() (2)": "not even if it cannot be counted; the server's log has it",
    "app.register_mail_kind(text,text,text,boolean,interval,jsonb)": "raises the error again, with the function's name",
    "claim_mail(integer,text[])": "the mail stays queued with the code of the error",
    "app.take_token(text,text,double precision,double precision)": "a fault in the limiter must not refuse a write; nothing is lost",
    "app.purge_batch(app.personal_data,integer,text[])": "halves the batch; a single row is reported and tried again in the next run",
    "app.purge_organization(uuid,integer,text[])": "raises the error of a batch again; a single row is reported and tried again in the next run",
    "app.erase_batch(app.erasure_log,app.personal_data,app.person)": "halves the batch; a single row is recorded and tried again",
}


def test_only_listed_functions_catch_every_error(database: Database) -> None:
    """A handler that swallows a full disk or a deadlock hides a loss. Catch the errors that you expect, such as data_exception."""
    found = database.rows(
        f"""select p.oid::regprocedure::text || case when m.number > 1 then format(' (%s)', m.number) else '' end
        from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        cross join regexp_matches(p.prosrc, '\\mwhen\\s+(\\w+\\s+or\\s+)*others\\M', 'gi') with ordinality as m (match, number)
        where n.nspname in {OURS}"""
    )
    assert {name for (name,) in found} == set(CATCHES_ALL)


# An aggregate whose result has an order.
ORDERED_AGGREGATE = re.compile(
    r"\b(?:array\s*\((?=\s*(?:select|table|values|with)\b)|(?:array|string|jsonb?|xml)_?agg\s*\(|json_object_agg\s*\()",
    re.I,
)


def find_unordered_aggregates(source: str) -> list[str]:
    """Lists the aggregates of an SQL text whose elements come in the order of the plan."""
    found = []
    for match in ORDERED_AGGREGATE.finditer(source):
        depth, end = 1, match.end()
        while depth and end < len(source):
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            end += 1
        if not re.search(r"\border\s+by\b", source[match.end() : end], re.I):
            found.append(" ".join(source[match.start() : end].split()))
    return found


def test_a_function_that_creates_objects_does_not_depend_on_the_order_of_a_plan(database: Database) -> None:
    """After an ANALYZE the object would differ from its file: `migrate check` and `doctor` would report drift."""
    functions = database.rows(
        f"""select p.oid::regprocedure::text, p.prosrc from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where n.nspname in {OURS} and p.prosrc ~* '\\mexecute\\M' and p.prosrc ~* '\\m(create|alter|comment on)\\M'"""
    )
    assert "app.audit(regclass,text,text[],text,text[],text[],text[])" in dict(functions)
    found = {name: unordered for name, source in functions if (unordered := find_unordered_aggregates(source))}
    assert found == {}, "Add `order by` inside the aggregate."


def test_the_triggers_of_the_audit_trail_do_not_depend_on_the_plan(database: Database) -> None:
    database.execute(
        "create table public.test_probe (id uuid primary key, organization_id uuid, b_by uuid references public.profiles, "
        "a_by uuid references public.profiles)"
    )
    triggers = []
    for is_on in ("on", "off"):
        database.execute(f"set local enable_indexscan = {is_on}; select app.audit('public.test_probe')")
        rows = database.rows(
            "select pg_get_triggerdef(t.oid) from pg_trigger as t where t.tgrelid = 'public.test_probe'::regclass "
            "and not t.tgisinternal order by 1"
        )
        assert "{a_by,b_by}" in rows[0][0]
        triggers.append(rows)
    assert triggers[0] == triggers[1]


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("select array_agg(a.name) from a", True),
        ("select array_agg(a.name order by f(a.id)) from a", False),
        ("select string_agg(format('(%s)', a.name), ', ') from a order by 1", True),
        ("names := ARRAY (select a.name from a where a.x = any(b))", True),
        ("names := array(select a.name from a order by 1)", False),
        ("names := array['a', 'b']", False),
        ("select jsonb_object_agg(a.key, a.value) from a", False),
        ("select jsonb_agg(a.value), json_object_agg(a.key, a.value order by 1) from a", True),
    ],
)
def test_unordered_aggregates_are_found(source: str, is_found: bool) -> None:
    assert bool(find_unordered_aggregates(source)) == is_found


def functions_with_unfiltered_writes(database: Database) -> dict[str, list[str]]:
    functions = database.rows(
        f"""select p.oid::regprocedure::text, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)
        from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace where n.nspname in {OURS}"""
    )
    return {name: writes for name, source in functions if (writes := find_unfiltered_writes(source))}


def test_no_function_changes_every_row_of_a_table(database: Database) -> None:
    """When called through the API, hosted Supabase refuses such a statement. The local stack does not."""
    found = functions_with_unfiltered_writes(database)
    assert found == {}, "Add a WHERE clause to each statement, or `where true` if it must change all rows."


def test_functions_of_every_language_are_checked(database: Database) -> None:
    write = "update app.settings set mail_enabled = true"
    database.execute(
        f"""create function public.test_probe_sql() returns void language sql as '{write}';
        create function app.probe_atomic() returns void begin atomic {write}; end;
        create function ops.probe_plpgsql() returns void language plpgsql as 'begin {write}; end';
        create procedure app.probe_procedure() language sql as '{write}'"""
    )
    found = functions_with_unfiltered_writes(database)
    assert sorted(found) == ["app.probe_atomic()", "app.probe_procedure()", "ops.probe_plpgsql()", "test_probe_sql()"]


@pytest.mark.parametrize(
    "text",
    [
        "update app.t set a = 1",
        "begin delete from app.t; delete from app.u where a; end",
        "UPDATE t SET a = 1; select 1 from t where b",
        "update only t as x set a = u.a from u",
        "update t set a = (select max(b) from u where u.c = 1)",
        "delete from t using (select a from u where b) as u returning *",
        "with gone as (delete from t returning *) select * from gone where a",
        "begin for each in delete from t returning a loop perform f() where each.a; end loop; end",
        "begin return query update t set a = 1 -- where a\nreturning *; end",
        "begin if (select count(*) from t where a) > 1 then delete from t; end if; end",
        "begin execute 'delete from t'; end",
        "begin execute format('update %I.%I set %s', a, b, c) || where_clause; end",
        "begin execute format('with gone as (delete from %1$s returning *) select 1 from gone where a = ''x''', b); end",
        "begin execute $sql$update t set a = 'where'$sql$; end",
        "begin statement := E'update t set a = \\'1\\''; execute statement; end",
        'update "where" set a = 1',
        "begin atomic update t set a = 1; end",
    ],
)
def test_a_write_without_where_is_found(text: str) -> None:
    assert len(find_unfiltered_writes(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "update app.t set a = 1 where true",
        "begin delete from t where current of c; end",
        "with gone as (delete from t where a returning *), kept as (update t set b = 1 where not a) select 1",
        "insert into t values (1) on conflict (a) do update set a = excluded.a",
        "merge into t using u on t.a = u.a when matched then update set b = u.b when not matched by source then delete",
        "begin select 1 into a from t for update; select 1 into a from t for no key update skip locked; end",
        "begin grant select, update, delete on t to a; revoke update (b) on t from a; end",
        "create trigger x after insert or update of a or delete on t for each row execute function f()",
        "create table t (a integer references u on update cascade on delete cascade)",
        "begin if tg_op = 'UPDATE' or tg_op in ('DELETE', 'update') then return old; end if; end",
        "begin -- delete from t\n /* update t set a = 1; */ return; end",
        "begin execute format('delete from %1$s as t using batch where t.ctid = batch.place', a); end",
        "select 'Mail is off: `update app.settings set mail_enabled = true`.'",
        "select has_table_privilege('t', 'select, insert, update, delete')",
        "truncate t",
    ],
)
def test_a_write_with_where_and_other_similar_text_pass(text: str) -> None:
    assert find_unfiltered_writes(text) == []


@pytest.mark.parametrize(
    ("language", "body", "is_found"),
    [
        ("sql", "select true", True),
        ("sql", "select true; select app.refuse_clerk_tokens(); select true", True),
        ("sql", "select app.refuse_clerk_tokens(); select true", False),
        ("plpgsql", "begin perform pg_notify('x', ''); perform app.refuse_clerk_tokens(); return true; end", True),
        ("plpgsql", "declare\n  x integer;\nbegin perform app.refuse_clerk_tokens(); return true; end", False),
    ],
)
def test_a_function_for_the_service_without_the_check_is_found(
    database: Database, language: str, body: str, is_found: bool
) -> None:
    database.execute(f"create function public.test_probe() returns boolean language {language} as $${body}$$")
    database.execute("grant execute on function public.test_probe() to service_role")
    [rule] = [query for name, query in RULES.items() if "refuses Clerk's tokens" in name]
    assert database.rows(rule) == [("test_probe()",)] * is_found


def test_every_json_column_refuses_more_than_64_levels(database: Database) -> None:
    assert find_unchecked_columns(database) == [], "Add: check (not jsonb_path_exists(value, 'strict $.**{64}'))"


def test_a_json_column_of_any_form_without_the_check_is_found(database: Database) -> None:
    check = "check (not jsonb_path_exists({}, 'strict $.**{{64}}'))".format
    database.execute(
        f"""create domain app.loose as jsonb check (jsonb_typeof(value) = 'object');
        create domain app.strict as jsonb {check("value")};
        create type app.pair as (name text, value jsonb);
        create table public.test_probe (
          id integer primary key, plain jsonb, text json, list jsonb[], domain app.loose, pair app.pair, pairs app.pair[],
          sized jsonb check (octet_length(sized::text) < 65536), either jsonb check (either is not null or not jsonb_path_exists(either, 'strict $.**{{64}}')),
          later jsonb check (not jsonb_path_exists(later, 'strict $.**{{65}}')),
          good_plain jsonb {check("good_plain")}, good_text json {check("good_text::jsonb")}, good_list jsonb[] {check("to_jsonb(good_list)")},
          good_domain app.strict, good_pair app.pair {check("to_jsonb(good_pair)")}, "Good name" jsonb, {check('"Good name"')}
        )"""
    )
    names = ("domain", "either", "later", "list", "pair", "pairs", "plain", "sized", "text")
    assert find_unchecked_columns(database) == [f"test_probe.{name}" for name in names]


def test_every_function_of_the_api_refuses_json_with_more_than_64_levels(database: Database) -> None:
    assert find_unchecked_arguments(database) == [], "Begin with: perform app.refuse_deep_json(value);"


def test_an_argument_of_any_form_that_accepts_more_levels_is_found(database: Database) -> None:
    database.execute(
        """create function public.test_probe_sql(value jsonb) returns jsonb language sql as 'select value';
        create function app.probe_list(name text, variadic parts json[]) returns void language plpgsql as 'begin end';
        create function public.test_probe_late(value jsonb) returns void language plpgsql security definer as $$
          begin raise sqlstate 'PT403'; perform app.refuse_deep_json(value); end $$;
        create function public.test_probe_good(value jsonb) returns void language plpgsql security definer as $$
          begin perform app.refuse_deep_json(value); end $$;
        grant execute on function public.test_probe_sql(jsonb), app.probe_list(text, json[]) to authenticated;
        grant execute on function public.test_probe_late(jsonb), public.test_probe_good(jsonb) to service_role"""
    )
    assert find_unchecked_arguments(database) == [
        "app.probe_list(text,json[]), argument 2, as authenticated",
        "test_probe_late(jsonb), argument 1, as service_role",
        "test_probe_sql(jsonb), argument 1, as authenticated",
    ]


def find_tenant_keys(database: Database, table: str = "") -> list[str]:
    return [found.name for found in drift.find_tenant_keys(database.connection) if found.name.endswith(table)]


def test_no_key_joins_rows_of_several_tenants(database: Database) -> None:
    assert find_tenant_keys(database) == [], "Include organization_id, or add: comment on … is 'Across tenants: …'."


# Keys of a tenant table with a column `number` that clients write. `test_parents` is a tenant table, too.
PARENT = "public.test_parents"
JOINING = (
    "number text unique",
    "number text, unique (number) include (organization_id)",
    "number text, exclude (number with =)",
    f"number uuid references {PARENT}",
    f"number uuid, other uuid, foreign key (number, other) references {PARENT} (organization_id, id)",
    f"number uuid, foreign key (number, organization_id) references {PARENT} (organization_id, id)",
    "number uuid references public.profiles",
    "number uuid references public.organizations",
    "number uuid, primary key (number)",
    "number uuid default gen_random_uuid(), primary key (number)",
    f"number uuid, id uuid primary key default gen_random_uuid() references {PARENT}",
)
SEPARATE = (
    "number text, unique (organization_id, number)",
    "number text, unique nulls not distinct (number, organization_id)",
    "number text, id uuid primary key default gen_random_uuid()",
    "number text, id bigint generated always as identity primary key",
    f"number uuid, foreign key (organization_id, number) references {PARENT} (organization_id, id)",
    f"number uuid, other uuid, foreign key (organization_id, other) references {PARENT} (organization_id, id) match full",
    "number uuid, foreign key (organization_id, number) references public.organization_memberships (organization_id, user_id)",
    "number uuid, other uuid references public.profiles",
)
JOINING_INDEXES = (
    "(number)", "(lower(number))", "(number) include (organization_id)", "(number) where organization_id is not null",
    "((organization_id::text || number))",
)  # fmt: skip


@pytest.fixture
def tenants(database: Database) -> Database:
    """A database with a tenant table that keys may refer to."""
    database.execute(
        f"""create table {PARENT} (
          id uuid primary key default gen_random_uuid(), organization_id uuid not null references public.organizations on delete cascade,
          unique (organization_id, id))"""
    )
    return database


def create_table(database: Database, definition: str, name: str = "public.test_children", rest: str = "") -> None:
    database.execute(f"create table {name} (organization_id uuid references public.organizations, {definition}) {rest}")
    database.execute(f"grant insert (organization_id, number), select on {name} to authenticated")


@pytest.mark.parametrize(
    ("definition", "is_found"), [*((key, True) for key in JOINING), *((key, False) for key in SEPARATE)]
)
def test_a_key_that_joins_rows_of_several_tenants_is_found(tenants: Database, definition: str, is_found: bool) -> None:
    create_table(tenants, definition)
    assert len(find_tenant_keys(tenants, "test_children")) == is_found


@pytest.mark.parametrize("columns", JOINING_INDEXES)
def test_a_unique_index_that_joins_rows_of_several_tenants_is_found(tenants: Database, columns: str) -> None:
    create_table(tenants, "number text")
    tenants.execute(f"create unique index test_index on public.test_children {columns}")
    assert find_tenant_keys(tenants, "test_children") == ["test_index on test_children"]
    tenants.execute("comment on index public.test_index is 'Across tenants: the number is part of a public address.'")
    assert find_tenant_keys(tenants, "test_children") == []


def test_a_comment_must_explain_why_a_key_joins_rows_of_several_tenants(tenants: Database) -> None:
    create_table(tenants, f"number uuid constraint test_key references {PARENT}")
    for comment, is_found in (("For speed.", True), ("Across tenants: ", True), ("Across tenants: shared.", False)):
        tenants.execute(f"comment on constraint test_key on public.test_children is '{comment}'")
        assert bool(find_tenant_keys(tenants, "test_children")) == is_found


def test_a_key_of_a_partition_is_found_and_that_of_its_table_once(tenants: Database) -> None:
    create_table(tenants, f"number uuid references {PARENT}", rest="partition by list (number)")
    tenants.execute("create table public.test_part partition of public.test_children default")
    assert len(find_tenant_keys(tenants, "test_children")) == 1
    tenants.execute("create unique index test_index on public.test_part (number)")
    assert find_tenant_keys(tenants, "test_part") == ["test_index on test_part"]


def test_a_key_that_clients_write_in_a_table_without_tenants_is_found(tenants: Database) -> None:
    tenants.execute(
        f"create table public.test_notes (id uuid primary key references {PARENT}, number text unique, other text unique)"
    )
    assert find_tenant_keys(tenants, "test_notes") == []
    tenants.execute("grant update (number) on public.test_notes to authenticated")
    assert find_tenant_keys(tenants, "test_notes") == ["test_notes_number_key on test_notes"]
    tenants.execute("grant insert (id) on public.test_notes to authenticated")
    assert len(find_tenant_keys(tenants, "test_notes")) == 3


def test_an_exclusion_constraint_must_compare_the_organization_with_equality(superuser: Database) -> None:
    superuser.execute("create extension if not exists btree_gist schema extensions")
    for operator, is_found in (("<>", True), ("=", False)):
        superuser.execute(
            f"""create table public.test_stays (organization_id uuid, during tstzrange,
              exclude using gist (organization_id extensions.gist_uuid_ops with {operator}, during with &&))"""
        )
        assert bool(find_tenant_keys(superuser, "test_stays")) == is_found
        superuser.execute("drop table public.test_stays")


def test_a_view_that_ignores_the_policies_of_its_reader_is_found(database: Database) -> None:
    for number, options in enumerate(
        ("", "with (security_invoker = false)", "with (security_invoker)", "with (security_invoker = on)")
    ):
        database.execute(f"create view public.test_view_{number} {options} as select 1 as one")
    database.execute(
        "create materialized view public.test_sums as select 1 as one; grant select on public.test_sums to authenticated"
    )
    [rule] = [query for name, query in RULES.items() if "security_invoker" in name]
    assert {name for (name,) in database.rows(rule)} == {"test_view_0", "test_view_1", "test_sums"}


def test_schema_ops_and_nothing_else_is_in_8_ops() -> None:
    makes = re.compile(r"^create or replace \w+ (\w+)\.", re.MULTILINE)
    schemas = {path: set(makes.findall(path.read_text())) for path in (ROOT / "functions").rglob("*.sql")}
    assert {path.parent.name for path, made in schemas.items() if "ops" in made} == {"8_ops"}
    assert {schema for path, made in schemas.items() if path.parent.name == "8_ops" for schema in made} == {"ops"}


def test_an_object_that_needs_an_extension_breaks_the_rule(superuser: Database) -> None:
    superuser.execute("create extension if not exists citext schema extensions")
    superuser.execute("create table public.test_needy (id integer primary key, name extensions.citext)")
    assert superuser.rows(RULES["no extension is needed"]) == [("table column public.test_needy.name needs citext",)]


# Hosted Supabase refuses changes of these roles, except of their settings. The local server cannot refuse them.
RESERVED_ROLES = "anon|authenticated|service_role|authenticator|supabase_\\w+|dashboard_user|pgbouncer"
CHANGES_RESERVED_ROLE = re.compile(
    rf'\b(?:create|alter|drop)\s+(?:role|user|group)\s+(?:if\s+exists\s+)?"?(?:{RESERVED_ROLES})\b"?'
    r"(?!\s+(?:in\s+database\s+\S+\s+)?(?:set|reset)\b)",
    re.IGNORECASE,
)


def test_no_file_changes_a_reserved_role() -> None:
    files = [path for folder in ("migrations", "functions", "policies") for path in (ROOT / folder).rglob("*.sql")]
    assert [path.name for path in files if CHANGES_RESERVED_ROLE.search(path.read_text())] == []


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("alter role authenticated bypassrls", True),
        ("ALTER USER authenticator RENAME TO gate", True),
        ('drop role if exists "anon"', True),
        ("alter role authenticator set pgrst.db_pre_request = 'app.check_request'", False),
        ("alter role anon in database postgres reset statement_timeout", False),
        ("alter role reporting nologin", False),
    ],
)
def test_a_change_of_a_reserved_role_is_recognised(statement: str, refused: bool) -> None:
    assert bool(CHANGES_RESERVED_ROLE.search(statement)) == refused


def test_migrations_ran_as_postgres_without_superuser_rights(database: Database) -> None:
    assert database.value("select not rolsuper and rolbypassrls from pg_roles where rolname = current_user")
    owners = database.rows(
        f"select distinct pg_get_userbyid(relowner) from pg_class where relnamespace::regnamespace::text in {OURS}"
    )
    assert owners == [("postgres",)]


def test_a_new_table_has_no_grants_until_its_policies_file_adds_them(database: Database) -> None:
    database.execute("create table public.test_probe (id integer primary key)")
    database.execute("create function public.test_probe_function() returns integer language sql as 'select 1'")
    for role in ("anon", "authenticated", "service_role"):
        assert not database.value(
            "select has_table_privilege(%s, 'public.test_probe', 'select, insert, update, delete')", role
        )
        assert not database.value("select has_function_privilege(%s, 'public.test_probe_function()', 'execute')", role)


def test_the_permission_matrix_is_the_specified_one(database: Database) -> None:
    """A product declares its part in tests/tables and tests/permissions. Other tests read the matrix from the database."""
    viewer = {"specimens:read", "members:read"}
    member = viewer | {"specimens:create", "specimens:update"}
    admin = member | {"specimens:delete", "members:invite", "members:remove", "organization:update", "audit:read"}
    owner = admin | {"billing:manage", "organization:delete"}
    matrix = {"viewer": viewer, "member": member, "admin": admin, "owner": owner}
    roles = matrix.keys() | declared_roles()
    rows = database.rows("select role, array_agg(permission) from public.role_permissions group by role")
    assert {role: set(permissions) for role, permissions in rows} == {
        role: matrix.get(role, set()) | permissions_of(role) for role in roles
    }, "State what a role of yours may do in tests/permissions/<name>.toml."
