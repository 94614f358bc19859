-- What has to happen again and again, and how it went: one place says how often, for ops.jobs, pg_cron, Sentry and the local stack.

-- Schedules are UTC. Without one, something else than the jobs' scheduler does it: a workflow, or an operator.
create or replace view ops.job_schedule with (security_invoker) as
select j.name, j.every, j.schedule, j.purpose
from (
  values
  ('mail', interval '1 minute', '* * * * *', 'Sends what is queued.'),
  ('retry-events', interval '5 minutes', '*/5 * * * *', 'Applies failed events of Clerk''s again.'),
  ('erasures', interval '5 minutes', '*/5 * * * *', 'Carries on with erasures.'),
  ('name-changes', interval '5 minutes', '*/5 * * * *', 'Tells Clerk of names that people gave themselves.'),
  ('seals', interval '1 hour', '7 * * * *', 'Seals the audit trail: `ballast audit seal`.'),
  ('reconcile-sample', interval '1 hour', '37 * * * *', 'Compares a sample of what Clerk has: `ballast clerk reconcile --sample`.'),
  ('partitions', interval '1 day', '23 1 * * *', 'Makes the audit trail''s months ahead: `ballast audit maintain`.'),
  ('retention', interval '1 day', '43 1 * * *', 'Purges what is old.'),
  ('backup', (select s.backup_rpo from app.settings as s), null, 'Backs the database up.'),
  ('drill', (select s.drill_every from app.settings as s), null, 'Restores a backup for proof.')
) as j (name, every, schedule, purpose);
comment on view ops.job_schedule is 'Periodic work: how often it should be done, and when the scheduler of the service''s jobs calls for it (UTC, as cron has it).';

create or replace function app.record_job(name text, report jsonb, ok boolean, duration_ms integer) returns integer
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  insert into app.job_runs as j (name, failures, last_ok_at, duration_ms, report)
  values (
    record_job.name, case when record_job.ok then 0 else 1 end, case when record_job.ok then now() end, record_job.duration_ms, record_job.report
  )
  on conflict on constraint job_runs_pkey do update
  set
    runs = j.runs + 1, failures = case when record_job.ok then 0 else j.failures + 1 end, last_run_at = now(),
    last_ok_at = coalesce(excluded.last_ok_at, j.last_ok_at), duration_ms = excluded.duration_ms, report = excluded.report;
  select extract(epoch from s.every)::integer / 60 from ops.job_schedule as s
  where s.name = record_job.name and s.schedule is not null;
$$;
comment on function app.record_job is 'See public.record_job. Definer: the service has no privilege on tables.';

create or replace function public.record_job(name text, report jsonb, ok boolean, duration_ms integer) returns integer
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.record_job(record_job.name, record_job.report, record_job.ok, record_job.duration_ms);
$$;
comment on function public.record_job is
'For the service: a job ended. report is what it answered: counts, nothing about people. Returns after how many minutes the next run is due; null for what has no schedule.';

grant execute on function app.record_job(text, jsonb, boolean, integer), public.record_job(text, jsonb, boolean, integer) to service_role;
