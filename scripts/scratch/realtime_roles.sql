-- Creates the role of Supabase Realtime. Runs as the superuser at each start of the server. Every statement may run again.

do $$
begin
  if not exists (select from pg_roles where rolname = 'supabase_realtime_admin') then
    create role supabase_realtime_admin nologin noinherit createrole replication;
  end if;
end;
$$;
-- supabase_realtime_admin owns the messages. postgres was its member in projects older than July 2026; in newer ones it is not.
revoke supabase_realtime_admin from postgres;
grant anon, authenticated, service_role to supabase_realtime_admin;
