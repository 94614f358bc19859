-- The publication that Postgres Changes reads. Hosted projects have it already, sometimes with tables in it.
do $$
begin
  if not exists (select from pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
  end if;
end;
$$;
