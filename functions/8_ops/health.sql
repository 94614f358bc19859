-- How each part goes, for administrators in the SQL editor. A view named …_health has one row, with status (green, yellow, red) and
-- advice, by the first rule of its `case` that applies. ops.health shows every such view, also a product's. `ballast status` and
-- /metrics read it.

create or replace function ops.read_health() returns table (subject text, status text, advice text)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  view_name text;
begin
  for view_name in
    select c.relname from pg_class as c
    where c.relnamespace = 'ops'::regnamespace and c.relkind = 'v' and c.relname like '%\_health'
      and (select count(*) from pg_attribute as a where a.attrelid = c.oid and a.attname in ('status', 'advice')) = 2
  loop
    return query execute format(
      'select %L, h.status::text, h.advice::text from ops.%I as h', regexp_replace(view_name, '_health$', ''), view_name
    );
  end loop;
end;
$$;
comment on function ops.read_health is 'Status and advice of every view ops.…_health. For ops.health.';

create or replace view ops.health with (security_invoker) as
select h.subject, h.status, h.advice from ops.read_health() as h
order by array_position('{red,yellow,green}', h.status), h.subject;
comment on view ops.health is 'Whether all is well: a row per part, what is red first, and what to do. ops.<subject>_health has the facts.';

-- `ballast doctor` sends pings of its own; they say nothing of Clerk. Clerk gives up after a day or so: what is older was replayed by hand.
create or replace view ops.webhook_health with (security_invoker) as
with facts as (
  select
    (
      select count(*) from app.webhook_events as e
      where e.received_at > now() - interval '24 hours' and e.type <> 'ballast.ping'
    ) as received_24h,
    failure.failed, failure.oldest_failure_at, failure.most_attempts, last_event.received_at as last_received_at,
    last_event.received_at - app.clerk_time(last_event.event -> 'timestamp') as lag
  from (
    select count(*) as failed, min(f.received_at) as oldest_failure_at, max(f.attempts) as most_attempts
    from app.webhook_events as f
    where f.outcome = 'failed'
  ) as failure
  left join lateral (
    select e.received_at, e.event from app.webhook_events as e
    where e.type <> 'ballast.ping'
    order by e.received_at desc
    limit 1
  ) as last_event on true
)

select
  f.received_24h, f.failed, f.oldest_failure_at, f.last_received_at, f.lag, rule.verdict[1] as status, rule.verdict[2] as advice
