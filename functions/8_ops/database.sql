-- Table sizes and slow queries, for administrators in the SQL editor.

create or replace view ops.slow_queries with (security_invoker) as
select * from app.slow_queries();
comment on view ops.slow_queries is
'Queries with the largest total time since the statistics were reset. If it is empty, install pg_stat_statements: create extension pg_stat_statements schema extensions.';

create or replace view ops.table_sizes with (security_invoker) as
select
  n.nspname::text as schema, c.relname::text as relation, pg_size_pretty(size.total) as size, size.total as total_bytes,
  size.heap as table_bytes, size.indexes as index_bytes, size.total - size.heap - size.indexes as toast_bytes, size.live as rows,
  size.dead as dead_rows, size.partitions, size.last_vacuum_at, size.last_analyze_at
from pg_class as c
join pg_namespace as n on c.relnamespace = n.oid
cross join
  lateral (
    select
      sum(pg_total_relation_size(leaf.oid))::bigint as total, sum(pg_relation_size(leaf.oid))::bigint as heap,
      sum(pg_indexes_size(leaf.oid))::bigint as indexes, coalesce(sum(s.n_live_tup), 0)::bigint as live,
      coalesce(sum(s.n_dead_tup), 0)::bigint as dead, case c.relkind when 'p' then count(*) end as partitions,
      max(greatest(s.last_vacuum, s.last_autovacuum)) as last_vacuum_at,
      max(greatest(s.last_analyze, s.last_autoanalyze)) as last_analyze_at
    from (
      select c.oid
      where c.relkind = 'r'
      union all
      select t.relid from pg_partition_tree(c.oid) as t
      where c.relkind = 'p' and t.isleaf and t.relid <> c.oid
    ) as leaf
    left join pg_stat_user_tables as s on leaf.oid = s.relid
  ) as size
where c.relkind in ('r', 'p') and not c.relispartition and n.nspname in ('public', 'app', 'realtime')
order by size.total desc nulls last, n.nspname asc, c.relname asc;
comment on view ops.table_sizes is 'The size of each table with its indexes and partitions, and its live and dead rows (estimates).';
