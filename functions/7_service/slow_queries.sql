-- Query statistics for ops.slow_queries.

-- A function, not a view on the extension's view: the extension may be dropped, and a restored database may not have it.
create or replace function app.slow_queries() returns table (
  query text, calls bigint, total interval, mean_ms numeric, max_ms numeric, rows_per_call numeric, cached_percent numeric, role text
)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  statistics text := (
    select format('%I.pg_stat_statements', n.nspname)
    from pg_extension as e
    join pg_namespace as n on n.oid = e.extnamespace
    where e.extname = 'pg_stat_statements'
  );
begin
  if statistics is null then
    return;
  end if;
  return query execute format(
    $query$
      select
        left(regexp_replace(s.query, '\s+', ' ', 'g'), 500), s.calls, make_interval(secs => s.total_exec_time / 1000),
        round(s.mean_exec_time::numeric, 2), round(s.max_exec_time::numeric, 2), round(s.rows::numeric / nullif(s.calls, 0), 1),
        round(100.0 * s.shared_blks_hit / nullif(s.shared_blks_hit + s.shared_blks_read, 0), 1), pg_get_userbyid(s.userid)::text
      from %s as s
      where s.dbid = (select d.oid from pg_database as d where d.datname = current_database())
      order by s.total_exec_time desc
      limit 100
    $query$, statistics
  );
exception when object_not_in_prerequisite_state then
  return; -- the extension is installed, but the server was started without its library
end;
$$;
comment on function app.slow_queries is 'Queries in pg_stat_statements, largest total time first. No rows if the extension is not installed. Used by ops.slow_queries.';
