-- What an administrator must be able to say: whether periodic work is done, and that a tenant is to be reached by nobody for now.

-- One row a job, not one a run: what it last did and since when it fails. A log of runs is the server's.
create table app.job_runs (
  name text primary key check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
  runs bigint not null default 1 check (runs > 0),
  failures integer not null default 0 check (failures >= 0),
  last_run_at timestamptz not null default now(),
  last_ok_at timestamptz,
  duration_ms integer not null check (duration_ms >= 0),
  report jsonb not null default '{}' check (jsonb_typeof(report) = 'object')
);
comment on table app.job_runs is 'The last run of each job of the service. ops.jobs says whether it is late.';
comment on column app.job_runs.name is 'As in POST /jobs/<name>.';
comment on column app.job_runs.runs is 'How often it ran.';
comment on column app.job_runs.failures is 'How often it failed since it last succeeded.';
comment on column app.job_runs.last_run_at is 'When it last ended, however it ended.';
comment on column app.job_runs.last_ok_at is 'When it last ended well; null for never.';
comment on column app.job_runs.duration_ms is 'How long the last run took, in milliseconds.';
comment on column app.job_runs.report is 'What the last run answered: counts, or the kind of error. Nothing about people.';
alter table app.job_runs enable row level security, force row level security;

-- Not deleted_at: what is deleted loses its members at once and is purged after a while; what is suspended comes back as it was.
alter table public.organizations
add column suspended_at timestamptz,
add column suspension_reason text check (length(suspension_reason) between 1 and 500);
comment on column public.organizations.suspended_at is 'Since when nobody but administrators reaches its data; null for not. ops.suspend_organization() sets it.';
comment on column public.organizations.suspension_reason is 'Why, in an administrator''s words. Members cannot read it while it holds.';

-- What arrived last, and in the last day, is asked for again and again.
-- squawk-ignore require-concurrent-index-creation
create index webhook_events_received_at_idx on app.webhook_events (received_at);
