-- The service's periodic work. One row per job, not per run: its last outcome and for how long it has failed. The server logs each run.
create table app.job_runs (
  name text primary key check (name ~ '^[a-z][a-z0-9-]{0,62}$'),
  runs bigint not null default 1 check (runs > 0),
  failures integer not null default 0 check (failures >= 0),
  last_run_at timestamptz not null default now(),
  last_ok_at timestamptz,
  duration_ms integer not null check (duration_ms >= 0),
  clock_skew interval,
  report jsonb not null default '{}' check (jsonb_typeof(report) = 'object' and not jsonb_path_exists(report, 'strict $.**{64}'))
);
comment on table app.job_runs is 'The last run of each job of the service. ops.jobs shows whether a job is late.';
comment on column app.job_runs.name is 'As in POST /jobs/<name>.';
comment on column app.job_runs.runs is 'How often it ran.';
comment on column app.job_runs.failures is 'How often it failed since it last succeeded.';
comment on column app.job_runs.last_run_at is 'When it last ended, whether it succeeded or failed.';
comment on column app.job_runs.last_ok_at is 'When it last succeeded; null for never.';
comment on column app.job_runs.duration_ms is 'How long the last run took, in milliseconds.';
comment on column app.job_runs.clock_skew is 'How far the service''s clock was ahead of the database''s at the end of the last run.';
comment on column app.job_runs.report is 'Result of the last run: counts, or the kind of error. Nothing about people.';
alter table app.job_runs enable row level security, force row level security;
