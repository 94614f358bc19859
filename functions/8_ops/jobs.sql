-- Periodic work: its schedule and its state. ops.jobs, pg_cron, Sentry and the local stack all read the schedule from here.

-- Schedules are in UTC. Work without a schedule is not run by the jobs' scheduler, but by a workflow or an operator.
create or replace view ops.job_schedule with (security_invoker) as
select j.name, j.every, j.schedule, j.purpose from app.job_schedules as j
union all
select 'backup', s.backup_rpo, null, 'Backs up the database.' from app.settings as s
union all
select 'drill', s.drill_every, null, 'Restores a backup as a test.' from app.settings as s;
comment on view ops.job_schedule is 'Periodic work: how often it should run, and the cron schedule (UTC) on which the scheduler calls the service''s job.';

-- last_effect_at is the last time the data shows that the work was done, by whatever means. overdue_since is the time at which the oldest
-- unfinished piece of work was due. A job without a run counts from its declaration, so a scheduler that was never set up shows within
-- the first hour. `ballast doctor` reports a job that only the service or only the database has.
create or replace view ops.jobs with (security_invoker) as
with kept as (
  select d.relation, app.retention_period(d) as retention_period from app.personal_data as d
  where d.relation in ('app.webhook_events', 'public.organizations')
),

evidence as (
  select
    'retention' as name,
    (
      select max(i.happened_at) from app.audit_interventions as i
      where i.kind = 'retention'
    ) as last_effect_at,
    least(
      (
        select (select min(e.applied_at) from app.webhook_events as e) + k.retention_period from kept as k
        where k.relation = 'app.webhook_events'
      ),
      (
        select (select min(o.deleted_at) from public.organizations as o) + k.retention_period from kept as k
        where k.relation = 'public.organizations'
      )
    ) as overdue_since
  union all
  select 'erasures', max(greatest(l.erased_at, l.stored_at)), min(l.next_attempt_at) filter (where l.state <> 'complete')
  from app.erasure_log as l
  union all
  select 'name-changes', null, min(n.next_attempt_at) from app.name_changes as n
  union all
  select 'retry-events', null, min(e.next_attempt_at) from app.webhook_events as e
  where e.outcome = 'failed'
  union all
  select 'mail', null, case when h.mail_enabled then h.oldest_queued_at end from ops.mail_health as h
  union all
  select
    'seals', last_seal.sealed_at, coalesce(last_seal.range_end, (select min(a.created_at) from public.audit_logs as a))
  from (select max(s.sealed_at) as sealed_at, max(s.range_end) as range_end from app.audit_seals as s) as last_seal
  union all
  select
    'partitions', null,
    case
      when to_regclass('app.audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM')) is null then app.month_start(now())
      when to_regclass('app.audit_logs_' || to_char(app.next_month(now()) at time zone 'UTC', 'YYYY_MM')) is null
        then greatest(app.month_start(now()), app.next_month(now()) - interval '14 days')
    end
  union all
  select 'backup', b.last_success_at, b.last_success_at + b.rpo_target from ops.backup_health as b
  union all
  select 'drill', b.last_drill_at, b.last_drill_at + s.drill_every from ops.backup_health as b cross join app.settings as s
),

facts as (
  select
    k.name, k.every, k.purpose, r.last_run_at, r.last_ok_at, coalesce(r.failures, 0) as failures,
    r.report, r.clock_skew,
    case when k.schedule is not null then now() - coalesce(r.last_run_at, d.added_at) end as silence,
    greatest(e.last_effect_at, r.last_ok_at) as last_effect_at,
    case when e.overdue_since < now() then e.overdue_since end as overdue_since
  from ops.job_schedule as k
  left join app.job_schedules as d on k.name = d.name
  left join app.job_runs as r on k.name = r.name
  left join evidence as e on k.name = e.name
)

select
  f.name, f.purpose, f.every, f.last_run_at, f.last_effect_at, f.failures, f.overdue_since, rule.verdict[1] <> 'green' as is_late,
  rule.verdict[1] as status, rule.verdict[2] as advice, f.report as last_report
