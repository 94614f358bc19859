-- Who did what, and which backups exist. The tables stand here; what fills them comes with its own functions.

-- Partitioned by month so that retention drops whole partitions; the default one means that nothing is ever refused.
create table public.audit_logs (
  id uuid not null default gen_random_uuid(),
  organization_id uuid references public.organizations on delete cascade,
  user_id uuid references public.profiles on delete set null,
  action text not null,
  resource_type text not null,
  resource_id text,
  metadata jsonb not null default '{}',
  ip_address inet,
  user_agent text,
  created_at timestamptz not null default now(),
  primary key (id, created_at)
) partition by range (created_at);
comment on table public.audit_logs is 'Who did what, when and from where. Append-only.';
comment on column public.audit_logs.id is 'The entry''s id.';
comment on column public.audit_logs.organization_id is 'The tenant whose data it was; null for what belongs to none.';
comment on column public.audit_logs.user_id is 'Who did it; null for the system, and for an erased person.';
comment on column public.audit_logs.action is 'What was done, such as project.updated.';
comment on column public.audit_logs.resource_type is 'The kind of thing it was done to.';
comment on column public.audit_logs.resource_id is 'Which one.';
comment on column public.audit_logs.metadata is 'What changed.';
comment on column public.audit_logs.ip_address is 'Where the request came from.';
comment on column public.audit_logs.user_agent is 'With what.';
comment on column public.audit_logs.created_at is 'When.';
create index audit_logs_organization_id_created_at_idx on public.audit_logs (organization_id, created_at desc);
create index audit_logs_user_id_created_at_idx on public.audit_logs (user_id, created_at desc);
create index audit_logs_action_idx on public.audit_logs (action);
alter table public.audit_logs enable row level security, force row level security;

create table app.audit_logs_default partition of public.audit_logs default;
alter table app.audit_logs_default enable row level security, force row level security;

create table public.backup_logs (
  id uuid primary key default gen_random_uuid(),
  filename text not null,
  backup_type text not null check (backup_type in ('automated', 'manual')),
  status text not null check (status in ('started', 'completed', 'failed', 'interrupted')),
  size_bytes bigint check (size_bytes >= 0),
  error_message text,
  created_at timestamptz not null default now()
);
comment on table public.backup_logs is 'One row a backup, whatever became of it.';
comment on column public.backup_logs.id is 'Our id.';
comment on column public.backup_logs.filename is 'Where the store keeps it.';
comment on column public.backup_logs.backup_type is 'automated or manual.';
comment on column public.backup_logs.status is 'started, completed, failed, or interrupted by a crash.';
comment on column public.backup_logs.size_bytes is 'Size in the store, in bytes.';
comment on column public.backup_logs.error_message is 'Why it failed.';
comment on column public.backup_logs.created_at is 'When it was started.';
alter table public.backup_logs enable row level security, force row level security;
