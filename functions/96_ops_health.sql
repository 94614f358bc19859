-- How it goes, for administrators in the SQL editor: tenants, people, events, jobs, sizes. Nobody else can read it: ops has no grants.
-- A view named …_health has one row, with status (green, yellow, red) and advice: `ballast status` shows every such view there is.

create or replace view ops.tenants with (security_invoker) as
select
  o.name as organization, o.clerk_org_id, o.id,
  case when o.deleted_at is not null then 'deleted' when o.suspended_at is not null then 'suspended' else 'active' end as state,
  coalesce(o.deleted_at, o.suspended_at) as state_since, o.suspension_reason,
  o.deleted_at + (
    select app.kept_for(d) from app.personal_data as d
    where d.relation = 'public.organizations'
  ) as purged_after,
  o.subscription_tier as plan, o.subscription_status as plan_status, seats.members as seats_used, o.max_seats as seats,
  seats.owners, seats.admins, seats.members - seats.owners - seats.admins - seats.viewers as members, seats.viewers,
  (
    select count(*) from public.organization_invitations as i
    where i.organization_id = o.id
  ) as invitations,
  (
    select a.created_at from public.audit_logs as a
    where a.organization_id = o.id
    order by a.created_at desc limit 1
  ) as last_activity_at,
  o.mfa_required, o.created_at
from public.organizations as o
cross join
  lateral (
    select
      count(*) as members, count(*) filter (where m.role = 'owner') as owners, count(*) filter (where m.role = 'admin') as admins,
      count(*) filter (where m.role = 'viewer') as viewers
    from public.organization_memberships as m
    where m.organization_id = o.id
  ) as seats
order by last_activity_at desc nulls last, o.name asc;
comment on view ops.tenants is
'Every organization: state, plan, seats used of those it has, members by role, and when something was last changed in it.';

create or replace view ops.people with (security_invoker) as
select
  coalesce(p.full_name, p.email, p.clerk_user_id) as person, p.email, p.clerk_user_id, p.id,
  case
    when exists (
      select from app.erasure_log as l
      where l.state <> 'complete' and (l.person).id = p.id
    ) then 'being erased'
    when p.banned then 'banned'
    else 'active'
  end as state,
  p.banned, p.last_seen_at,
  array(
    select format('%s (%s)', o.name, m.role)
    from public.organization_memberships as m
    join public.organizations as o on m.organization_id = o.id
    where m.user_id = p.id
    order by o.name, o.id
  ) as organizations,
  p.created_at
from public.profiles as p
order by p.last_seen_at desc nulls last, p.created_at desc;
comment on view ops.people is 'Every person: where they belong, as what, when they were last here, and whether they are banned or being erased.';

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
  f.received_24h, f.failed, f.oldest_failure_at, f.last_received_at, f.lag, verdict.status, verdict.advice
from facts as f
cross join lateral (
  select rule.status, rule.advice
  from (
    values
    (
      1, f.oldest_failure_at < now() - interval '6 hours', 'red',
      'Events fail for hours: people may have access that Clerk took from them. Mend what error in ops.webhook_failures says, then '
      || 'select * from ops.retry_webhook(message_id).'
    ),
    (2, f.failed > 0, 'yellow', 'Events failed: ops.webhook_failures says why; ops.retry_webhook(message_id) applies one again.'),
    (
      3, f.last_received_at is null, 'yellow',
      'No event was ever received: see docs/deploy.md for the endpoint in Clerk, and `ballast doctor` for the way to it.'
    ),
    (
      4, f.lag between interval '5 minutes' and interval '3 days', 'yellow',
      'The last event came late: read the endpoint''s attempts in Clerk, and whether the service answered 2xx.'
    ),
    (5, true, 'green', 'Nothing is to be done.')
  ) as rule (position, applies, status, advice)
  where rule.applies
  order by rule.position
  limit 1
) as verdict;
comment on view ops.webhook_health is
'Whether Clerk''s events arrive and are applied: one row. lag is how long after Clerk wrote the last one it was received.';

