-- Supabase Realtime's part of the database: realtime.messages, whose policies authorize private channels, and the functions that send.
-- Runs as the superuser at each start of the server, before migrations. Every statement may run again.

grant usage, create on schema public to supabase_realtime_admin;
grant usage on schema auth, extensions to supabase_realtime_admin;

create schema if not exists realtime;
grant usage on schema realtime to anon, authenticated, service_role;
grant usage on schema realtime to postgres with grant option;
grant all on schema realtime to supabase_realtime_admin with grant option;

create table if not exists realtime.messages (
  topic text not null,
  extension text not null,
  payload jsonb,
  event text,
  private boolean default false,
  updated_at timestamp not null default now(),
  inserted_at timestamp not null default now(),
  id uuid not null default gen_random_uuid(),
  primary key (id, inserted_at)
) partition by range (inserted_at);
alter table realtime.messages add column if not exists binary_payload bytea;
create table if not exists realtime.messages_default partition of realtime.messages default;
alter table realtime.messages owner to supabase_realtime_admin;
alter table realtime.messages_default owner to supabase_realtime_admin;
alter table realtime.messages enable row level security;
grant select, insert, update on realtime.messages to postgres, anon, authenticated, service_role;

-- Replaces supautils, a library of hosted Supabase that lets postgres manage policies on realtime.messages without owning the table.
-- With supautils, every CREATE, ALTER or DROP POLICY by postgres, on any table, locks realtime.messages until the transaction ends.
-- Hosted Supabase also locks the tables of auth and storage. Here postgres owns the table while such a statement runs. The owner is
-- changed in pg_class, because ALTER TABLE would change the grants.
create or replace function realtime.lend_messages() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if 'postgres' in (session_user, current_setting('role')) and to_regclass('realtime.messages') is not null then
    if tg_event = 'ddl_command_start' then
      execute 'lock table only realtime.messages in access exclusive mode';
    end if;
    update pg_class set relowner = case tg_event when 'ddl_command_start' then 'postgres' else 'supabase_realtime_admin' end::regrole
    where oid = to_regclass('realtime.messages');
  end if;
end;
$$;
drop event trigger if exists lend_messages;
create event trigger lend_messages on ddl_command_start when tag in ('CREATE POLICY', 'ALTER POLICY', 'DROP POLICY')
execute function realtime.lend_messages();
drop event trigger if exists take_messages_back;
create event trigger take_messages_back on ddl_command_end when tag in ('CREATE POLICY', 'ALTER POLICY', 'DROP POLICY')
execute function realtime.lend_messages();

create or replace function realtime.topic() returns text language sql stable
as $$ select nullif(current_setting('realtime.topic', true), '') $$;

-- Sends with the caller's privileges. If a message cannot be sent, it raises a warning, and the caller's statement succeeds.
create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void
language plpgsql as $$
declare
  message uuid := gen_random_uuid();
begin
  perform set_config('realtime.topic', topic, true);
  insert into realtime.messages (id, payload, event, topic, private, extension)
  values (
    message, case when payload ? 'id' then payload else payload || jsonb_build_object('id', message) end, event, topic, private, 'broadcast'
  );
exception when others then
  raise warning 'The broadcast could not be sent: %', sqlerrm;
end;
$$;

-- For row triggers: sends the complete new and old row, regardless of column privileges.
create or replace function realtime.broadcast_changes(
  topic_name text, event_name text, operation text, table_name text, table_schema text, new record, old record, level text default 'ROW'
) returns void
language plpgsql as $$
begin
  if level = 'STATEMENT' then
    raise exception 'realtime.broadcast_changes is for row triggers';
  end if;
  perform realtime.send(
    jsonb_build_object('schema', table_schema, 'table', table_name, 'operation', operation, 'record', new, 'old_record', old),
    event_name, topic_name
  );
end;
$$;

alter function realtime.topic() owner to supabase_realtime_admin;
alter function realtime.send(jsonb, text, text, boolean) owner to supabase_realtime_admin;
alter function realtime.broadcast_changes(text, text, text, text, text, record, record, text) owner to supabase_realtime_admin;

