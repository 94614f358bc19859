-- Creates what a database of hosted Supabase has before the first migration: its schemas, extensions and default privileges.
-- This file runs once per database, as a superuser, after roles.sql.

-- postgres may create objects in public because it owns the database, not by a grant.
alter schema public owner to pg_database_owner;
grant usage on schema public to postgres, anon, authenticated, service_role;

create schema extensions authorization postgres;
grant usage on schema extensions to anon, authenticated, service_role;
-- The extensions of a new project that this server has. supabase_vault and pg_graphql exist only on Supabase.
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

-- Owned by the superuser, as on hosted Supabase. uid() raises an error for a Clerk id, so no function here may call it.
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

-- Makes the Data API reload its schema cache after each DDL statement.
create function extensions.pgrst_ddl_watch() returns event_trigger language plpgsql
as $$ begin notify pgrst, 'reload schema'; end $$;
create event trigger pgrst_ddl_watch on ddl_command_end execute function extensions.pgrst_ddl_watch();
create event trigger pgrst_drop_watch on sql_drop execute function extensions.pgrst_ddl_watch();

-- Hosted Supabase grants all privileges on new objects in public to the three roles. The first migration revokes them for the objects
-- of this project.
alter default privileges for role postgres, current_user in schema public
grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres, current_user in schema public
grant all on sequences to postgres, anon, authenticated, service_role;
alter default privileges for role postgres, current_user in schema public
grant all on functions to postgres, anon, authenticated, service_role;
