-- The record of backups: the service and `ballast backup` write it, administrators read ops.backup_health.
-- The store is the truth about what can be restored; this is the truth about what was tried.

-- The run holds the lock for as long as its snapshot lives, so whatever ends it releases the lock too.
create or replace function public.backup_is_running() returns boolean
language sql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select exists (
    select from pg_locks as l
    where l.locktype = 'advisory' and l.classid = 0 and l.objid = 733140620 and l.objsubid = 1 and l.granted
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
  );
$$;
comment on function public.backup_is_running is 'Whether a session of this database holds pg_try_advisory_xact_lock(733140620), as a run of `ballast backup` does.';

-- Two who ask at once come one after the other, and a process that was just started has not got to its lock yet.
create or replace function public.request_backup(id uuid, filename text, backup_type text) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  requested public.backup_logs;
begin
  perform app.refuse_clerk_tokens();
  lock table public.backup_logs in share row exclusive mode;
  if public.backup_is_running()
    or exists (select from public.backup_logs as b where b.status = 'started' and b.created_at > now() - interval '10 seconds') then
    return null;
  end if;
  insert into public.backup_logs as b (id, filename, backup_type, status) values (id, filename, backup_type, 'started')
  returning b.* into requested;
  return jsonb_build_object(
    'id', requested.id, 'filename', requested.filename, 'backup_type', requested.backup_type, 'status', requested.status,
    'created_at', requested.created_at
  );
end;
$$;
comment on function public.request_backup is
'Before the service starts a process: {id, filename, backup_type, status, created_at}; null when one is running, or was asked for seconds ago. Definer: the service has no privilege on tables.';

-- Whoever calls holds the lock: others that say they are running are not. The one that was asked for may have been taken for such.
create or replace function public.begin_backup(id uuid, filename text, backup_type text) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  update public.backup_logs as b
  set status = 'interrupted', finished_at = now(), error_message = 'The process ended without a word.'
  where b.status = 'started' and b.id <> begin_backup.id;

  insert into public.backup_logs as b (id, filename, backup_type, status)
  values (begin_backup.id, begin_backup.filename, begin_backup.backup_type, 'started')
  on conflict (id) do update set status = 'started', finished_at = null, error_message = null where b.status = 'interrupted';
$$;
comment on function public.begin_backup is
'The run holds the lock and has its snapshot: it is started, and others that never ended are interrupted. Definer: the service has no privilege on tables.';

create or replace function public.end_backup(
  id uuid, status text, size_bytes bigint default null, checksum text default null, error_message text default null
) returns void
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform app.refuse_clerk_tokens();
  if status is null or status not in ('completed', 'failed') then
    raise sqlstate 'PT400' using message = 'A backup ends as completed or failed.';
  end if;
  update public.backup_logs as b
  set status = status, size_bytes = size_bytes, checksum = checksum, error_message = left(error_message, 500), finished_at = now()
  where b.id = id and b.status in ('started', 'interrupted');
end;
$$;
comment on function public.end_backup is
'How a backup ended: completed or failed. What is said first counts; again, it changes nothing. Definer: the service has no privilege on tables.';

-- What a drill restored is complete, whatever was written down of it: the record may be lost, or have missed its end.
create or replace function public.record_drill(backup jsonb, report jsonb) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  insert into public.backup_logs as b (
    id, filename, backup_type, status, size_bytes, checksum, created_at, drilled_at, drill_passed, drill_report
  )
  select
    r.id, r.filename, r.backup_type, 'completed', r.size_bytes, r.checksum, r.created_at, now(),
    coalesce(record_drill.report -> 'passed' = 'true', false), record_drill.report
  from jsonb_to_record(record_drill.backup) as r (
    id uuid, filename text, backup_type text, size_bytes bigint, checksum text, created_at timestamptz
  )
  on conflict (filename) do update
  set
    status = case when excluded.drill_passed then 'completed' else b.status end,
    size_bytes = case when excluded.drill_passed then coalesce(b.size_bytes, excluded.size_bytes) else b.size_bytes end,
    checksum = case when excluded.drill_passed then coalesce(b.checksum, excluded.checksum) else b.checksum end,
    error_message = case when excluded.drill_passed then null else b.error_message end,
    drilled_at = excluded.drilled_at, drill_passed = excluded.drill_passed, drill_report = excluded.drill_report;
$$;
comment on function public.record_drill is
'A backup was restored for proof: backup is {id, filename, backup_type, size_bytes, checksum, created_at}, report is {passed, rto_seconds, …}. Definer: the service has no privilege on tables.';

create or replace function public.backups(newest integer default 100) returns jsonb
language sql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select coalesce(
    jsonb_agg(
      jsonb_build_object(
        'id', b.id, 'filename', b.filename, 'backup_type', b.backup_type, 'status', b.status, 'size_bytes', b.size_bytes,
        'duration_seconds', case when b.status <> 'interrupted' then extract(epoch from b.finished_at - b.created_at) end,
        'checksum', b.checksum, 'error_message', b.error_message, 'created_at', b.created_at, 'drilled_at', b.drilled_at,
        'drill_passed', b.drill_passed
      )
      order by b.created_at desc, b.id
    ),
    '[]'
  )
  from (select l.* from public.backup_logs as l order by l.created_at desc, l.id limit backups.newest) as b;
$$;
comment on function public.backups is
'Newest first: [{id, filename, backup_type, status, size_bytes, duration_seconds, checksum, error_message, created_at, drilled_at, drill_passed}]. Definer: the service has no privilege on tables.';

grant execute on function
public.backup_is_running(), public.request_backup(uuid, text, text), public.begin_backup(uuid, text, text),
public.end_backup(uuid, text, bigint, text, text), public.record_drill(jsonb, jsonb), public.backups(integer)
to service_role;
