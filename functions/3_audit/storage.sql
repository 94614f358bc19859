-- Storage of the audit trail: one partition per month, created in advance. Entries are never changed or deleted, except by the functions
-- for retention and erasure in this file.

-- Privileges already stop all roles except the owner. This trigger stops the owner's mistakes, too. The seals reveal a deliberate change.
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

-- Drops only whole months: all their entries must be older than app.settings.audit_retention.
create or replace function app.drop_audit_partitions() returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  kept_from timestamptz := now() - (select s.audit_retention from app.settings as s);
  month record;
  entries bigint;
  dropped integer := 0;
begin
  for month in
    select c.oid::regclass as partition, to_timestamp(right(c.relname, 7) || '+00', 'YYYY_MMTZH') as first
    from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'public.audit_logs'::regclass and c.relname ~ '^audit_logs_\d{4}_\d{2}$'
    order by c.relname
  loop
    continue when app.next_month(month.first) > kept_from;
    execute format('select count(*) from %s', month.partition) into entries;
    if entries > 0 then
      insert into app.audit_interventions (kind, range_start, range_end, entries)
      values ('retention', month.first, app.next_month(month.first), entries);
    end if;
    execute format('alter table public.audit_logs detach partition %s', month.partition);
    execute format('drop table %s', month.partition);
    dropped := dropped + 1;
  end loop;
  return dropped;
end;
$$;
comment on function app.drop_audit_partitions is 'A daily job: drops and records the months that are older than app.settings.audit_retention. Returns how many.';

-- An erasure keeps the entries, but removes the person from them, as actor and as subject. The keys are those of a batch (app.select_rows).
create or replace function app.erase_audit_entries(person app.person, keys jsonb) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  hashes constant bigint[] := app.person_mentions(person);
  erased integer;
begin
  perform set_config('app.audit_intervention', 'on', true);
  with found as materialized (
    select a.id, a.created_at, app.audit_hash(a) as original
    from jsonb_array_elements(keys) as k (key)
    join public.audit_logs as a on a.id = (k.key ->> 0)::uuid and a.created_at = (k.key ->> 1)::timestamptz
  ), intervention as (
    insert into app.audit_interventions (kind, range_start, range_end, entries)
    select 'erasure', min(f.created_at), max(f.created_at), count(*) from found as f having count(*) > 0
    returning id
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
  insert into app.audit_erasures (entry_id, entry_created_at, original, remaining, intervention_id)
  select c.id, c.created_at, c.original, c.remaining, i.id from changed as c cross join intervention as i
  on conflict (entry_id, entry_created_at) do update set remaining = excluded.remaining, intervention_id = excluded.intervention_id;
  get diagnostics erased = row_count;
  perform set_config('app.audit_intervention', '', true);
  return erased;
end;
$$;
comment on function app.erase_audit_entries is
'Removes a person from the entries with these keys, [[id, created_at], …], and records the intervention. Returns how many.';

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
