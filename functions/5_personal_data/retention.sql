-- Retention: deletes expired rows (by the rules in app.personal_data), deleted organizations with all their rows, and old months of the
-- audit trail.

-- Deletes in batches, table by table: one statement for a large organization would take minutes.
create or replace function app.purge_organizations(batch integer) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  tenant public.organizations;
  child record;
  purged integer := 0;
begin
  select o.* into tenant from public.organizations as o
  where o.deleted_at < now() - (select app.retention_period(d) from app.personal_data as d where d.relation = 'public.organizations')
  order by o.deleted_at limit 1;
  if not found then
    return 0;
  end if;
  perform app.lock_clerk_objects(array[tenant.clerk_org_id]); -- before the row lock: Clerk events lock in this order
  perform from public.organizations as o where o.id = tenant.id for update;
  perform set_config('app.unaudited', 'on', true);
  for child in
    select k.conrelid::regclass as relation, a.attname as name
    from pg_constraint as k
    join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    where k.contype = 'f' and k.confrelid = 'public.organizations'::regclass and cardinality(k.conkey) = 1
  loop
    execute format(
      'with batch as materialized (select t.tableoid as part, t.ctid as place from %1$s as t where t.%2$I = $1 limit $2) '
      'delete from %1$s as t using batch where t.tableoid = batch.part and t.ctid = batch.place', child.relation, child.name
    ) using tenant.id, batch;
    get diagnostics purged = row_count;
    exit when purged > 0;
  end loop;
  if purged > 0 then
    perform set_config('app.unaudited', '', true);
    return purged;
  end if;
  delete from app.clerk_records as r
  where r.ctid = any(array(select c.ctid from app.clerk_records as c where c.organization_id = tenant.clerk_org_id limit batch));
  get diagnostics purged = row_count;
  if purged = 0 then
    delete from app.clerk_records as r where r.kind = 'organization' and r.clerk_id = tenant.clerk_org_id;
    delete from public.organizations as o where o.id = tenant.id;
    insert into public.audit_logs (organization_id, actor, action, resource_type, resource_id, metadata)
    values (
      tenant.id, 'retention', 'organization.purged', 'organization', tenant.id::text, jsonb_build_object('deleted_at', tenant.deleted_at)
    );
    purged := 1;
  end if;
  perform set_config('app.unaudited', '', true);
  return purged;
end;
$$;
comment on function app.purge_organizations is 'Deletes up to `batch` rows of an organization whose grace period is over, and finally the organization. Returns how many.';

create or replace function app.purge_batch(rule app.personal_data, batch integer) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  purged integer;
begin
  execute format(
    'with batch as materialized (select t.tableoid as part, t.ctid as place from %1$s as t where %2$s limit $2) '
    'delete from %1$s as t using batch where t.tableoid = batch.part and t.ctid = batch.place', rule.relation, rule.expired
  ) using now() - app.retention_period(rule), batch;
  get diagnostics purged = row_count;
  return purged;
end;
$$;
comment on function app.purge_batch is 'Deletes up to `batch` rows that have expired by a rule of app.personal_data. Returns how many.';

-- Stops after the batch during which half a second has passed. Once no other row is expired, it drops whole months of the audit trail.
create or replace function public.run_retention() returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  batch constant integer := 1000;
  deadline constant timestamptz := clock_timestamp() + interval '500 milliseconds';
  rule app.personal_data;
  purged integer;
  dropped integer;
  counts jsonb := '{}';
begin
  perform app.refuse_clerk_tokens();
  for rule in
    select d.* from app.personal_data as d where d.expired is not null or d.relation = 'public.organizations' order by d.position
  loop
    loop
      purged := case rule.relation when 'public.organizations' then app.purge_organizations(batch) else app.purge_batch(rule, batch) end;
      if purged > 0 then
        counts := counts || jsonb_build_object(rule.relation, coalesce((counts ->> rule.relation)::bigint, 0) + purged);
      end if;
      if clock_timestamp() > deadline then
        return jsonb_build_object('done', false, 'purged', counts);
      end if;
      exit when purged = 0;
    end loop;
  end loop;
  perform app.end_billing_periods();
  -- A session that reads the whole trail holds a lock on it. While we waited for ours, every writer would wait behind us. So give up soon:
  -- the next run tries again.
  perform set_config('lock_timeout', '200ms', true);
  begin
    perform app.make_audit_partitions();
    dropped := app.drop_audit_partitions();
  exception when lock_not_available then
    dropped := null;
  end;
  return jsonb_build_object('done', true, 'purged', counts, 'dropped_audit_months', dropped);
end;
$$;
comment on function public.run_retention is
'Runs one step of retention: {done, purged: {table: rows}, dropped_audit_months}. Call it until done. dropped_audit_months is null if another session was reading the trail. Definer: the service has no privilege on tables.';

grant execute on function public.run_retention() to service_role;
