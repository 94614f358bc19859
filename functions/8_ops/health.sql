-- Health views for administrators, in the SQL editor. A view named …_health has one row with status (green, yellow or red) and advice.
-- The first branch of its `case` that applies decides both. ops.health collects all these views, including those that a product adds.
-- `ballast status` and /metrics read ops.health.

-- Compiling the larger views just in time takes seconds, and running them milliseconds.
create or replace function ops.read_health() returns table (subject text, status text, advice text)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp set jit = off
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
comment on function ops.read_health is 'Returns status and advice of every view ops.…_health. Used by ops.health.';

create or replace view ops.health with (security_invoker) as
select h.subject, h.status, h.advice from ops.read_health() as h
order by array_position('{red,yellow,green}', h.status), h.subject;
comment on view ops.health is 'Health of each subject with advice, red first. ops.<subject>_health has the figures.';

-- The pings of `ballast doctor` are left out, because they do not come from Clerk. Clerk stops retrying after about a day, so an event
-- that is older by days was replayed by hand, or is an example: it is not late, and has no lag. A person is undescribed if they signed in
-- an hour ago or earlier, and no event or import has described them since. Deliveries that were refused before the last accepted event do
-- not change the status. Clerk repeats a refused delivery for a day. So refusals in a single hour only come from strangers.
-- A session of Clerk lasts a week: people can use the product for days without an event. So three days without one count as silence only
-- if ten people came, and eight days if anyone did.
create or replace view ops.webhook_health with (security_invoker) as
with facts as (
  select
    (
      select count(*) from app.webhook_events as e
      where e.received_at > now() - interval '24 hours' and e.type <> 'ballast.ping'
    ) as received_24h,
    failure.failed, failure.oldest_failure_at, last_event.received_at as last_received_at,
    case when age.lag < interval '3 days' then age.lag end as lag,
    (
      select sum(r.deliveries) from app.refused_deliveries as r
      where r.sender = 'clerk' and r.last_at > now() - interval '24 hours'
    ) as refused_24h,
    refused.reason as refused_for, refused.skew as clock_skew, undescribed.people as undescribed_people,
    undescribed.oldest_at as oldest_undescribed_at,
    came.people >= case when last_event.received_at < now() - interval '8 days' then 1 else 10 end as is_silent,
    (
      select min(u.failed_at) from app.event_failures as u
      where not exists (
        select from app.webhook_events as e
        where e.message_id = u.message_id
      )
    ) as oldest_unstored_at
  from (
    select count(*) as failed, min(f.received_at) as oldest_failure_at
    from app.webhook_events as f
    where f.outcome = 'failed'
  ) as failure
  left join lateral (
    select e.received_at, e.event from app.webhook_events as e
    where e.type <> 'ballast.ping'
    order by e.received_at desc
    limit 1
  ) as last_event on true
  cross join lateral (select last_event.received_at - app.clerk_event_time(last_event.event -> 'timestamp') as lag) as age
  cross join
    lateral (
      select count(*) as people from public.profiles as p
      where
        last_event.received_at < now() - interval '3 days'
        and p.last_seen_at > greatest(last_event.received_at + interval '1 hour', now() - interval '8 days')
    ) as came
  left join lateral (
    select r.reason, r.skew from app.refused_deliveries as r
    where
      r.sender = 'clerk' and r.last_at > coalesce(last_event.received_at, '-infinity') and (
        r.reason = 'timestamp'
        or r.last_at > now() - interval '6 hours'
        or exists (
          select from app.refused_deliveries as o
          where
            o.sender = r.sender and o.reason = r.reason and o.hour <> r.hour
            and o.last_at > coalesce(last_event.received_at, '-infinity')
        )
      )
    order by r.reason = 'timestamp' desc, r.last_at desc
    limit 1
  ) as refused on true
  cross join (
    select count(*) as people, min(p.created_at) as oldest_at
    from app.clerk_records as c
    join public.profiles as p on c.clerk_id = p.clerk_user_id
    where c.kind = 'user' and (c.stamp).event_at = '-infinity' and p.created_at < now() - interval '1 hour'
  ) as undescribed
)

