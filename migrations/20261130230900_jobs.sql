-- The service's periodic work: how often each job runs, and the outcome of its last run. A functions file declares a job with
-- app.schedule_job(). ops.job_schedule adds backups and drills, whose intervals are settings.
create table app.job_schedules (
  name text primary key check (name ~ '^[a-z][a-z0-9-]{0,62}$' and name not in ('backup', 'drill')),
  every interval not null check (every between interval '1 minute' and interval '1 year'),
  schedule text not null check (schedule ~ '^[^ \n]+( [^ \n]+){4}$'),
  purpose text not null check (length(purpose) between 1 and 200),
  shipped boolean not null default false,
  added_at timestamptz not null default now()
);
comment on table app.job_schedules is 'The jobs that a scheduler calls. app.schedule_job() writes a row.';
comment on column app.job_schedules.name is 'As in POST /jobs/<name>, and as its module in service/jobs/.';
comment on column app.job_schedules.every is 'How often the job should run. ops.jobs reports a longer pause.';
comment on column app.job_schedules.schedule is 'When the scheduler calls the job: a cron schedule, in UTC.';
comment on column app.job_schedules.purpose is 'What the job does, in one sentence.';
comment on column app.job_schedules.shipped is 'Whether Ballast declares it. A shipped row that Ballast''s file no longer contains is deleted.';
comment on column app.job_schedules.added_at is 'When it was first declared. ops.jobs counts the delay of a job that never ran from this time.';
alter table app.job_schedules enable row level security, force row level security;

-- One row per job, not per run: its last outcome and for how long it has failed. The service logs each run.
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
