-- The jobs that a scheduler calls. Ballast's are declared here; declare yours in a file of functions/9_tables (docs/extension-points.md).

create or replace function app.schedule_job(name text, every interval, schedule text, purpose text) returns void
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  insert into app.job_schedules (name, every, schedule, purpose)
  values (schedule_job.name, schedule_job.every, schedule_job.schedule, schedule_job.purpose)
  on conflict on constraint job_schedules_pkey do update
  set every = excluded.every, schedule = excluded.schedule, purpose = excluded.purpose;
$$;
comment on function app.schedule_job is
'Declares a job of the service: how often it runs, its cron schedule (UTC) and what it does. Calling it again replaces the declaration.';

-- Whenever this file changes, it rewrites Ballast's rows, and deletes those of jobs that Ballast no longer has.
with jobs (name, every, schedule, purpose) as (
  values
  ('mail', interval '1 minute', '* * * * *', 'Sends queued mail.'),
  ('retry-events', interval '5 minutes', '*/5 * * * *', 'Retries failed Clerk events.'),
  ('erasures', interval '1 minute', '* * * * *', 'Continues erasures.'),
  ('name-changes', interval '5 minutes', '*/5 * * * *', 'Sends names that people changed here to Clerk.'),
  ('seals', interval '1 hour', '7 * * * *', 'Seals the audit trail: `ballast audit seal`.'),
  ('reconcile-sample', interval '1 hour', '37 * * * *', 'Compares a sample with Clerk: `ballast clerk reconcile --sample`.'),
  ('partitions', interval '1 day', '23 1 * * *', 'Creates the audit trail''s partitions for the coming months: `ballast audit maintain`.'),
  ('retention', interval '1 day', '43 1 * * *', 'Deletes expired rows, and ends cancelled plans whose period is over.')
),

written as (
  insert into app.job_schedules (name, every, schedule, purpose, shipped)
  select j.name, j.every, j.schedule, j.purpose, true from jobs as j
  on conflict (name) do update
    set every = excluded.every, schedule = excluded.schedule, purpose = excluded.purpose, shipped = true
)

delete from app.job_schedules as s
where s.shipped and not exists (
  select from jobs as j
  where j.name = s.name
);

create or replace function public.job_schedule() returns jsonb
language plpgsql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.refuse_clerk_tokens();
  return (
    select jsonb_agg(jsonb_build_object('name', s.name, 'schedule', s.schedule) order by s.every, s.name) from ops.job_schedule as s
  );
end;
$$;
comment on function public.job_schedule is
'The jobs with their cron schedules. The schedule of a job that no scheduler calls is null. Definer: the service has no privilege on tables.';

grant execute on function public.job_schedule() to service_role;