do $$
begin
  if not exists (select from pg_publication where pubname = 'supabase_realtime_messages_publication') then
    create publication supabase_realtime_messages_publication for table realtime.messages;
  end if;
  -- The publication for Postgres Changes, to which tables are added. Hosted projects have it from the start.
  if not exists (select from pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
    alter publication supabase_realtime owner to postgres;
  end if;
end;
$$;

-- The functions below are for our Realtime server. Hosted Realtime has its own functions for the same purpose.

-- The replication stream may deliver a commit before new snapshots can see it. This waits until they can.
create or replace function realtime.wait_until_visible(xid xid8) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  for attempt in 1 .. 10000 loop
    exit when pg_visible_in_snapshot(xid, pg_current_snapshot());
    perform pg_sleep(0.0005);
  end loop;
end;
$$;

-- Converts a row of the stream ({column: text}) to the values that PostgREST returns. Each value is a separate JSON text, because a client
-- of the Data API can store numbers that not every JSON parser can read.
create or replace function realtime.row_as_json(relation oid, texts jsonb) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  pairs text;
  result jsonb;
begin
  select string_agg(
    format(
      '(%L, coalesce(to_jsonb(%L::%s)::text, ''null''))', a.attname, texts ->> a.attname,
      case when a.atttypid = 'bytea'::regtype then 'text' else format_type(a.atttypid, a.atttypmod) end
    ), ', '
  ) into pairs
  from pg_attribute as a
  where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and texts ? a.attname;
  if pairs is not null then
    execute format('select jsonb_object_agg(v.name, v.value) from (values %s) as v (name, value)', pairs) into result;
  end if;
  return result;
end;
$$;

-- Whether a row passes all filters, each [column, operator, value, negated]. A filter on a column that the row lacks never passes.
create or replace function realtime.passes(relation oid, texts jsonb, filters jsonb) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  filter jsonb;
  kind text;
  passed boolean;
begin
  for filter in select * from jsonb_array_elements(filters) loop
    if texts is null or not texts ? (filter ->> 0) then
      return false;
    end if;
    select format_type(a.atttypid, a.atttypmod) into kind
    from pg_attribute as a where a.attrelid = relation and a.attname = filter ->> 0;
    execute format('select %L::%s ', texts ->> (filter ->> 0), kind) || case filter ->> 1
      when 'is' then format('is %s', filter ->> 2)
      when 'isdistinct' then format('is distinct from %L::%s', filter ->> 2, kind)
      when 'in' then format('= any(%L::%s[])', filter ->> 2, kind)
      else format('%s %L::%s', filter ->> 1, filter ->> 2, kind)
    end into passed;
    if (case when (filter ->> 3)::boolean then not passed else passed end) is not true then
      return false;
    end if;
  end loop;
  return true;
end;
$$;

-- Decides which subscribers may see a change, and which columns of it. Takes [{"id", "role", "claims", "filters"}]. Returns
-- {"new": row, "old": row, "secured": whether the table has RLS, "key": [column], "columns": {role: [{"name", "type"}]},
-- "recipients": {id: null or an error}, "raised": [SQLSTATE]}.
--
-- Example: user_ada inserts row 1 of notes, whose policy is `owner = sub`. Subscriber 0 is Ada, 1 is Ben, and 2 is Ada with the filter
-- id=gt.5. For 0 and 1 the probe `select exists (select from notes where id = '1')` runs with their claims: Ada sees the row, Ben does
-- not. The filter excludes 2 without a probe. The result has "recipients": {"0": null}.
create or replace function realtime.visible_change(relation oid, kind text, new_texts jsonb, old_texts jsonb, subscribers jsonb)
returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  secured boolean;
  key_columns text[];
  key_values text;
  probe text;
  prepared text;
  columns jsonb := '{}';
  recipients jsonb := '{}';
  raised text[] := '{}';
  caller record;
  subscription jsonb;
  refusal text;
  visible boolean;
begin
  select c.relrowsecurity into secured from pg_class as c where c.oid = relation;
  select coalesce(array_agg(a.attname::text order by a.attnum), '{}') into key_columns
  from pg_constraint as k join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = any(k.conkey)
  where k.conrelid = relation and k.contype = 'p';
  select
    format('select exists (select from %s where %s)', relation::regclass, string_agg(format('%I = $%s', k, n), ' and ')),
    string_agg(quote_nullable(new_texts ->> k), ', ' order by n)
  into probe, key_values from unnest(key_columns) with ordinality as u (k, n);

  for caller in
    select s.value ->> 'role' as role, array_agg(s.value) as subscriptions
    from jsonb_array_elements(subscribers) as s group by 1
  loop
    columns := columns || jsonb_build_object(caller.role, (
      select coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', t.typname) order by a.attnum), '[]')
      from pg_attribute as a join pg_type as t on t.oid = a.atttypid
      where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
        and has_column_privilege(caller.role, relation, a.attnum, 'select')
    ));
    refusal := case
      when kind = 'DELETE' then null
      when key_columns = '{}' then 'Error 400: Bad Request, no primary key'
      when exists (select from unnest(key_columns) as k where not has_column_privilege(caller.role, relation, k, 'select'))
        then 'Error 401: Unauthorized'
    end;
    -- The probe is prepared once per role, because planning takes as long as running the policy, and the plan includes row level security.
    -- Sequential scans are disabled (set enable_seqscan): a small table may grow while its plan is kept.
    prepared := 'visible_' || md5(caller.role || probe);
    if secured and refusal is null and not exists (select from pg_prepared_statements as p where p.name = prepared) then
      execute format('prepare %I as %s', prepared, probe);
    end if;
    foreach subscription in array caller.subscriptions loop
      -- A policy or filter may raise an error for one subscriber's values. That must not affect the other subscribers.
      begin
        visible := realtime.passes(relation, new_texts, subscription -> 'filters')
          or (kind = 'DELETE' and realtime.passes(relation, old_texts, subscription -> 'filters'));
        if visible and secured and kind <> 'DELETE' and refusal is null then
          perform set_config('request.jwt.claims', subscription ->> 'claims', true), set_config('role', caller.role, true);
          execute format('execute %I (%s)', prepared, key_values) into visible;
          perform set_config('role', 'none', true);
        end if;
        if visible then
          recipients := recipients || jsonb_build_object(subscription ->> 'id', refusal);
        end if;
      exception when others then
        raised := raised || sqlstate;
      end;
    end loop;
  end loop;
  return jsonb_build_object(
    'new', realtime.row_as_json(relation, new_texts), 'old', realtime.row_as_json(relation, old_texts),
    'secured', secured, 'key', key_columns, 'columns', columns, 'recipients', recipients, 'raised', raised
  );
end;
$$;

revoke execute on function
  realtime.wait_until_visible(xid8), realtime.row_as_json(oid, jsonb), realtime.passes(oid, jsonb, jsonb),
  realtime.visible_change(oid, text, jsonb, jsonb, jsonb)
from public;
