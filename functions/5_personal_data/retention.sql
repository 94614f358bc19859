-- Retention: deletes expired rows (by the rules in app.personal_data), deleted organizations with all their rows, and old months of the
-- audit trail.

-- The skipped rows are forgotten between steps. So after this many the order is random, and the rows behind many bad ones are reached over
-- several runs. A random order reads all expired rows, so a rule with few bad rows does without.
create or replace function app.has_many_failures(skipped text[]) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select cardinality(skipped) >= 20;
$$;
comment on function app.has_many_failures is 'Whether a step of retention has skipped so many rows of a rule that it selects further rows in random order.';

-- Deletes in batches, table by table: one statement for a large organization would take minutes. Rows that refer to others go first,
-- because a reference may prevent the deletion (`on delete restrict`). Like app.build_selection() it limits a batch in rows and in bytes.
-- Tables of tenants need no primary key. A batch that fails raises its error, but a single row is skipped.
create or replace function app.purge_organization(
  organization uuid, batch integer, inout skipped text[], out purged integer, out error text
)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  tenant public.organizations;
  child record;
  name text; -- of a row
  has_rows boolean := false; -- skipped ones
  is_shuffled constant boolean := app.has_many_failures(skipped);
begin
  select o.* into tenant from public.organizations as o where o.id = organization;
  perform app.lock_clerk_objects(array[tenant.clerk_org_id]); -- before the row lock: Clerk events lock in this order
  perform from public.organizations as o where o.id = tenant.id for update;
  perform set_config('app.unaudited', 'on', true);
  for child in
    -- How many references lead to a table, counted along the longest path. People are not deleted here. A circle ends at the limit.
    with recursive distance (relation, steps) as (
      select k.conrelid, 0 from pg_constraint as k where k.contype = 'f' and k.confrelid = 'public.organizations'::regclass
      union
      select k.confrelid, d.steps + 1
      from distance as d
      join pg_constraint as k on k.conrelid = d.relation
      where k.contype = 'f' and k.confrelid not in (k.conrelid, 'public.profiles'::regclass) and d.steps < 10
    )
    select
      k.conrelid::regclass as relation, a.attname as name, d.size,
      format('jsonb_build_array(%L, %s)::text', k.conrelid::regclass, case when d.matched_by is null then 't.ctid' else d.key end) as key
    from pg_constraint as k
    join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    cross join app.describe_rows(k.conrelid::regclass::text) as d
    where k.contype = 'f' and k.confrelid = 'public.organizations'::regclass and cardinality(k.conkey) = 1
    order by case when is_shuffled then random() end, (select max(f.steps) from distance as f where f.relation = k.conrelid), k.conrelid
  loop
    begin
      execute format(
        $query$
          with found as materialized (
            select t.tableoid as part, t.ctid as place, %3$s as size from %1$s as t where t.%2$I = $1 and %4$s <> all($3) %5$s limit $2
          ), batch as materialized (
            select m.part, m.place
            from (select f.*, sum(f.size) over (rows unbounded preceding) - f.size as before from found as f) as m
            where m.before < $2 * 8192
          )
          delete from %1$s as t using batch where t.tableoid = batch.part and t.ctid = batch.place
        $query$,
        child.relation, child.name, child.size, child.key, app.build_order(child.key, is_shuffled)
      ) using tenant.id, batch, skipped;
      get diagnostics purged = row_count;
    exception when others then
      if batch > 1 then
        raise;
      end if;
      error := sqlstate;
      execute format(
        'select %3$s from %1$s as t where t.%2$I = $1 and %3$s <> all($2) %4$s limit 1',
        child.relation, child.name, child.key, app.build_order(child.key, is_shuffled)
      ) into name using tenant.id, skipped;
      skipped := skipped || name;
      purged := 0;
      perform set_config('app.unaudited', '', true);
      return;
    end;
    exit when purged > 0;
    execute format('select $2 or exists (select from %s as t where t.%I = $1)', child.relation, child.name)
    into has_rows using tenant.id, has_rows;
  end loop;
  if purged > 0 or has_rows then
    perform set_config('app.unaudited', '', true);
    return;
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
end;
$$;
comment on function app.purge_organization is
'Deletes up to `batch` rows of an organization, and finally the organization. purged: how many. skipped: rows that failed, as [table, key].';