select
  f.received_24h, f.failed, f.oldest_failure_at, f.last_received_at, f.lag, f.refused_24h, f.clock_skew, f.undescribed_people,
  rule.verdict[1] as status, rule.verdict[2] as advice
from facts as f
cross join lateral (
  select case
    when f.oldest_failure_at < now() - interval '6 hours'
      then
        array[
          'red',
          'Clerk events have been failing for hours, so people may keep access that Clerk revoked. Fix the error that `ballast inbox list` '
          || 'shows, then run `ballast inbox retry --all-failed`. If an event can never be applied, run `ballast inbox dismiss`. '
          || 'In the SQL editor: ops.webhook_failures, ops.retry_webhook(message_id), ops.dismiss_webhook(message_id, ''the reason'').'
        ]
    when f.refused_for = 'timestamp'
      then
        array[
          'red',
          format('Clock skew: the service refuses Clerk''s deliveries, because its clock differs from theirs by %s. ', f.clock_skew)
          || 'Correct the clock of the service''s host (NTP), then run `ballast clerk reconcile --fix`. If the clock is right, someone '
          || 'repeats old deliveries.'
        ]
    when f.oldest_undescribed_at < now() - interval '1 day' and f.oldest_undescribed_at > coalesce(f.last_received_at, '-infinity')
      then
        array[
          'red',
          'People sign in, but Clerk''s events about them do not arrive, so they may keep access that Clerk revoked. '
          || case
            when f.refused_for = 'signature'
              then 'The service refuses deliveries: put the signing secret of Clerk''s endpoint into CLERK_WEBHOOK_SECRETS.'
            else 'Check in Clerk that the webhook endpoint exists and is enabled, and read its log.'
          end
          || ' Then run `ballast clerk reconcile --fix`.'
        ]
    when f.failed > 0
      then
        array[
          'yellow',
          'Clerk events failed. Fix the error that `ballast inbox list` shows, then run `ballast inbox retry --all-failed`. In the SQL '
          || 'editor: ops.webhook_failures and ops.retry_webhook(message_id).'
        ]
    when f.refused_for = 'signature'
      then
        array[
          'yellow',
          'The service refuses deliveries that no secret in CLERK_WEBHOOK_SECRETS signed, and has accepted none since. Put the signing '
          || 'secret of Clerk''s endpoint into it, and check it with `ballast doctor`. Then send an event from Clerk: the light turns '
          || 'green if it arrives. Strangers can cause this too.'
        ]
    when f.last_received_at is null
      then
        array[
          'yellow',
          'No Clerk event has arrived yet. Create the webhook endpoint in Clerk (docs/deploy.md) and check it with `ballast doctor`.'
        ]
    when f.undescribed_people > 0
      then
        array[
          'yellow',
          'People signed in, but no Clerk event describes them. Import those from before the webhook with `ballast clerk backfill`. For '
          || 'new ones, check that Clerk''s endpoint sends the events user.*, and read its log.'
        ]
    when f.is_silent
      then
        array[
          'yellow',
          'No Clerk event has arrived for days, although people use the product. Pin the instance in app.settings.clerk_instance_id, '
          || 'then send an example event from the endpoint''s page in Clerk: the light turns green if it arrives. If not, read its log.'
        ]
    when f.oldest_unstored_at < now() - interval '1 hour'
      then
        array[
          'yellow',
          'Events could not be stored: app.event_failures has the SQLSTATE, and the service''s log has more. Clerk sends them again for a '
          || 'day. After that, run `ballast clerk reconcile --fix`.'
        ]
    when f.lag < interval '-1 minute'
      then array['yellow', 'Clock skew: the database''s clock is behind Clerk''s by lag. Correct the clock of the database''s host (NTP).']
    when f.lag >= interval '5 minutes'
      then
        array[
          'yellow',
          'The last Clerk event arrived late. Check in Clerk''s log of the endpoint whether the service answered 2xx. If it did at once, '
          || 'the database''s clock is ahead.'
        ]
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.webhook_health is
'Whether Clerk events arrive and are applied: one row. undescribed_people signed in, but no event described them. lag is the time from Clerk''s timestamp of the last event to its arrival; null if the event is older than three days.';

-- Returns one row even if there is no backup.
create or replace view ops.backup_health with (security_invoker) as
with facts as (
  select
    success.created_at as last_success_at, success.filename as last_filename, success.size_bytes,
    success.finished_at - success.created_at as duration, now() - success.created_at as rpo_now, s.backup_rpo as rpo_target,
    drill.drilled_at as last_drill_at, drill.drill_passed as last_drill_passed,
    case jsonb_typeof(drill.drill_report -> 'rto_seconds')
      when 'number' then make_interval(secs => (drill.drill_report -> 'rto_seconds')::double precision)
    end as rto,
    failure.created_at as last_failure_at,
    coalesce(failure.error_message, 'The backup process exited without reporting a result.') as last_failure,
    case when r.is_running then coalesce(running.created_at, now()) end as running_since, s.drill_every
  from app.settings as s
  cross join public.backup_is_running() as r (is_running)
  left join lateral (
    select b.* from public.backup_logs as b
    where b.status = 'completed'
    -- A backup that is dated in the future comes last: the clock of the database was wrong.
    order by b.created_at > now() + interval '5 minutes', b.created_at desc
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
  -- A row still marked 'started' while no backup is running belongs to a run that crashed. The next run marks it 'interrupted'.
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
    when f.rpo_now < interval '-5 minutes'
      then
        array[
          'red',
          'The last backup is dated in the future: the clock of the database was wrong, or is. Correct it, then run `ballast backup run`.'
        ]
    when f.rpo_now > f.rpo_target + interval '2 hours'
      then array['red', 'The last backup is too old. Run `ballast backup run` now and find out why the scheduler did not run it.']
    when f.last_drill_at is not null and f.last_drill_passed is not true
      then
        array[
          'red',
          'The last drill failed. Read drill_report in public.backup_logs, then run `ballast backup run` and `ballast backup drill latest`.'
        ]
    when f.rpo_now > f.rpo_target
      then array['yellow', 'The next backup is late. Check that the scheduler is running, or run `ballast backup run`.']
    when f.last_failure_at > f.last_success_at
      then array['yellow', 'The last backup failed. Fix the error in last_failure, then run `ballast backup run`.']
    when f.running_since < now() - interval '6 hours'
      then
        array[
          'yellow',
          'A backup has been running for more than 6 hours. If its log shows no progress, end its process, then run `ballast backup run`.'
        ]
    when f.last_drill_at is null then array['yellow', 'No backup has been test-restored yet: run `ballast backup drill latest`.']
    when f.last_drill_at > now() + interval '5 minutes'
      then
        array[
          'yellow',
          'The last drill is dated in the future: the clock of the database was wrong, or is. Correct it, then run '
          || '`ballast backup drill latest`.'
        ]
    when f.last_drill_at < now() - f.drill_every - interval '1 day'
      then array['yellow', 'The last drill is too old. Run `ballast backup drill latest` and find out why the scheduler did not run it.']
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.backup_health is
'Whether backups and restore drills succeed in time: one row. The targets are in app.settings.';

-- Mail that is held until an erasure completes has next_attempt_at = 'infinity'. It is not counted as queued.
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
    ) as last_error,
    count(*) filter (where o.state in ('delivered', 'bounced', 'complained') and o.sent_at > now() - interval '24 hours') as reports_24h,
    (
      select sum(r.deliveries) from app.refused_deliveries as r
      where r.sender = 'resend' and r.last_at > now() - interval '24 hours'
    ) as refused_24h,
    (
      select j.report -> 'unconfigured' from app.job_runs as j
      where j.name = 'mail'
    ) is not null as is_unconfigured
  from app.settings as s
  left join app.email_outbox as o on true
  group by s.mail_enabled, s.operator_email
)

select
  f.mail_enabled, f.queued, f.oldest_queued_at, f.sent_24h, f.failed_24h, f.bounced_7d, f.sent_7d, f.last_error, f.refused_24h,
  rule.verdict[1] as status, rule.verdict[2] as advice
from facts as f
cross join lateral (
  select case
    when f.queued > 0 and not f.mail_enabled
      then
        array[
          'yellow',
          'Mail is switched off, but some is queued: run `update app.settings set mail_enabled = true`, or delete it from app.email_outbox.'
        ]
    when not f.mail_enabled and f.operator_email is not null
      then
        array[
          'yellow',
          'Mail is switched off, so the operator address gets no reports: `update app.settings set mail_enabled = true`, or set '
          || 'operator_email to null.'
        ]
    when not f.mail_enabled then array['green', 'Mail is switched off. To switch it on: `update app.settings set mail_enabled = true`.']
    when f.oldest_queued_at < now() - interval '1 hour'
      then
        array[
          'red', 'Queued mail is not being sent. Read last_error, check that the scheduler calls POST /jobs/mail, and check RESEND_API_KEY.'
        ]
    when f.failed_24h > 0
      then array['red', 'Mail failed permanently. Read error in ops.mail_failures, fix the cause, then run select ops.retry_mail(id).']
    when f.is_unconfigured
      then
        array['yellow', 'Mail is switched on, but the service has no RESEND_API_KEY or MAIL_FROM. Set both, and restart the service.']
    when f.oldest_queued_at < now() - interval '10 minutes'
      then
        array[
          'yellow',
          format('Queued mail is not being sent (%s). ', coalesce(f.last_error, 'not attempted'))
          || 'Check in ops.jobs that the job mail runs, and in Resend the API key and that the domain is verified.'
        ]
    when f.refused_24h > 0 and f.reports_24h = 0
      then
        array[
          'yellow',
          'The service refuses reports of bounces, because RESEND_WEBHOOK_SECRET did not sign them. Copy the secret from the webhook in '
          || 'Resend. Strangers can cause this too.'
        ]
    when f.bounced_7d >= 5 and f.bounced_7d > f.sent_7d * 0.05
      then array['yellow', 'More than 5 % of mail bounces. Read ops.mail_failures and check SPF, DKIM and DMARC of your domain in Resend.']
    when f.operator_email is null
      then array['yellow', 'No operator address is set, so failed backups go unreported: `update app.settings set operator_email = ''…''`.']
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.mail_health is 'Whether mail is sent and delivered: one row.';

create or replace view ops.erasure_health with (security_invoker) as
select
  e.running, e.waiting_for_clerk, e.skipped, e.oldest_requested_at, e.error, rule.verdict[1] as status, rule.verdict[2] as advice
from (
  select
    count(*) filter (where l.state = 'running') as running, count(*) filter (where l.state = 'erased') as waiting_for_clerk,
    (select count(*) from app.erasure_failures) as skipped, min(l.requested_at) as oldest_requested_at,
    (array_agg(l.error order by l.requested_at) filter (where l.error is not null))[1] as error
  from app.erasure_log as l
  where l.state <> 'complete'
) as e
cross join lateral (
  select case
    when e.oldest_requested_at < now() - interval '14 days'
      then
        array[
          'red',
          'An erasure is overdue; the law allows one month. Fix the error in ops.erasures, then run `ballast person resume`.'
        ]
    when e.skipped > 0
      then
        array[
          'yellow',
          'Some rows of a person could not be erased. ops.erasure_failures names them: remove the cause, then run `ballast person resume`.'
        ]
    when e.oldest_requested_at < now() - interval '1 hour' and e.error is not null
      then array['yellow', 'An erasure is delayed. Fix the error in ops.erasures, then run `ballast person resume`.']
    when e.oldest_requested_at < now() - interval '1 hour'
      then
        array[
          'yellow',
          'Erasures wait for more than an hour. Check in ops.jobs that the job erasures runs, and in ops.storage_health that no '
          || 'transaction blocks them. Then run `ballast person resume`.'
        ]
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.erasure_health is 'Whether erasures complete in time: one row. ops.erasures lists them.';

create or replace view ops.plan_health with (security_invoker) as
select
  p.unmapped, p.on_free_tier, case when p.unmapped > 0 then 'yellow' else 'green' end as status,
  case
    when p.unmapped > 0
      then
        'Organizations pay for a plan that has no tier, so they may be on the free tier. ops.clerk_plans names the plan: '
        || 'insert its slug and tier into app.clerk_plans.'
    else 'OK.'
  end as advice
from (
  select
    count(distinct i.organization_id) filter (where i.tier is null) as unmapped,
    count(distinct i.organization_id) filter (where i.tier is null and i.rank = 1) as on_free_tier
  from app.clerk_items_in_force as i
  join public.organizations as o on i.organization_id = o.clerk_org_id and o.deleted_at is null
) as p;
comment on view ops.plan_health is 'Whether every plan that organizations pay for has a tier: one row. ops.clerk_plans lists the plans.';

-- A transaction that stays open blocks vacuum from removing dead rows. Seals and erasures wait for it too.
create or replace view ops.storage_health with (security_invoker) as
select
  pg_size_pretty(f.bytes) as size, f.largest, f.dead_rows, f.oldest_transaction,
  case when f.oldest_transaction > interval '1 hour' or f.is_bloated then 'yellow' else 'green' end as status,
  case
    when f.oldest_transaction > interval '1 hour'
      then
        'A long transaction blocks vacuum, seals and erasures. Find it in pg_stat_activity and end it with pg_terminate_backend(pid).'
    when f.is_bloated then 'A table consists mostly of dead rows. Find it by dead_rows in ops.table_sizes and vacuum it.'
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
comment on view ops.storage_health is 'The size of the database, and whether vacuum keeps up: one row.';

-- A lost entry cannot be recovered, so the status stays until someone acknowledges it, at most 7 days. The trail is searched only if its
-- newest seal is old. ops.storage_health reports an open transaction, which the seals wait for.
create or replace view ops.audit_health with (security_invoker) as
select
  l.lost, l.last_lost_at, l.relation, l.error, p.waiting_since,
  case
    when l.lost > 0 then 'red'
    when p.waiting_since < now() - interval '1 day' or u.is_late or u.sealed_until > now() + interval '5 minutes' then 'yellow'
    else 'green'
  end as status,
  case
    when l.lost > 0
      then
        'Rows were written without an audit entry. Fix the cause of error (an SQLSTATE; app.lost_records has all), then run '
        || '`update app.settings set losses_acknowledged_at = now()`.'
    when p.waiting_since < now() - interval '1 day'
      then
        'An erasure or the drop of a month waits until its receipt is stored. Check that the service can write to BACKUP_URL, and that the '
        || 'scheduler calls the jobs erasures and retention.'
    when u.is_late
      then
        'Audit entries older than a day are not sealed, so `ballast audit verify` cannot find changes of them. Run `ballast audit seal`, '
        || 'and check that the scheduler calls the job seals.'
    when u.sealed_until > now() + interval '5 minutes'
      then
        'Clock skew: the newest seal is dated in the future, so entries are not sealed until then. Correct the database''s clock (NTP), '
        || 'and run `ballast audit verify`.'
    else 'OK.'
  end as advice,
  u.sealed_until
from app.count_losses('audit') as l
cross join (
  select min(i.planned_at) as waiting_since from app.audit_interventions as i
  where i.happened_at is null
) as p
cross join (
  select
    s.sealed_until,
    coalesce(s.sealed_until, '-infinity') < c.due and exists (
      select from public.audit_logs as a
      where a.created_at >= coalesce(s.sealed_until, '-infinity') and a.created_at < c.due
    ) as is_late
  from (select max(a.range_end) as sealed_until from app.audit_seals as a) as s
  cross join (select least(app.audit_complete_until(), now() - interval '1 day') as due) as c
) as u;
comment on view ops.audit_health is
'Whether audit entries were lost in the last 7 days and not yet acknowledged, whether a change to the trail waits for its receipt, and whether seals are late: one row.';

create or replace view ops.realtime_health with (security_invoker) as
select
  l.lost, l.last_lost_at, l.relation, l.error,
  case when l.lost > 0 then 'yellow' else 'green' end as status,
  case
    when l.lost > 0
      then
        'Changes were not broadcast, so open pages show old data until they read again. Fix the cause of error (an SQLSTATE; '
        || 'app.lost_records has all), then run `update app.settings set losses_acknowledged_at = now()`.'
    else 'OK.'
  end as advice
from app.count_losses('broadcast') as l;
comment on view ops.realtime_health is 'Whether broadcasts were lost in the last 7 days and not yet acknowledged: one row.';
