-- Storage of the audit trail: one partition per month, created in advance. Entries are never changed or deleted, except by the functions
-- for retention and erasure in this file.

-- Privileges already stop all roles except the owner. This trigger stops the owner's mistakes, too. Seals and receipts reveal a deliberate
-- change.
create or replace function app.refuse_change() returns trigger
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(current_setting('app.audit_intervention', true), '') <> 'on' then
    raise sqlstate '42501' using
      message = 'The audit trail is append-only.', hint = 'Only retention and erasure change it, by their own functions.';
  end if;
  return case tg_op when 'DELETE' then old when 'UPDATE' then new end;
end;
$$;
comment on function app.refuse_change is 'Refuses changes to the audit trail, except those of retention and erasure.';

create or replace trigger append_only before update or delete on public.audit_logs
for each row execute function app.refuse_change();
create or replace trigger no_truncate before truncate on public.audit_logs
for each statement execute function app.refuse_change();

-- Months are in UTC, independently of the session's time zone: in other zones daylight saving time would leave gaps between months.
create or replace function app.month_start(moment timestamptz) returns timestamptz
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select date_trunc('month', moment at time zone 'UTC') at time zone 'UTC';
$$;
comment on function app.month_start is 'The first moment of the month, in UTC.';

create or replace function app.next_month(moment timestamptz) returns timestamptz
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select (date_trunc('month', moment at time zone 'UTC') + interval '1 month') at time zone 'UTC';
$$;
comment on function app.next_month is 'The first moment of the next month, in UTC.';

-- Entries of a month that has no partition yet are in the default partition, so they are moved. Attaching briefly locks the default
-- partition: queries over all months wait, writes to existing months do not.
create or replace function app.make_audit_partition(month timestamptz) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  first timestamptz := app.month_start(month);
  last timestamptz := app.next_month(month);
  name text := 'audit_logs_' || to_char(month at time zone 'UTC', 'YYYY_MM');
  moved bigint;
begin
  if to_regclass('app.' || name) is not null then
    return false;
  end if;
  execute format('create table app.%I (like public.audit_logs including all)', name);
  execute format('alter table app.%I enable row level security, force row level security', name);
  execute format('comment on table app.%I is %L', name, 'Audit entries of one month.');
  perform set_config('app.audit_intervention', 'on', true);
  execute format(
    'with moved as (delete from app.audit_logs_default where created_at >= $1 and created_at < $2 returning *) insert into app.%I select * from moved',
    name
  ) using first, last;
  get diagnostics moved = row_count;
  perform set_config('app.audit_intervention', '', true);
  execute format('alter table public.audit_logs attach partition app.%I for values from (%L) to (%L)', name, first, last);
  execute format(
    'create trigger no_truncate before truncate on app.%I for each statement execute function app.refuse_change()', name
  );
  if moved > 0 then
    raise warning '% audit entries of % were in the default partition.', moved, name;
  end if;
  return true;
end;
$$;
comment on function app.make_audit_partition is 'Creates the partition of a month, unless it exists, and moves the month''s entries from the default partition into it. Returns whether it did.';

create or replace function app.make_audit_partitions(ahead integer default 3) returns integer
language sql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
  select count(*) filter (where app.make_audit_partition(m.month))::integer
  from (
    select now() + i * interval '1 month' as month from generate_series(0, ahead) as i
    union
    select app.month_start(d.created_at) from app.audit_logs_default as d
  ) as m;
$$;
comment on function app.make_audit_partitions is 'A daily job: creates the partitions of this month, of the months ahead and of entries in the default partition. Returns how many it created.';

-- Interventions: the few changes that the law requires. Each has two phases, so that its receipt exists outside the database before it
-- happens. An intervention without a receipt was forged, or happened while no store was configured.
-- Example: February is older than app.settings.audit_retention.
-- 1. drop_audit_partitions(true) plans: it adds a row to app.audit_interventions, and drops nothing yet.
-- 2. The service reads pending_receipt(), writes it next to the backups, and calls confirm_receipt(), which sets stored_at.
-- 3. drop_audit_partitions(true) finds the plan unchanged, sets happened_at, and drops the month. The next seal covers the row.
-- After a crash, any process continues: a plan without stored_at is handed out again, and one that no longer applies is replaced.
create or replace function app.pending_receipt(erasure uuid default null) returns jsonb
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'digest', encode(app.intervention_digest(i), 'hex'), 'id', i.id, 'kind', i.kind, 'erasure', i.erasure, 'range_start', i.range_start,
    'range_end', i.range_end, 'entries', i.entries, 'retention_seconds', extract(epoch from i.retention), 'planned_at', i.planned_at,
    'contents', encode(i.contents, 'hex')
  )
  from app.audit_interventions as i
  where i.erasure is not distinct from pending_receipt.erasure and i.happened_at is null and i.stored_at is null;
