-- Replaces a part of supautils, a library of hosted Supabase: postgres may create extensions and publications as a superuser may.
-- Runs as the superuser at each start of the server, and not on Supabase's image, which has the library. Every statement may run again.
-- While such a statement runs, postgres is a superuser. Other sessions never see that, because the change is undone in the transaction.
create or replace function extensions.lend_superuser() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  refused text;
begin
  if 'postgres' not in (session_user, current_setting('role')) then
    return;
  end if;
  if tg_event = 'ddl_command_end' then
    -- The setting supautils.privileged_extensions of hosted Supabase, and those that need no superuser anyway.
    select e.extname into refused
    from pg_extension as e
    where e.extowner = 'postgres'::regrole and e.extname <> all(array[
        'address_standardizer', 'address_standardizer_data_us', 'autoinc', 'bloom', 'btree_gin', 'btree_gist', 'citext', 'cube', 'dblink',
        'dict_int', 'dict_xsyn', 'earthdistance', 'fuzzystrmatch', 'hstore', 'http', 'hypopg', 'index_advisor', 'insert_username',
        'intarray', 'isn', 'ltree', 'moddatetime', 'orioledb', 'pg_buffercache', 'pg_cron', 'pg_graphql', 'pg_hashids', 'pg_jsonschema',
        'pg_net', 'pg_prewarm', 'pg_repack', 'pg_stat_monitor', 'pg_stat_statements', 'pg_tle', 'pg_trgm', 'pg_walinspect', 'pgaudit',
        'pgcrypto', 'pgjwt', 'pgroonga', 'pgroonga_database', 'pgrouting', 'pgrowlocks', 'pgsodium', 'pgstattuple', 'pgtap', 'plcoffee',
        'pljava', 'plls', 'plpgsql_check', 'plv8', 'postgis', 'postgis_raster', 'postgis_sfcgal', 'postgis_tiger_geocoder',
        'postgis_topology', 'postgres_fdw', 'refint', 'rum', 'seg', 'sslinfo', 'supabase_vault', 'supautils', 'tablefunc', 'tcn',
        'timescaledb', 'tsm_system_rows', 'tsm_system_time', 'unaccent', 'uuid-ossp', 'vector', 'wrappers'
      ])
      and not exists (
        select from pg_available_extension_versions as v where v.name = e.extname and v.version = e.extversion and (v.trusted or not v.superuser)
      )
    limit 1;
    if refused is not null then
      raise exception 'permission denied to create extension "%"', refused
        using errcode = 'insufficient_privilege', hint = 'Hosted Supabase does not allow it either.';
    end if;
  end if;
  update pg_authid set rolsuper = tg_event = 'ddl_command_start' where rolname = 'postgres';
end;
$$;
drop event trigger if exists lend_superuser;
create event trigger lend_superuser on ddl_command_start when tag in ('CREATE EXTENSION', 'CREATE PUBLICATION')
execute function extensions.lend_superuser();
drop event trigger if exists take_superuser_back;
create event trigger take_superuser_back on ddl_command_end when tag in ('CREATE EXTENSION', 'CREATE PUBLICATION')
execute function extensions.lend_superuser();
