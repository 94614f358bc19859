-- What became of each backup: how it ended, what the store holds, and whether a restore proved it. And how late is too late.

alter table public.backup_logs
add column finished_at timestamptz,
add column checksum text check (checksum ~ '^[0-9a-f]{64}$'),
add column drilled_at timestamptz,
add column drill_passed boolean,
add column drill_report jsonb;
comment on column public.backup_logs.filename is 'Where the store keeps it: database/<UTC time>-<first digits of the id>.';
comment on column public.backup_logs.created_at is 'The moment of its data: the snapshot was taken then.';
comment on column public.backup_logs.finished_at is 'When it ended, or was found to have ended. Null while it runs, and when only a drill told of it.';
comment on column public.backup_logs.checksum is 'SHA-256 of the stored dump, in hexadecimal.';
comment on column public.backup_logs.drilled_at is 'When it was last restored for proof; null for never.';
comment on column public.backup_logs.drill_passed is 'Whether every check of that drill passed.';
comment on column public.backup_logs.drill_report is 'What that drill measured: each check, rto_seconds, rpo_seconds.';

-- Nothing wrote the table yet. Its name is how a drill finds a backup of which it knows only what the store says.
-- squawk-ignore require-concurrent-index-creation
create unique index backup_logs_filename_idx on public.backup_logs (filename);
-- squawk-ignore require-concurrent-index-creation
create index backup_logs_created_at_idx on public.backup_logs (created_at desc);

alter table app.settings
add column backup_rpo interval not null default '24 hours' check (backup_rpo > interval '0'),
add column drill_every interval not null default '7 days' check (drill_every > interval '0');
comment on column app.settings.backup_rpo is 'How old the last backup may be: what is lost at worst. ops.backup_health compares.';
comment on column app.settings.drill_every is 'How often a backup is restored for proof. ops.backup_health is yellow a day later.';