from facts as f
cross join
  lateral (
    select case
      when f.name in ('backup', 'drill') and f.last_effect_at is null
        then array['yellow', 'It has not run yet: read advice in ops.backup_health.']
      when f.failures >= 3 then array['red', 'At least three runs in a row failed. Read last_report and the service''s log.']
      when f.overdue_since < now() - greatest(3 * f.every, interval '1 day')
        then array['red', 'Work is long overdue. Check that the scheduler calls the job, and read last_report.']
      when f.overdue_since < now() - greatest(f.every, interval '30 minutes')
        then array['yellow', 'Work is overdue. Check that the scheduler calls the job, and read last_report.']
      when f.name = 'reconcile-sample' and f.report -> 'differing' <> '{}'
        then array['yellow', 'The last sample differs from Clerk: run `ballast clerk reconcile`.']
      when abs(extract(epoch from f.clock_skew)) > 30
        then
          array[
            'yellow',
            format('Clock skew: the service''s clock differs from the database''s by %s. Correct both (NTP): tokens live ', f.clock_skew)
            || 'for a minute. `ballast doctor` names the wrong one.'
          ]
      when f.failures > 0 then array['yellow', 'The last run failed: read last_report. The next run retries.']
      when f.silence < interval '-5 minutes'
        then array['yellow', 'The last run is dated in the future: the database''s clock was changed. Call the job, and check the clock.']
      when f.silence > greatest(3 * f.every, interval '30 minutes')
        then
          array[
            case when f.silence > greatest(10 * f.every, interval '1 day') then 'red' else 'yellow' end,
            case
              when f.last_run_at is null then 'No scheduler has called the job yet. Set one up: docs/jobs.md.'
              else 'The scheduler has stopped calling the job. No work is overdue yet. Check that the scheduler is running.'
            end
          ]
      else array['green', 'OK.']
    end as verdict
  ) as rule
order by array_position('{red,yellow,green}', rule.verdict[1]), f.name;
comment on view ops.jobs is 'Periodic work: how often it should run, when it last ran, since when work is overdue, and what to do.';

-- Leaves out backups and drills: ops.backup_health reports them.
create or replace view ops.job_health with (security_invoker) as
select
  count(*) filter (where j.status <> 'green') as late,
  string_agg(j.name, ', ' order by j.name) filter (where j.status <> 'green') as which,
  max(j.last_run_at) as last_run_at,
  coalesce((array_agg(j.status order by array_position('{red,yellow,green}', j.status)))[1], 'green') as status,
  coalesce(
    (array_agg(format('%s: %s See ops.jobs.', j.name, j.advice) order by array_position('{red,yellow}', j.status), j.name) filter (
      where j.status <> 'green'
    ))[1],
    'OK.'
  ) as advice
from ops.jobs as j
where j.name not in ('backup', 'drill');
comment on view ops.job_health is 'Whether periodic work runs on time: one row. ops.jobs lists the jobs.';

-- With pg_cron and pg_net the database calls the service itself. The token stays in Supabase's vault.
create or replace function ops.schedule_jobs(service_url text) returns table (job text, schedule text)
language plpgsql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regprocedure('cron.schedule(text,text,text)') is null or to_regprocedure('net.http_post(text,jsonb,jsonb,jsonb,integer)') is null
    or to_regclass('vault.decrypted_secrets') is null then
    raise sqlstate 'PT400' using
      message = 'pg_cron, pg_net or the vault is not installed.',
      hint = 'Enable them (dashboard: Database, Extensions), or let another scheduler call the jobs: docs/jobs.md.';
  elsif service_url is null or service_url !~ '^https?://[A-Za-z0-9.:-]+$' then
    raise sqlstate 'PT400' using
      message = 'The service URL is not valid.', hint = 'Pass a URL without a path, such as https://api.example.com.';
  end if;
  -- Jobs that no longer exist. Only our own schedules call this path.
  for job in execute
    $query$ select j.jobname from cron.job as j where j.jobname like 'ballast %' and j.command like '%/jobs/%'
    and not exists (select from ops.job_schedule as s where s.schedule is not null and 'ballast ' || s.name = j.jobname) $query$
  loop
    execute 'select cron.unschedule($1)' using job;
  end loop;
  for job, schedule in select s.name, s.schedule from ops.job_schedule as s where s.schedule is not null loop
    execute 'select cron.schedule($1, $2, $3)' using 'ballast ' || job, schedule, format(
      'select net.http_post(url := %L, headers := jsonb_build_object(''Authorization'', ''Bearer '' || ('
      'select decrypted_secret from vault.decrypted_secrets where name = ''jobs_token'')), timeout_milliseconds := 60000)',
      service_url || '/jobs/' || job
    );
    return next;
  end loop;
end;
$$;
comment on function ops.schedule_jobs is
'Schedules pg_cron calls of the service''s jobs, with the secret jobs_token from the vault. Call it again if the URL or the jobs change: it replaces the schedules.';
