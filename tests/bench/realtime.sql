-- Triggers that `./scripts/bench realtime` compares with our statement trigger; a transaction enables one of them.
-- Their functions are definers like ours, because the caller may not send on these topics.

create schema bench;

-- As documented by Supabase: sends the whole row, with one call per row.
create function bench.broadcast_row() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform realtime.broadcast_changes(app.org_topic(new.organization_id, 'projects:read'), tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
  return null;
end;
$$;

-- A statement trigger that sends each row separately.
create function bench.send_each() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform realtime.send(
    jsonb_build_object('schema', tg_table_schema, 'table', tg_table_name, 'operation', tg_op, 'record', to_jsonb(n)),
    tg_op, app.org_topic(n.organization_id, 'projects:read')
  )
  from new_rows as n;
  return null;
end;
$$;

create trigger bench_row after insert on public.projects
for each row execute function bench.broadcast_row();

create trigger bench_send after insert on public.projects referencing new table as new_rows
for each statement execute function bench.send_each();

alter table public.projects disable trigger bench_row;
alter table public.projects disable trigger bench_send;
alter table public.projects disable trigger broadcast_insert;
