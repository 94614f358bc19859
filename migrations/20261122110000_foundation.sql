-- Closed by default: what this file leaves behind can be reached by nobody until policies/ grants it.

-- Supabase grants everything on new objects in public to these three roles by name; revoking from PUBLIC would change nothing.
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;

-- PostgreSQL lets everybody run a new function. This default has no schema, so it holds in all of ours.
alter default privileges revoke execute on functions from public;

create schema app;
comment on schema app is 'Private: helpers, inbox, registries. Never exposed by the Data API.';

create schema ops;
comment on schema ops is 'For administrators, in the SQL editor: views that answer one question each.';

-- Policies call helpers in app as the caller; the service calls the sync. Neither may touch a table there.
grant usage on schema app to authenticated, service_role;

-- What `ballast migrate up` applied from functions/ and policies/, so that only changed files are applied again.
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

-- The few choices that belong to the installation and not to a tenant.
create table app.settings (
  only_row boolean primary key default true check (only_row),
  mfa_required boolean not null default true,
  clerk_instance_id text
);
comment on table app.settings is 'One row: the installation''s choices. Change it in the SQL editor.';
comment on column app.settings.only_row is 'Always true: there is one row.';
comment on column app.settings.mfa_required is 'Whether a new organization asks its owners and admins for a second factor.';
comment on column app.settings.clerk_instance_id is 'The Clerk instance whose events count. Null accepts any instance.';
alter table app.settings enable row level security, force row level security;
insert into app.settings default values;
