-- What `ballast bench audit` compares our audit trail with: the usual trigger, which keeps both rows whole, and a log table with the same
-- kind of indexes as ours. Definer, as ours: the caller may not write the log.

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

-- Only the audit is compared: broadcasts cost the same whatever is recorded.
alter table public.projects disable trigger broadcast_insert;
alter table public.projects disable trigger broadcast_update;
alter table public.projects disable trigger audit_insert;
alter table public.projects disable trigger audit_update;
alter table public.projects disable trigger bench_row;