$$;
comment on function app.pending_receipt is 'The receipt that must be stored before an erasure (null: retention) may continue; null if there is none.';

create or replace function public.confirm_receipt(digest text) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  update app.audit_interventions as i set stored_at = now()
  where i.happened_at is null and i.stored_at is null and encode(app.intervention_digest(i), 'hex') = confirm_receipt.digest;
$$;
comment on function public.confirm_receipt is
'Records that the receipt of a planned intervention is stored next to the backups, so that it may happen. Definer: the service has no privilege on tables.';

-- An existing plan stays if it still describes the month. The seals in the month stand for its entries: computing their hashes again would
-- take long.
create or replace function app.plan_drop(partition regclass, first timestamptz, last timestamptz, retention interval)
returns app.audit_interventions
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  plan app.audit_interventions;
  contents bytea;
  entries bigint;
begin
  execute format('select count(*) from %s', partition) into entries;
  if entries = 0 then
    return plan;
  end if;
  if not exists (select from app.audit_seals as s where s.range_end >= last) then
    perform app.seal_audit();
    if not exists (select from app.audit_seals as s where s.range_end >= last) then
      plan.entries := entries; -- a transaction from that time is still running
      return plan;
    end if;
  end if;
  contents := (
    select sha256(coalesce(string_agg(s.seal, ''::bytea order by s.sequence), ''))
    from app.audit_seals as s where s.range_start >= first and s.range_end <= last
  );
  select i.* into plan from app.audit_interventions as i where i.kind = 'retention' and i.happened_at is null;
  if plan.id is null or (plan.range_start, plan.range_end, plan.entries, plan.contents) is distinct from (first, last, entries, contents) then
    delete from app.audit_interventions as i where i.kind = 'retention' and i.happened_at is null;
    insert into app.audit_interventions (kind, range_start, range_end, entries, retention, contents)
    values ('retention', first, last, entries, retention, contents)
    returning * into plan;
  end if;
  return plan;
end;
$$;
comment on function app.plan_drop is
'The plan to drop a month. Its id is null, but not its entries, if the month cannot be dropped yet. All null: the month is empty.';

-- Drops only whole months: all their entries must be older than app.settings.audit_retention, and the chain of seals must be past them.
create or replace function app.drop_audit_partitions(has_store boolean default false) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  retention constant interval := (select s.audit_retention from app.settings as s);
  month record;
  plan app.audit_interventions;
  dropped integer := 0;
begin
  for month in
    select c.oid::regclass as partition, m.first, app.next_month(m.first) as last
    from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid
    cross join to_timestamp(right(c.relname, 7) || '+00', 'YYYY_MMTZH') as m (first)
    where i.inhparent = 'public.audit_logs'::regclass and c.relname ~ '^audit_logs_\d{4}_\d{2}$'
      and app.next_month(m.first) <= now() - retention
    order by m.first
  loop
    plan := app.plan_drop(month.partition, month.first, month.last, retention);
    exit when plan.entries > 0 and (plan.id is null or has_store and plan.stored_at is null);
    update app.audit_interventions as i set happened_at = clock_timestamp() where i.id = plan.id;
    execute format('alter table public.audit_logs detach partition %s', month.partition);
    execute format('drop table %s', month.partition);
    dropped := dropped + 1;
  end loop;
  return dropped;
end;
$$;
comment on function app.drop_audit_partitions is
'A daily job: drops and records the months that are older than app.settings.audit_retention. Returns how many. If pending_receipt() is not null then, store it, call confirm_receipt(), and call again.';

create or replace function app.erasure_contents(changes app.audit_erasures[]) returns bytea
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select sha256(coalesce(
    string_agg(
      uuid_send(c.entry_id) || timestamptz_send(c.entry_created_at) || c.original || c.remaining, ''::bytea
      order by c.entry_created_at, c.entry_id
    ), ''
  ))
  from unnest(changes) as c;
$$;
comment on function app.erasure_contents is 'SHA-256 over the entries that an erasure changes, and their hashes before and after it.';

-- An erasure keeps the entries, but removes the person from them, as actor and as subject. Locks the entries before it computes their
-- hashes: the erasure of another person may be changing them.
create or replace function app.rewrite_audit_entries(person app.person, keys jsonb) returns app.audit_erasures[]
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  hashes constant bigint[] := app.person_mentions(person);
  changes app.audit_erasures[];
