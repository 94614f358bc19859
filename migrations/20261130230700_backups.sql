-- The outcome of each backup: how it ended, what the store holds, and whether a restore proved it.
create table public.backup_logs (
  id uuid primary key default gen_random_uuid(),
  filename text not null,
  backup_type text not null check (backup_type in ('automated', 'manual')),
  status text not null check (status in ('started', 'completed', 'failed', 'interrupted')),
  size_bytes bigint check (size_bytes >= 0),
  checksum text check (checksum ~ '^[0-9a-f]{64}$'),
  error_message text,
  created_at timestamptz not null default now(),
  finished_at timestamptz,
  drilled_at timestamptz,
  drill_passed boolean,
  drill_report jsonb check (not jsonb_path_exists(drill_report, 'strict $.**{64}'))
);
comment on table public.backup_logs is 'One row per backup, whatever its outcome.';
comment on column public.backup_logs.id is 'Our id.';
comment on column public.backup_logs.filename is 'Its path in the store: database/<UTC time>-<first digits of the id>.';
comment on column public.backup_logs.backup_type is 'automated or manual.';
comment on column public.backup_logs.status is 'started, completed, failed, or interrupted by a crash.';
comment on column public.backup_logs.size_bytes is 'Size in the store, in bytes.';
comment on column public.backup_logs.checksum is 'SHA-256 of the stored dump, in hexadecimal.';
comment on column public.backup_logs.error_message is 'Why it failed.';
comment on column public.backup_logs.created_at is 'The moment of its data: the snapshot was taken then.';
comment on column public.backup_logs.finished_at is
'When it ended, or was found to have ended. Null while it runs, and if a drill was the first to report the backup.';
comment on column public.backup_logs.drilled_at is 'When a drill last restored it; null for never.';
comment on column public.backup_logs.drill_passed is 'Whether every check of that drill passed.';
comment on column public.backup_logs.drill_report is 'What that drill measured: each check, rto_seconds, rpo_seconds.';
-- After a restore, a backup may exist in the store but not in this table. A drill finds or adds its row by filename.
create unique index backup_logs_filename_idx on public.backup_logs (filename);
create index backup_logs_created_at_idx on public.backup_logs (created_at desc);
alter table public.backup_logs enable row level security, force row level security;