from facts as f
cross join lateral (
  select case
    when f.oldest_failure_at < now() - interval '6 hours'
      then
        array[
          'red',
          'Events fail for hours: people may have access that Clerk took from them. Mend what error in ops.webhook_failures says, then '
          || 'select * from ops.retry_webhook(message_id).'
        ]
    when f.failed > 0 then array['yellow', 'Events failed: ops.webhook_failures says why; ops.retry_webhook(message_id) applies one again.']
    when f.last_received_at is null
      then
        array[
          'yellow', 'No event was ever received: see docs/deploy.md for the endpoint in Clerk, and `ballast doctor` for the way to it.'
        ]
    when f.lag between interval '5 minutes' and interval '3 days'
      then array['yellow', 'The last event came late: read the endpoint''s attempts in Clerk, and whether the service answered 2xx.']
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.webhook_health is
'Whether Clerk''s events arrive and are applied: one row. lag is how long after Clerk wrote the last one it was received.';

-- One row, also when there is no backup at all.
create or replace view ops.backup_health with (security_invoker) as
with facts as (
  select
    success.created_at as last_success_at, success.filename as last_filename, success.size_bytes,
    success.finished_at - success.created_at as duration, now() - success.created_at as rpo_now, s.backup_rpo as rpo_target,
    drill.drilled_at as last_drill_at, drill.drill_passed as last_drill_passed,
    case jsonb_typeof(drill.drill_report -> 'rto_seconds')
      when 'number' then make_interval(secs => (drill.drill_report -> 'rto_seconds')::double precision)
    end as rto,
    failure.created_at as last_failure_at, coalesce(failure.error_message, 'The process ended without a word.') as last_failure,
    case when r.is_running then coalesce(running.created_at, now()) end as running_since, s.drill_every
  from app.settings as s
  cross join public.backup_is_running() as r (is_running)
  left join lateral (
    select b.* from public.backup_logs as b
    where b.status = 'completed'
    order by b.created_at desc
    limit 1
  ) as success on true
  left join lateral (
    select b.* from public.backup_logs as b
    where b.drilled_at is not null
    order by b.drilled_at desc
    limit 1
  ) as drill on true
  left join lateral (
    select b.* from public.backup_logs as b
    where b.status = 'started'
    order by b.created_at desc
    limit 1
  ) as running on true
  -- One that says it is running, while none is, has crashed; the next run will say so.
  left join lateral (
    select b.* from public.backup_logs as b
    where
      b.status in ('failed', 'interrupted')
      or (b.status = 'started' and not r.is_running and b.created_at < now() - interval '1 minute')
    order by b.created_at desc
    limit 1
  ) as failure on true
)

select
  f.last_success_at, f.last_filename, f.size_bytes, f.duration, f.rpo_now, f.rpo_target, f.last_drill_at, f.last_drill_passed, f.rto,
  f.last_failure_at, case when f.last_failure_at is not null then f.last_failure end as last_failure, f.running_since,
  rule.verdict[1] as status, rule.verdict[2] as advice
from facts as f
cross join lateral (
  select case
    when f.last_success_at is null then array['red', 'There is no backup: run `ballast backup run` now.']
    when f.rpo_now > f.rpo_target + interval '2 hours'
      then array['red', 'The last backup is too old: run `ballast backup run` now, and see why the scheduler did not.']
    when not f.last_drill_passed
      then
        array[
          'red',
          'The last drill failed: read drill_report in public.backup_logs, then run `ballast backup run` and `ballast backup drill latest`.'
        ]
    when f.rpo_now > f.rpo_target
      then array['yellow', 'The next backup is late: see whether the scheduler runs, or run `ballast backup run`.']
    when f.last_failure_at > f.last_success_at
      then array['yellow', 'The last attempt failed: mend what last_failure says, then run `ballast backup run`.']
    when f.last_drill_at is null then array['yellow', 'No backup was ever restored for proof: run `ballast backup drill latest`.']
    when f.last_drill_at < now() - f.drill_every - interval '1 day'
      then array['yellow', 'The last proof is too old: run `ballast backup drill latest`, and see why the scheduler did not.']
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.backup_health is
'Whether backups are made and proven: one row. status is red, yellow or green, advice says what to do; the targets are in app.settings.';

-- A mail that waits for an erasure is not due.
create or replace view ops.mail_health with (security_invoker) as
with facts as (
  select
    s.mail_enabled, s.operator_email,
    count(*) filter (where o.state in ('queued', 'sending') and o.next_attempt_at < 'infinity') as queued,
    min(case when o.attempts = 0 then o.next_attempt_at else o.created_at end) filter (
      where o.state in ('queued', 'sending') and o.next_attempt_at < 'infinity' and (o.attempts > 0 or o.next_attempt_at < now())
    ) as oldest_queued_at,
    count(*) filter (where o.sent_at > now() - interval '24 hours') as sent_24h,
    count(*) filter (where o.state = 'failed' and o.next_attempt_at > now() - interval '24 hours') as failed_24h,
    count(*) filter (where o.state in ('bounced', 'complained') and o.created_at > now() - interval '7 days') as bounced_7d,
    count(*) filter (where o.sent_at > now() - interval '7 days') as sent_7d,
    mode() within group (order by o.error) filter (
      where o.state in ('queued', 'sending', 'failed') and o.created_at > now() - interval '48 hours'
    ) as last_error
  from app.settings as s
  left join app.email_outbox as o on true
  group by s.mail_enabled, s.operator_email
)

select
  f.mail_enabled, f.queued, f.oldest_queued_at, f.sent_24h, f.failed_24h, f.bounced_7d, f.sent_7d, f.last_error,
  rule.verdict[1] as status, rule.verdict[2] as advice
from facts as f
cross join lateral (
  select case
    when f.queued > 0 and not f.mail_enabled
      then array['yellow', 'Mail is switched off and some waits: `update app.settings set mail_enabled = true`, or delete it.']
    when not f.mail_enabled then array['green', 'Mail is switched off. To have it: `update app.settings set mail_enabled = true`.']
    when f.oldest_queued_at < now() - interval '1 hour'
      then
        array[
          'red', 'Mail is not sent: see last_error, whether the scheduler runs POST /jobs/mail, and whether RESEND_API_KEY is right.'
        ]
    when f.failed_24h > 0 then array['red', 'Mail was given up: see ops.mail_failures, mend it, then ops.retry_mail(id).']
    when f.bounced_7d >= 5 and f.bounced_7d > f.sent_7d * 0.05
      then array['yellow', 'More than one mail in twenty bounces: see ops.mail_failures, and SPF, DKIM and DMARC of the domain at Resend.']
    when f.operator_email is null then array['yellow', 'Nobody hears of failed backups: `update app.settings set operator_email = ''…''`.']
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.mail_health is 'Whether mail goes out: one row. status is red, yellow or green, advice says what to do.';

create or replace view ops.erasure_health with (security_invoker) as
select
  e.running, e.waiting_for_clerk, e.oldest_requested_at, e.error, rule.verdict[1] as status, rule.verdict[2] as advice
from (
  select
    count(*) filter (where l.state = 'running') as running, count(*) filter (where l.state = 'erased') as waiting_for_clerk,
    min(l.requested_at) as oldest_requested_at, (array_agg(l.error order by l.requested_at) filter (where l.error is not null))[1] as error
  from app.erasure_log as l
  where l.state <> 'complete'
) as e
cross join lateral (
  select case
    when e.oldest_requested_at < now() - interval '14 days'
      then
        array[
          'red', 'Somebody waits to be erased, for which the law gives a month: mend what ops.erasures says, then `ballast person resume`.'
        ]
    when e.oldest_requested_at < now() - interval '1 day'
      then array['yellow', 'An erasure takes long: see error in ops.erasures, and whether the scheduler calls POST /jobs/erasures.']
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.erasure_health is 'Whether people who asked to be erased wait for it: one row. ops.erasures has each.';

-- A transaction that stays open keeps dead rows, seals and erasures waiting.
create or replace view ops.storage_health with (security_invoker) as
select
  pg_size_pretty(f.bytes) as size, f.largest, f.dead_rows, f.oldest_transaction,
  case when f.oldest_transaction > interval '1 hour' or f.is_bloated then 'yellow' else 'green' end as status,
  case
    when f.oldest_transaction > interval '1 hour'
      then 'A transaction is open for long; vacuum, seals and erasures wait: see pg_stat_activity, pg_terminate_backend(pid) ends it.'
    when f.is_bloated then 'A table is mostly dead rows: see dead_rows in ops.table_sizes, and vacuum it.'
    else 'OK.'
  end as advice
from (
  select
    pg_database_size(current_database()) as bytes, sum(t.dead_rows)::bigint as dead_rows,
    (array_agg(concat(t.schema, '.', t.relation, ' (', t.size, ')') order by t.total_bytes desc nulls last))[1] as largest,
    bool_or(t.dead_rows > 100000 and t.dead_rows > t.rows) as is_bloated,
    (
      select max(now() - a.xact_start) from pg_stat_activity as a
      where
        a.datname = current_database() and a.backend_type not in ('autovacuum worker', 'walsender') and a.pid <> pg_backend_pid()
    ) as oldest_transaction
  from ops.table_sizes as t
) as f;
comment on view ops.storage_health is 'How large the database is, and whether something keeps it from cleaning up: one row.';
