-- What hosted Supabase has before any migration of ours runs: its roles, schemas and default privileges.
-- Run once, as the superuser supabase_admin, in the database postgres. Passwords are set by scripts/scratch/postgres.py.

-- postgres is powerful on hosted Supabase, but no superuser: what works here works there.
create role postgres login createrole createdb replication bypassrls;
create role anon nologin;
create role authenticated nologin;
create role service_role nologin bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
-- Hosted Supabase gives the same, and its library supautils refuses part of what it allows: docs/local-stack.md has the difference.
grant anon, authenticated, service_role, authenticator to postgres with admin option;
grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;

-- The Data API logs in as authenticator and becomes one of the three roles; a runaway query ends by itself.
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
-- Supabase lets postgres configure PostgREST: docs/limits.md switches on the limits of the Data API.
grant set on parameter pgrst.db_pre_request to postgres;
alter role authenticator set lock_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;

alter database postgres owner to postgres;
-- A role with a grant cannot be dropped.
grant connect on database postgres to authenticator;
-- postgres may create in public as the owner of the database, and not by a grant.
alter schema public owner to pg_database_owner;
grant usage on schema public to postgres, anon, authenticated, service_role;

create schema extensions authorization postgres;
grant usage on schema extensions to anon, authenticated, service_role;
-- The extensions of a new project, as far as this server has them. supabase_vault and pg_graphql are Supabase's alone.
do $$
declare
  extension name;
begin
  for extension in
    select name from pg_available_extensions where name in ('uuid-ossp', 'pgcrypto', 'pg_stat_statements') order by name
  loop
    execute format('create extension %I schema extensions', extension);
  end loop;
end;
$$;

-- Owned by the superuser, as on hosted Supabase; uid() raises on a Clerk id, so nothing of ours calls it.
create schema auth;
grant usage on schema auth to anon, authenticated, service_role, postgres;
create function auth.jwt() returns jsonb language sql stable
as $$ select coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}')::jsonb $$;
create function auth.uid() returns uuid language sql stable
as $$ select (auth.jwt() ->> 'sub')::uuid $$;
create function auth.role() returns text language sql stable
as $$ select auth.jwt() ->> 'role' $$;
create function auth.email() returns text language sql stable
as $$ select auth.jwt() ->> 'email' $$;

-- The Data API forgets what it knew of the tables whenever a statement changes them.
create function extensions.pgrst_ddl_watch() returns event_trigger language plpgsql
as $$ begin notify pgrst, 'reload schema'; end $$;
create event trigger pgrst_ddl_watch on ddl_command_end execute function extensions.pgrst_ddl_watch();
create event trigger pgrst_drop_watch on sql_drop execute function extensions.pgrst_ddl_watch();

-- Hosted Supabase grants everything on new objects in public to the three roles. Our first migration takes back what concerns ours.
alter default privileges for role postgres, supabase_admin in schema public
grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres, supabase_admin in schema public
grant all on sequences to postgres, anon, authenticated, service_role;
alter default privileges for role postgres, supabase_admin in schema public
grant all on functions to postgres, anon, authenticated, service_role;