create or replace view ops.erasure_health with (security_invoker) as
select
  e.running, e.waiting_for_clerk, e.oldest_requested_at, e.error,
  case
    when e.oldest_requested_at < now() - interval '14 days' then 'red'
    when e.oldest_requested_at < now() - interval '1 day' then 'yellow'
    else 'green'
  end as status,
  case
    when e.oldest_requested_at < now() - interval '14 days'
      then 'Somebody waits to be erased, for which the law gives a month: mend what ops.erasures says, then `ballast person resume`.'
    when e.oldest_requested_at < now() - interval '1 day'
      then 'An erasure takes long: see error in ops.erasures, and whether the scheduler calls POST /jobs/erasures.'
    else 'Nothing is to be done.'
  end as advice
from (
  select
    count(*) filter (where l.state = 'running') as running, count(*) filter (where l.state = 'erased') as waiting_for_clerk,
    min(l.requested_at) as oldest_requested_at, (array_agg(l.error order by l.requested_at) filter (where l.error is not null))[1] as error
  from app.erasure_log as l
  where l.state <> 'complete'
) as e;
comment on view ops.erasure_health is 'Whether people who asked to be erased wait for it: one row. ops.erasures has each.';

-- What has to happen again and again. last_effect_at is what the data shows of it, whoever did it; overdue_since is when the oldest
-- piece of work was due that is not done. Jobs that only the service knows of are here once they have run.
create or replace view ops.jobs with (security_invoker) as
with kept as (
  select d.relation, app.kept_for(d) as kept_for from app.personal_data as d
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
        select min(e.applied_at) + k.kept_for from app.webhook_events as e cross join kept as k
        where k.relation = 'app.webhook_events'
        group by k.kept_for
      ),
      (
        select min(o.deleted_at) + k.kept_for from public.organizations as o cross join kept as k
        where k.relation = 'public.organizations'
        group by k.kept_for
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
  f.name, f.purpose, f.every, f.last_run_at, f.last_effect_at, f.failures, f.overdue_since, verdict.status <> 'green' as is_late,
  verdict.status, verdict.advice, f.report as last_report
from facts as f
cross join
  lateral (
    select rule.status, rule.advice
    from (
      values
      (1, f.name in ('backup', 'drill') and f.last_effect_at is null, 'yellow', 'Never done yet: read advice in ops.backup_health.'),
      (2, f.failures >= 3, 'red', 'It fails each time: read last_report, and the service''s log.'),
      (
        3, f.overdue_since < now() - greatest(3 * f.every, interval '1 day'), 'red',
        'Work waits for long: see whether the scheduler calls it, and what it answers.'
      ),
      (4, f.overdue_since < now() - greatest(f.every, interval '30 minutes'), 'yellow', 'Work waits: see whether the scheduler calls it.'),
      (
        5, f.name = 'reconcile-sample' and f.report -> 'differing' <> '{}', 'yellow',
        'The last sample differs from Clerk: run `ballast clerk reconcile`.'
      ),
      (6, f.failures > 0, 'yellow', 'The last run failed: read last_report. The next one tries again.'),
      (
        7, f.last_run_at < now() - greatest(3 * f.every, interval '30 minutes'), 'yellow',
        'Nothing waits, but the scheduler has stopped calling it.'
      ),
      (8, true, 'green', 'Nothing is to be done.')
    ) as rule (position, applies, status, advice)
    where rule.applies
    order by rule.position
    limit 1
  ) as verdict
order by array_position('{red,yellow,green}', verdict.status), f.name;
comment on view ops.jobs is 'Periodic work: how often it should be done, when it last was, since when some is due and not done, and what to do about it.';

-- Backups and drills have a view of their own.
create or replace view ops.job_health with (security_invoker) as
select
  count(*) filter (where j.status <> 'green') as late,
  string_agg(j.name, ', ' order by j.name) filter (where j.status <> 'green') as which,
  max(j.last_run_at) as last_run_at,
  coalesce((array_agg(j.status order by array_position('{red,yellow,green}', j.status)))[1], 'green') as status,
  case when bool_or(j.status <> 'green') then 'Read advice in ops.jobs.' else 'Nothing is to be done.' end as advice
from ops.jobs as j
where j.name not in ('backup', 'drill');
comment on view ops.job_health is 'Whether periodic work is done: one row. ops.jobs has each job.';

-- A function and not a view on the extension's: it may come and go, and a restore need not have it.
create or replace function app.slow_queries() returns table (
  query text, calls bigint, total interval, mean_ms numeric, max_ms numeric, rows_per_call numeric, cached_percent numeric, role text
)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  statistics text := (
    select format('%I.pg_stat_statements', n.nspname)
    from pg_extension as e
    join pg_namespace as n on n.oid = e.extnamespace
    where e.extname = 'pg_stat_statements'
  );
begin
  if statistics is null then
    return;
  end if;
  return query execute format(
    $query$
      select
        left(regexp_replace(s.query, '\s+', ' ', 'g'), 500), s.calls, make_interval(secs => s.total_exec_time / 1000),
        round(s.mean_exec_time::numeric, 2), round(s.max_exec_time::numeric, 2), round(s.rows::numeric / nullif(s.calls, 0), 1),
        round(100.0 * s.shared_blks_hit / nullif(s.shared_blks_hit + s.shared_blks_read, 0), 1), pg_get_userbyid(s.userid)::text
      from %s as s
      where s.dbid = (select d.oid from pg_database as d where d.datname = current_database())
      order by s.total_exec_time desc
      limit 100
    $query$, statistics
  );
exception when object_not_in_prerequisite_state then
  return; -- the extension is there, and the server was started without its library
end;
$$;
comment on function app.slow_queries is 'What pg_stat_statements has seen, what took most time first; nothing where it is not installed. For ops.slow_queries.';

create or replace view ops.slow_queries with (security_invoker) as
select * from app.slow_queries();
comment on view ops.slow_queries is
'What took most time in all, since the statistics were reset. Without rows: install pg_stat_statements (create extension pg_stat_statements schema extensions).';

create or replace view ops.table_sizes with (security_invoker) as
select
  n.nspname::text as schema, c.relname::text as relation, pg_size_pretty(size.total) as size, size.total as total_bytes,
  size.heap as table_bytes, size.indexes as index_bytes, size.total - size.heap - size.indexes as toast_bytes, size.live as rows,
  size.dead as dead_rows, size.partitions, size.last_vacuum_at, size.last_analyze_at
from pg_class as c
join pg_namespace as n on c.relnamespace = n.oid
cross join
  lateral (
    select
      sum(pg_total_relation_size(leaf.oid))::bigint as total, sum(pg_relation_size(leaf.oid))::bigint as heap,
      sum(pg_indexes_size(leaf.oid))::bigint as indexes, coalesce(sum(s.n_live_tup), 0)::bigint as live,
      coalesce(sum(s.n_dead_tup), 0)::bigint as dead, case c.relkind when 'p' then count(*) end as partitions,
      max(greatest(s.last_vacuum, s.last_autovacuum)) as last_vacuum_at,
      max(greatest(s.last_analyze, s.last_autoanalyze)) as last_analyze_at
    from (
      select c.oid
      where c.relkind = 'r'
      union all
      select t.relid from pg_partition_tree(c.oid) as t
      where c.relkind = 'p' and t.isleaf and t.relid <> c.oid
    ) as leaf
    left join pg_stat_user_tables as s on leaf.oid = s.relid
  ) as size
where c.relkind in ('r', 'p') and not c.relispartition and n.nspname in ('public', 'app', 'realtime')
order by size.total desc nulls last, n.nspname asc, c.relname asc;
comment on view ops.table_sizes is 'How large each table is with its indexes and partitions, and how many of its rows are dead. rows are estimates.';

-- A transaction that stays open keeps dead rows, seals and erasures waiting.
create or replace view ops.storage_health with (security_invoker) as
select
  pg_size_pretty(f.bytes) as size, f.largest, f.dead_rows, f.oldest_transaction,
  case when f.oldest_transaction > interval '1 hour' or f.is_bloated then 'yellow' else 'green' end as status,
  case
    when f.oldest_transaction > interval '1 hour'
      then 'A transaction is open for long; vacuum, seals and erasures wait: see pg_stat_activity, pg_terminate_backend(pid) ends it.'
    when f.is_bloated then 'A table is mostly dead rows: see dead_rows in ops.table_sizes, and vacuum it.'
    else 'Nothing is to be done.'
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