begin
  perform set_config('app.audit_intervention', 'on', true);
  with found as materialized (
    select a.id, a.created_at, app.audit_hash(a) as original
    from jsonb_array_elements(keys) as k (key)
    join public.audit_logs as a on a.id = (k.key ->> 0)::uuid and a.created_at = (k.key ->> 1)::timestamptz
    for update of a
  ), changed as (
    update public.audit_logs as a
    set
      user_id = nullif(a.user_id, person.id),
      impersonator = case when a.user_id = person.id then null else nullif(a.impersonator, person.clerk_user_id) end,
      -- The address and the browser may be the actor's or the impersonator's, so an erasure of either removes them.
      ip_address = case when a.user_id is distinct from person.id and a.impersonator is distinct from person.clerk_user_id then a.ip_address end,
      user_agent = case when a.user_id is distinct from person.id and a.impersonator is distinct from person.clerk_user_id then a.user_agent end,
      subject_ids = nullif(array_remove(a.subject_ids, person.id), '{}'),
      mentions = (select array_agg(m.hash) from unnest(a.mentions) as m (hash) where m.hash <> all(hashes)),
      resource_id = case when app.redact_person(to_jsonb(a.resource_id), person) = to_jsonb(a.resource_id) then a.resource_id end,
      metadata = app.redact_person(a.metadata, person),
      changes = app.redact_person(a.changes, person)
    from found as f
    where a.id = f.id and a.created_at = f.created_at
    returning a.id, a.created_at, f.original, app.audit_hash(a) as remaining
  )
  select coalesce(array_agg((c.id, c.created_at, null, c.original, c.remaining)::app.audit_erasures), '{}') into changes from changed as c;
  perform set_config('app.audit_intervention', '', true);
  return changes;
end;
$$;
comment on function app.rewrite_audit_entries is
'Removes a person from the entries with these keys, [[id, created_at], …]. Returns their hashes before and after. Records nothing.';

-- The receipt needs the hashes after the change, so this changes the entries and rolls that back. An entry that cannot be changed fails
-- here already.
create or replace function app.erase_audit_entries(person app.person, keys jsonb) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  changes app.audit_erasures[];
  plan uuid;
begin
  begin
    changes := app.rewrite_audit_entries(person, keys);
    raise sqlstate 'BA000';
  exception when sqlstate 'BA000' then
    null;
  end;
  insert into app.audit_interventions (kind, erasure, range_start, range_end, entries, retention, contents)
  select
    'erasure', (select l.receipt from app.erasure_log as l where l.subject_hash = app.person_hash(person.clerk_user_id)),
    min(c.entry_created_at), max(c.entry_created_at), count(*), (select s.audit_retention from app.settings as s), app.erasure_contents(changes)
  from unnest(changes) as c
  having count(*) > 0
  returning id into plan;
  insert into app.audit_erasures (entry_id, entry_created_at, intervention_id, original, remaining)
  select c.entry_id, c.entry_created_at, plan, c.original, c.remaining from unnest(changes) as c;
  return cardinality(changes);
end;
$$;
comment on function app.erase_audit_entries is
'Plans to remove a person from the entries with these keys, [[id, created_at], …]; app.apply_erasure() does it. Returns how many.';

-- A plan that no longer fits is deleted: the entries still name the person, so the erasure finds them again and makes a new plan. So only
-- a plan that is carried out counts in the receipt.
create or replace function app.apply_erasure(inout job app.erasure_log, person app.person, has_store boolean, out is_waiting boolean)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  plan app.audit_interventions;
  keys jsonb;
begin
  select i.* into plan from app.audit_interventions as i where i.erasure = job.receipt and i.happened_at is null;
  is_waiting := plan.id is not null and has_store and plan.stored_at is null;
  if plan.id is null or is_waiting then
    return;
  end if;
  keys := (select jsonb_agg(jsonb_build_array(e.entry_id, e.entry_created_at)) from app.audit_erasures as e where e.intervention_id = plan.id);
  begin
    if app.erasure_contents(app.rewrite_audit_entries(person, keys)) <> plan.contents then
      raise sqlstate 'BA000';
    end if;
    update app.audit_interventions as i set happened_at = clock_timestamp() where i.id = plan.id;
    job.counts := job.counts || jsonb_build_object(
      'public.audit_logs', coalesce((job.counts ->> 'public.audit_logs')::bigint, 0) + plan.entries
    );
  exception when others then
    if app.is_transient(sqlstate) then
      raise;
    end if;
    delete from app.audit_interventions as i where i.id = plan.id;
  end;
end;
$$;
comment on function app.apply_erasure is
'Carries out the planned changes to the audit trail of an erasure. is_waiting: the receipt must be stored first (app.pending_receipt).';

select app.make_audit_partitions();

-- Each partition needs its own trigger: the parent's trigger does not run when a single partition is truncated.
do $$
declare
  partition regclass;
begin
  for partition in select i.inhrelid from pg_inherits as i where i.inhparent = 'public.audit_logs'::regclass loop
    execute format(
      'create or replace trigger no_truncate before truncate on %s for each statement execute function app.refuse_change()', partition
    );
  end loop;
end;
$$;

grant execute on function public.confirm_receipt(text) to service_role;
