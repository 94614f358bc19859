-- The log of backups. The service and `ballast backup` write it; administrators read ops.backup_health.
-- The log shows which backups were attempted. Only the store shows which backups can be restored.

-- The run holds the lock in the transaction of its snapshot. However that transaction ends, even by a crash, the lock is released.
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
comment on function public.backup_is_running is 'Whether a session of this database holds advisory lock 733140620, as `ballast backup run` does.';

-- The table lock serializes concurrent requests. A process that was just started has not taken its advisory lock yet. So a row marked
-- 'started' in the last 10 seconds also counts as running.
create or replace function public.request_backup(id uuid, backup_type text) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  requested public.backup_logs;
begin
  perform app.refuse_clerk_tokens();
  lock table public.backup_logs in share row exclusive mode;
  if public.backup_is_running()
    or exists (
      select from public.backup_logs as b
      where b.status = 'started' and b.created_at > now() - interval '10 seconds' and b.created_at <= clock_timestamp()
    ) then
    return null;
  end if;
  insert into public.backup_logs as b (id, filename, backup_type, status)
  values (
    id, to_char(now() at time zone 'UTC', '"database/"YYYYMMDD"T"HH24MISS"Z-"') || left(id::text, 8), backup_type, 'started'
  )
  returning b.* into requested;
  return jsonb_build_object(
    'id', requested.id, 'filename', requested.filename, 'backup_type', requested.backup_type, 'status', requested.status,
    'created_at', requested.created_at
  );
end;
$$;
comment on function public.request_backup is
'Records a backup before the service starts its process, and names it by the clock of the database. Returns {id, filename, backup_type, status, created_at}, or null if a backup is running or was requested in the last 10 seconds. Definer: the service has no privilege on tables.';

-- The caller holds the advisory lock, so any other row still marked 'started' belongs to a run that crashed. The caller's own row may
-- have been marked 'interrupted' by mistake, by a run that began in between: it becomes 'started' again.
create or replace function public.begin_backup(id uuid, filename text, backup_type text) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  update public.backup_logs as b
  set status = 'interrupted', finished_at = now(), error_message = 'The backup process exited without reporting a result.'
  where b.status = 'started' and b.id <> begin_backup.id;

  insert into public.backup_logs as b (id, filename, backup_type, status)
  values (begin_backup.id, begin_backup.filename, begin_backup.backup_type, 'started')
  on conflict (id) do update set status = 'started', finished_at = null, error_message = null where b.status = 'interrupted';
$$;
comment on function public.begin_backup is
'Records that a run holds the lock and has its snapshot. Marks other unfinished runs as interrupted. Definer: the service has no privilege on tables.';

create or replace function public.end_backup(
  id uuid, status text, size_bytes bigint default null, checksum text default null, error_message text default null
) returns void
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform app.refuse_clerk_tokens();
  if status is null or status not in ('completed', 'failed') then
    raise sqlstate 'PT400' using message = 'The status of an ended backup must be completed or failed.';
  end if;
  update public.backup_logs as b
  set status = status, size_bytes = size_bytes, checksum = checksum, error_message = left(error_message, 500), finished_at = now()
  where b.id = id and b.status in ('started', 'interrupted');
end;
$$;
comment on function public.end_backup is
'Records the result of a backup, completed or failed. The first result wins; later calls change nothing. Definer: the service has no privilege on tables.';

-- A backup that a drill restored is complete, whatever its row says. The row may be missing, or the run's result was never recorded.
create or replace function public.record_drill(backup jsonb, report jsonb) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select app.refuse_deep_json(backup), app.refuse_deep_json(report);

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
'Records a restore drill. backup is {id, filename, backup_type, size_bytes, checksum, created_at}; report is {passed, rto_seconds, …}. Definer: the service has no privilege on tables.';

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
'Lists backups, newest first: [{id, filename, backup_type, status, size_bytes, duration_seconds, checksum, error_message, created_at, drilled_at, drill_passed}]. Definer: the service has no privilege on tables.';

grant execute on function
public.backup_is_running(), public.request_backup(uuid, text), public.begin_backup(uuid, text, text),
public.end_backup(uuid, text, bigint, text, text), public.record_drill(jsonb, jsonb), public.backups(integer)
to service_role;
