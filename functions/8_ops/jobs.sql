-- What has to happen again and again: one place says how often, for ops.jobs, pg_cron, Sentry and the local stack.

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

-- What has to happen again and again. last_effect_at is what the data shows of it, whoever did it; overdue_since is when the oldest
-- piece of work was due that is not done. Jobs that only the service knows of are here once they have run.
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
        select min(e.applied_at) + k.retention_period from app.webhook_events as e cross join kept as k
        where k.relation = 'app.webhook_events'
        group by k.retention_period
      ),
      (
        select min(o.deleted_at) + k.retention_period from public.organizations as o cross join kept as k
        where k.relation = 'public.organizations'
        group by k.retention_period
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
    coalesce(k.name, r.name) as name, k.every, k.purpose, r.last_run_at, r.last_ok_at, coalesce(r.failures, 0) as failures, r.report,
    greatest(e.last_effect_at, r.last_ok_at) as last_effect_at,
    case when e.overdue_since < now() then e.overdue_since end as overdue_since
  from ops.job_schedule as k
  full join app.job_runs as r on k.name = r.name
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
        then array['yellow', 'Never done yet: read advice in ops.backup_health.']
      when f.failures >= 3 then array['red', 'It fails each time: read last_report, and the service''s log.']
      when f.overdue_since < now() - greatest(3 * f.every, interval '1 day')
        then array['red', 'Work waits for long: see whether the scheduler calls it, and what it answers.']
      when f.overdue_since < now() - greatest(f.every, interval '30 minutes')
        then array['yellow', 'Work waits: see whether the scheduler calls it.']
      when f.name = 'reconcile-sample' and f.report -> 'differing' <> '{}'
        then array['yellow', 'The last sample differs from Clerk: run `ballast clerk reconcile`.']
      when f.failures > 0 then array['yellow', 'The last run failed: read last_report. The next one tries again.']
      when f.last_run_at < now() - greatest(3 * f.every, interval '30 minutes')
        then array['yellow', 'Nothing waits, but the scheduler has stopped calling it.']
      else array['green', 'OK.']
    end as verdict
  ) as rule
order by array_position('{red,yellow,green}', rule.verdict[1]), f.name;
comment on view ops.jobs is 'Periodic work: how often it should be done, when it last was, since when some is due and not done, and what to do about it.';

-- Backups and drills have a view of their own.
create or replace view ops.job_health with (security_invoker) as
select
  count(*) filter (where j.status <> 'green') as late,
  string_agg(j.name, ', ' order by j.name) filter (where j.status <> 'green') as which,
  max(j.last_run_at) as last_run_at,
  coalesce((array_agg(j.status order by array_position('{red,yellow,green}', j.status)))[1], 'green') as status,
  case when bool_or(j.status <> 'green') then 'Read advice in ops.jobs.' else 'OK.' end as advice
from ops.jobs as j
where j.name not in ('backup', 'drill');
comment on view ops.job_health is 'Whether periodic work is done: one row. ops.jobs has each job.';

-- Where pg_cron and pg_net are, the database itself calls the service; the token stays in Supabase's vault.
create or replace function ops.schedule_jobs(service_url text) returns table (job text, schedule text)
language plpgsql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regprocedure('cron.schedule(text,text,text)') is null or to_regprocedure('net.http_post(text,jsonb,jsonb,jsonb,integer)') is null
    or to_regclass('vault.decrypted_secrets') is null then
    raise sqlstate 'PT400' using
      message = 'pg_cron, pg_net or the vault is not there.',
      hint = 'Switch them on (dashboard: Database, Extensions), or call the jobs from elsewhere: docs/jobs.md.';
  elsif service_url is null or service_url !~ '^https?://[A-Za-z0-9.:-]+$' then
    raise sqlstate 'PT400' using message = 'The service''s URL is like https://api.example.com, without a path.';
  end if;
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
'Has pg_cron call the service''s jobs with the secret jobs_token of the vault. Call it again after a change of the URL: a schedule is replaced.';
