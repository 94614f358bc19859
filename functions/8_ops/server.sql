-- The server that the database runs on, for administrators: what fills its disk, and what ends connections or writes.

-- PostgreSQL itself judges how much WAL a slot holds back: `extended` is more than max_wal_size, `unreserved` more than
-- max_slot_wal_keep_size, and `lost` is gone. SQL cannot see how large the disk is, so app.settings.disk_gb says it.
create or replace view ops.server_faults with (security_invoker) as
with slot as (
  select s.slot_name, s.active, s.wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) as held
  from pg_replication_slots as s
  where not pg_is_in_recovery()
),

disk as (
  select
    s.disk_gb, (
      select sum(pg_database_size(d.oid)) from pg_database as d
      where has_database_privilege(d.oid, 'connect') or pg_has_role('pg_read_all_stats', 'usage')
    ) + case
      when has_function_privilege('pg_ls_waldir()', 'execute')
        then (select sum(w.size) from pg_ls_waldir() as w)
      else 0
    end as used
  from app.settings as s
  where s.disk_gb is not null
),

client as (
  select
    (
      select count(*) from pg_stat_activity as a
      where a.backend_type = 'client backend'
    ) as number,
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
    - coalesce(current_setting('reserved_connections', true), '0')::integer as most
),

age as (
  select max(greatest(age(d.datfrozenxid), mxid_age(d.datminmxid))) as transactions from pg_database as d
)

select
  case when s.wal_status = 'reserved' or s.wal_status = 'extended' and s.active then 'yellow' else 'red' end as status,
  case s.wal_status
    when 'lost' then format('The replication slot %s lost WAL that its reader needs.', s.slot_name)
    else format(
      'The replication slot %s holds back %s of WAL%s.', s.slot_name, pg_size_pretty(s.held),
      case when s.active then '' else ', and nothing reads it' end
    )
  end as fault,
  format(
    'Start what reads it, or run `select pg_drop_replication_slot(%L)`: the reader then has to start with a new copy.', s.slot_name
  ) as remedy
from slot as s
where s.wal_status <> 'reserved' or not s.active and s.held > 64 * 1024 ^ 2
union all
select
  case when d.used > 0.9 * d.disk_gb * 1e9 then 'red' else 'yellow' end,
  format('The databases and the WAL take %s of a disk of %s GB.', pg_size_pretty(d.used), d.disk_gb),
  'Delete rows or enlarge the disk, then correct app.settings.disk_gb. ops.table_sizes names the largest tables.'
from disk as d
where d.used > 0.8 * d.disk_gb * 1e9
union all
select
  'red', 'New sessions are read-only, so every write fails.',
  'Hosted Supabase does this when the disk is full: enlarge the disk in the dashboard. Elsewhere reset default_transaction_read_only.'
where current_setting('default_transaction_read_only')::boolean
union all
select
  case when c.number > 0.95 * c.most then 'red' else 'yellow' end, format('%s of %s connections are in use.', c.number, c.most),
  'Find their owners in pg_stat_activity. Let clients connect through the pooler, or raise max_connections.'
from client as c
where c.number > 0.8 * c.most
union all
select
  case when a.transactions > 1500000000 then 'red' else 'yellow' end,
  format('The oldest row is %s transactions old. At 2 billion PostgreSQL stops accepting writes.', a.transactions),
  'Find out why vacuum cannot advance: old transactions, prepared transactions or replication slots. Then run `vacuum freeze`.'
from age as a
where a.transactions > 1000000000
union all
select
  'yellow', format('The index %s.%s is invalid: queries do not use it, but every write maintains it.', n.nspname, c.relname),
  format('Run `reindex index concurrently %I.%I`, or drop it.', n.nspname, c.relname)
from pg_index as i
join pg_class as c on i.indexrelid = c.oid
join pg_namespace as n on c.relnamespace = n.oid
where
  not i.indisvalid and n.nspname in ('public', 'app') and not exists (
    select from pg_stat_progress_create_index as p
    where p.index_relid = i.indexrelid
  );
comment on view ops.server_faults is
'Slots that hold back WAL, a full disk, read-only sessions, used connections, old transaction ids and invalid indexes. Empty if all is well.';

create or replace view ops.server_health with (security_invoker) as
select
  count(f.fault) as faults, coalesce((array_agg(f.status order by f.status, f.fault))[1], 'green') as status,
  coalesce((array_agg(f.fault || ' ' || f.remedy order by f.status, f.fault))[1], 'OK.')
  || case when count(f.fault) > 1 then format(' %s more in ops.server_faults.', count(f.fault) - 1) else '' end as advice
from ops.server_faults as f;
comment on view ops.server_health is 'Whether the server can go on accepting connections and writes: one row. ops.server_faults lists the faults.';
