-- Steps of the service's periodic jobs. Each call is short and safe to repeat.

create or replace function public.maintain_partitions() returns integer
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select app.make_audit_partitions();
$$;
comment on function public.maintain_partitions is
'Creates the audit trail''s partitions for the coming months. Returns how many it created. Definer: the service may not create tables.';

create or replace function public.seals_after(newest bigint) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.refuse_clerk_tokens();
  perform app.seal_audit();
  return (
    select coalesce(jsonb_agg(to_jsonb(s) || jsonb_build_object('seal', encode(s.seal, 'hex'), 'digest', encode(s.digest, 'hex')) order by s.sequence), '[]')
    from (select a.* from app.audit_seals as a where a.sequence > seals_after.newest order by a.sequence limit 1000) as s
  );
end;
$$;
comment on function public.seals_after is
'Seals the finished part of the audit trail. Returns up to 1,000 seals after the given sequence, oldest first, to be stored outside the database. Definer: the service has no privilege on tables.';

grant execute on function public.maintain_partitions(), public.seals_after(bigint) to service_role;
