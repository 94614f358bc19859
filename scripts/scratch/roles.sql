-- Creates the roles of hosted Supabase in a new server.
-- This file runs once, as the superuser supabase_admin, in the database postgres. scripts/scratch/postgres.py sets the passwords.

-- postgres is powerful on hosted Supabase, but not a superuser. So a migration that works here works there.
create role postgres login createrole createdb replication bypassrls;
create role anon nologin;
create role authenticated nologin;
create role service_role nologin bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
-- Hosted Supabase grants the same, but its library supautils forbids a part of it: docs/local-stack.md describes the difference.
grant anon, authenticated, service_role, authenticator to postgres with admin option;
grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;

-- The Data API logs in as authenticator and switches to one of the three roles. The timeouts end runaway queries.
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
-- On Supabase postgres may configure PostgREST: docs/limits.md switches on the limits of the Data API with it.
grant set on parameter pgrst.db_pre_request to postgres;
alter role authenticator set lock_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;

alter database postgres owner to postgres;
-- A role with a grant cannot be dropped, so this keeps postgres from dropping authenticator, which hosted Supabase refuses.
grant connect on database postgres to authenticator;
