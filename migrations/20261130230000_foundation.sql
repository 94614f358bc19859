-- Closed by default: no API role can reach what the migrations create until policies/ or functions/ grants it.

-- Supabase grants everything on new objects in public to these three roles by name, so revoking from PUBLIC would change nothing.
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;

-- By default PostgreSQL lets every role execute a new function. This statement names no schema, so it applies in all of ours.
alter default privileges revoke execute on functions from public;

create schema app;
comment on schema app is 'Private: helpers, inbox, registries. Never exposed by the Data API.';

create schema ops;
comment on schema ops is 'For administrators, in the SQL editor: views that answer one question each.';

-- Policies call functions in app as the caller, and the service calls the Clerk sync. Neither role has privileges on tables there.
grant usage on schema app to authenticated, service_role;

-- `ballast migrate up` compares these checksums with the files and applies only what changed.
create table app.applied_sources (
  path text primary key,
  checksum text not null,
  applied_at timestamptz not null default now()
);
comment on table app.applied_sources is 'Files of functions/ and policies/ as they were last applied.';
comment on column app.applied_sources.path is 'Path in the repository, such as policies/projects.sql.';
comment on column app.applied_sources.checksum is 'SHA-256 of the file, in hexadecimal.';
comment on column app.applied_sources.applied_at is 'When this version was applied.';
alter table app.applied_sources enable row level security, force row level security;

-- ops.structure_health compares the database with these records.
create table app.recorded_objects (
  kind text not null,
  name text not null,
  hash text not null,
  postgres_major integer not null,
  recorded_at timestamptz not null default now(),
  primary key (kind, name)
);
comment on table app.recorded_objects is 'Tables, constraints, functions and other objects as files made them.';
comment on column app.recorded_objects.kind is 'Such as table, constraint or function.';
comment on column app.recorded_objects.name is 'Such as public.projects, or projects_pkey on public.projects.';
comment on column app.recorded_objects.hash is 'MD5 of the definition in the catalogue.';
comment on column app.recorded_objects.postgres_major is 'Major version of the server. On another one the same definition has another hash.';
comment on column app.recorded_objects.recorded_at is 'When a file created or last changed it.';
alter table app.recorded_objects enable row level security, force row level security;

-- Choices of the installation, not of a tenant.
create table app.settings (
  only_row boolean primary key default true check (only_row),
  clerk_instance_id text,
  mfa_required boolean not null default true,
  audit_retention interval not null default '400 days' check (audit_retention >= interval '31 days'),
  erasure_salt bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) check (length(erasure_salt) >= 32),
  backup_rpo interval not null default '24 hours' check (backup_rpo > interval '0'),
  drill_every interval not null default '7 days' check (drill_every > interval '0'),
  mail_enabled boolean not null default false,
  losses_acknowledged_at timestamptz,
  disk_gb numeric check (disk_gb > 0),
  operator_email text check (operator_email ~ '^[^@\s]+@[^@\s]+\.[^@\s]+$' and length(operator_email) <= 320)
);
comment on table app.settings is 'One row: the choices of this installation. Change it in the SQL editor.';
comment on column app.settings.only_row is 'Always true: there is one row.';
comment on column app.settings.clerk_instance_id is 'The Clerk instance whose events are accepted. Null accepts events of any instance, and events without one.';
comment on column app.settings.mfa_required is 'Whether a new organization requires the second factor that public.roles asks of a role.';
comment on column app.settings.audit_retention is 'How long audit entries are kept. A month is dropped once all its entries are older.';
comment on column app.settings.erasure_salt is 'Salt of the hashes of erased people, and of the people named in the audit trail. Never change it: erased people could come back.';
comment on column app.settings.backup_rpo is 'Largest accepted age of the last backup: the most data that can be lost. ops.backup_health reports an older one.';
comment on column app.settings.drill_every is 'How often a backup must be restored to prove it. ops.backup_health turns yellow a day later.';
comment on column app.settings.mail_enabled is 'Whether mail is queued and sent. Off until the service has a Resend key.';
comment on column app.settings.losses_acknowledged_at is
'Lost audit entries and broadcasts up to this time are known: ops.audit_health and ops.realtime_health stop reporting them.';
comment on column app.settings.disk_gb is
'Size of the disk of the database server in GB, as its dashboard shows it. Null: no light shows how full the disk is.';
comment on column app.settings.operator_email is 'Receives the reports of failed backups, drills and webhooks. Null: no such mail is sent.';
alter table app.settings enable row level security, force row level security;
insert into app.settings default values;