-- Of the rule for organizations a batch is one organization, or some of its rows. A batch that fails is tried again with half its rows; a
-- single row that fails is skipped until the next run.
create or replace function app.purge_batch(
  rule app.personal_data, inout batch integer, inout skipped text[], out purged integer, out error text
)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  is_tenant constant boolean := rule.relation = 'public.organizations';
  keys jsonb;
  began_at timestamptz;
begin
  execute app.build_selection(rule.relation, '', coalesce(rule.expired, 't.deleted_at < $1'), app.has_many_failures(skipped))
  into keys using now() - app.retention_period(rule), case when is_tenant then 1 else batch end, skipped;
  if keys = '[]' then
    return;
  end if;
  began_at := clock_timestamp();
  begin
    if is_tenant then
      select p.skipped, p.purged, p.error into skipped, purged, error
      from app.purge_organization((keys -> 0 ->> 0)::uuid, batch, skipped) as p;
    else
      execute format(
        'delete from %s as t using jsonb_array_elements($1) as k (key) where %s',
        rule.relation, (select d.matched_by from app.describe_rows(rule.relation) as d)
      ) using keys;
      get diagnostics purged = row_count;
    end if;
    if purged = 0 and error is null then
      raise exception 'expired rows were not deleted';
    end if;
    batch := app.next_batch(batch, began_at);
  exception when others then
    error := sqlstate;
    purged := 0;
    if batch = 1 then
      skipped := skipped || (keys -> 0)::text;
    end if;
    batch := greatest(batch / 2, 1);
  end;
end;
$$;
comment on function app.purge_batch is
'Deletes a batch of rows that have expired by a rule of app.personal_data. purged: how many; null if no row is left but the skipped ones.';

-- Stops after the batch during which half a second has passed. The order is random: a rule that times out never stops the others for long.
-- Once no other row is expired, it drops whole months of the audit trail; with a store, the receipt of each drop must be stored first.
create or replace function public.run_retention(has_store boolean default false) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
as $$
declare
  deadline constant timestamptz := clock_timestamp() + interval '500 milliseconds';
  rule app.personal_data;
  batch record;
  dropped integer;
  counts jsonb := '{}';
  failed jsonb := '{}';
  receipt jsonb;
begin
  perform app.refuse_clerk_tokens();
  for rule in
    select d.* from app.personal_data as d where d.expired is not null or d.relation = 'public.organizations' order by random()
  loop
    select 50 as batch, '{}'::text[] as skipped into batch;
    loop
      batch := app.purge_batch(rule, batch.batch, batch.skipped);
      exit when batch.purged is null or cardinality(batch.skipped) >= 100; -- else many bad rows would keep the rest from its turn
      if batch.purged > 0 then
        counts := counts || jsonb_build_object(rule.relation, coalesce((counts ->> rule.relation)::bigint, 0) + batch.purged);
      elsif cardinality(batch.skipped) > 0 then
        failed := failed || jsonb_build_object(
          rule.relation, jsonb_build_object('error', batch.error, 'rows', cardinality(batch.skipped), 'key', batch.skipped[1]::jsonb)
        );
      end if;
      if clock_timestamp() > deadline then
        exit when app.has_many_failures(batch.skipped); -- its turn is over; the others have theirs
        return jsonb_build_object('done', false, 'purged', counts, 'failed', failed, 'dropped_audit_months', 0, 'receipt_to_store', null);
      end if;
    end loop;
  end loop;
  perform app.end_billing_periods();
  -- A session that reads the whole trail holds a lock on it. While we waited for ours, every writer would wait behind us. So give up soon:
  -- the next run tries again.
  perform set_config('lock_timeout', '200ms', true);
  begin
    perform app.make_audit_partitions();
    dropped := app.drop_audit_partitions(has_store);
  exception when lock_not_available then
    dropped := null;
  end;
  receipt := case when has_store then app.pending_receipt() end;
  return jsonb_build_object(
    'done', receipt is null, 'purged', counts, 'failed', failed, 'dropped_audit_months', dropped, 'receipt_to_store', receipt
  );
end;
$$;
comment on function public.run_retention is
'Runs one step of retention: {done, purged: {table: rows}, failed: {table: {error, rows, key}}, dropped_audit_months, receipt_to_store}. Call it until done. failed: rows that could not be deleted, with the key of the first; of an organization''s row it is [table, key]. dropped_audit_months is null if another session was reading the trail. If receipt_to_store is not null, store it and call confirm_receipt() first. Definer: the service has no privilege on tables.';

grant execute on function public.run_retention(boolean) to service_role;
