-- The outcome of each job's last run. app.job_schedules defines how often a job should run.

create or replace function public.record_job(
  name text, report jsonb, ok boolean, duration_ms integer, clock timestamptz default null
) returns integer
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.refuse_clerk_tokens();
  perform app.refuse_deep_json(report);
  insert into app.job_runs as j (name, failures, last_ok_at, duration_ms, report, clock_skew)
  values (
    record_job.name, case when record_job.ok then 0 else 1 end, case when record_job.ok then now() end, record_job.duration_ms,
    record_job.report, record_job.clock - clock_timestamp()
  )
  on conflict on constraint job_runs_pkey do update
  set
    runs = j.runs + 1, failures = case when record_job.ok then 0 else j.failures + 1 end, last_run_at = now(),
    last_ok_at = coalesce(excluded.last_ok_at, j.last_ok_at), duration_ms = excluded.duration_ms, report = excluded.report,
    clock_skew = excluded.clock_skew;
  return (
    select extract(epoch from s.every)::integer / 60 from ops.job_schedule as s
    where s.name = record_job.name and s.schedule is not null
  );
end;
$$;
comment on function public.record_job is
'Records that a job of the service ended. report has counts and no personal data. clock is the service''s time. Returns the minutes until the next run is due, or null for a job without a schedule. Definer: the service has no privilege on tables.';

grant execute on function public.record_job(text, jsonb, boolean, integer, timestamptz) to service_role;
