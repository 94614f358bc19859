-- Steps of the service's periodic jobs. Each call is short and safe to repeat.

create or replace function public.maintain_partitions() returns integer
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select app.make_audit_partitions();
$$;
comment on function public.maintain_partitions is
'Creates the audit trail''s partitions for the coming months. Returns how many it created. Definer: the service may not create tables.';

create or replace function public.seals_after(newest bigint, seal text default null) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.refuse_clerk_tokens();
  perform app.seal_audit();
  return app.seals_after(newest, seal);
end;
$$;
comment on function public.seals_after is
'Seals the finished part of the audit trail. Returns up to 1,000 seals after the given one, oldest first, to be stored outside the database; null if the chain does not contain that one. Definer: the service has no privilege on tables.';

grant execute on function public.maintain_partitions(), public.seals_after(bigint, text) to service_role;
