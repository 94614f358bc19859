-- The alternative that `./scripts/bench audit` compares with our audit trail: the usual row trigger. It stores both rows completely in a
-- log table with indexes like ours. Its function is a definer like ours, because the caller may not write to the log.

create schema bench;

create table bench.log (
  id uuid not null default gen_random_uuid() primary key,
  organization_id uuid,
  clerk_user_id text,
  action text not null,
  resource_type text not null,
  resource_id text,
  old jsonb,
  new jsonb,
  created_at timestamptz not null default now()
);
create index log_organization_id_created_at_idx on bench.log (organization_id, created_at desc, id desc);
create index log_clerk_user_id_created_at_idx on bench.log (clerk_user_id, created_at desc);
create index log_resource_idx on bench.log (resource_type, resource_id, created_at desc);

create function bench.log_row() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into bench.log (organization_id, clerk_user_id, action, resource_type, resource_id, old, new)
  values (
    new.organization_id, current_setting('request.jwt.claims', true)::jsonb ->> 'sub', tg_op, tg_table_name, new.id, to_jsonb(old), to_jsonb(new)
  );
  return null;
end;
$$;

create trigger bench_row after insert or update on public.projects for each row execute function bench.log_row();

-- Broadcasts are off, because only the cost of the audit is compared.
alter table public.projects disable trigger broadcast_insert;
alter table public.projects disable trigger broadcast_update;
alter table public.projects disable trigger audit_insert;
alter table public.projects disable trigger audit_update;
alter table public.projects disable trigger bench_row;
