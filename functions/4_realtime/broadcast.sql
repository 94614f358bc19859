-- Live changes: writes to a tenant table are broadcast to the members who may read it. functions/9_tables/*.sql switches this on per table.

-- Each read permission has its own topic: org:<organization id>:<permission>.
create or replace function app.org_topic(organization_id uuid, permission text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(':', 'org', organization_id, permission);
$$;
comment on function app.org_topic is 'The private topic for an organization''s rows that are read with this permission.';

create or replace function app.topics() returns text[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select topic
    from app.caller_memberships as m
    join public.role_permissions as rp on rp.role = m.role
    cross join lateral (
      values (app.org_topic(m.organization_id, rp.permission)),
      (case when rp.permission = 'members:read' then app.org_topic(m.organization_id, 'presence') end)
    ) as t (topic)
    where rp.permission like '%:read' and topic is not null
  );
end;
$$;
comment on function app.topics is 'The private topics that the caller may subscribe to. Definer: it reads app.caller_memberships. The caller learns: topics of their own organizations.';

-- Turns the rows that a statement wrote into messages. Messages contain only columns that clients may select. An update is sent only if
-- one of these columns changed. Moving a row to another tenant is a DELETE for the old one. Deletes carry only the primary key.
-- Each statement inserts its messages at once, however many rows it wrote: docs/decisions/0006-one-insert-broadcasts-a-statement.md.
-- A table's columns may have any name: variables win over columns, and n.* is the row whatever its columns are called.
create or replace function app.broadcast_changes() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  permission text := tg_argv[0];
  change jsonb := jsonb_build_object('schema', tg_table_schema, 'table', tg_table_name, 'operation', tg_op, 'record', null, 'old_record', null);
  deletion jsonb := change || '{"operation": "DELETE"}';
  hidden text[];
  not_key text[];
  lost bigint;
begin
  -- Not assigned in the declarations: the exception block does not catch errors there.
  hidden := array(
    select a.attname::text
    from pg_attribute as a
    where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped
      and not has_column_privilege('authenticated', tg_relid, a.attnum, 'select')
  );
  not_key := hidden || array(
    select a.attname::text
    from pg_attribute as a
    where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped and not exists (
      select from pg_constraint as k where k.conrelid = tg_relid and k.contype = 'p' and a.attnum = any(k.conkey)
    )
  );
  if tg_op = 'INSERT' then
    insert into realtime.messages (topic, extension, event, private, payload)
    select app.org_topic(n.organization_id, permission), 'broadcast', 'INSERT', true, change || jsonb_build_object('record', to_jsonb(n.*) - hidden)
    from new_rows as n;
  elsif tg_op = 'UPDATE' then
    insert into realtime.messages (topic, extension, event, private, payload)
    select app.org_topic(c.organization_id, permission), 'broadcast', 'UPDATE', true, change || jsonb_build_object('record', c.record)
    from (
      select n.organization_id, to_jsonb(n.*) - hidden as record from new_rows as n
      except
      select o.organization_id, to_jsonb(o.*) - hidden from old_rows as o
    ) as c;
    insert into realtime.messages (topic, extension, event, private, payload)
    select app.org_topic(c.organization_id, permission), 'broadcast', 'DELETE', true, deletion || jsonb_build_object('old_record', c.key)
    from (
      select o.organization_id, to_jsonb(o.*) - not_key as key from old_rows as o
      except
      select n.organization_id, to_jsonb(n.*) - not_key from new_rows as n
    ) as c;
  else
    insert into realtime.messages (topic, extension, event, private, payload)
    select app.org_topic(o.organization_id, permission), 'broadcast', 'DELETE', true, deletion || jsonb_build_object('old_record', to_jsonb(o.*) - not_key)
    from old_rows as o;
  end if;
  return null;
exception when others then
  -- A lost broadcast never fails the write, not even if it cannot be counted. Clients read again when they reconnect.
  raise warning 'A change of % was not broadcast (%).', tg_relid::regclass, sqlstate;
  begin
    if tg_op = 'DELETE' then
      select count(*) into lost from old_rows;
    else
      select count(*) into lost from new_rows;
    end if;
    perform app.record_loss('broadcast', tg_relid, sqlstate, lost);
  exception when others then
    raise warning 'The lost broadcast of % was not counted (%).', tg_relid::regclass, sqlstate;
  end;
  return null;
end;
$$;
comment on function app.broadcast_changes is
'Broadcasts the rows that a statement wrote, on the topic of each row''s organization. Definer: clients may not send there. The caller learns: nothing.';

create or replace function app.broadcast(relation regclass, permission text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  event record;
begin
  if not exists (select from pg_constraint as k where k.conrelid = relation and k.contype = 'p') then
    raise exception '% has no primary key, which broadcasts of deletions need.', relation;
  elsif not exists (
    select from pg_attribute as a where a.attrelid = relation and a.attname = 'organization_id' and a.atttypid = 'uuid'::regtype
  ) then
    raise exception '% has no organization_id of type uuid, which selects the topic.', relation;
  elsif not exists (select from public.role_permissions as rp where rp.permission = broadcast.permission) then
    raise exception 'No role has the permission %.', permission;
  end if;
  for event in
    values ('insert', 'new table as new_rows'), ('update', 'old table as old_rows new table as new_rows'), ('delete', 'old table as old_rows')
  loop
    execute format(
      'create or replace trigger broadcast_%s after %s on %s referencing %s for each statement execute function app.broadcast_changes(%L)',
      event.column1, event.column1, relation, event.column2, permission
    );
  end loop;
end;
$$;
comment on function app.broadcast is
'Switches broadcasts on for a tenant table whose rows are read with the permission. May be called again.';

grant execute on function app.topics() to authenticated;

select app.broadcast('public.organization_memberships', 'members:read');
select app.broadcast('public.organization_invitations', 'members:read');
