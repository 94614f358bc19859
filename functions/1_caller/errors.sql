-- Errors that triggers handle: which of them fail the write, and a count of what was lost because of the others.

create or replace function app.is_transient(error text) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select error ~ '^(40|53|55|57|58)';
$$;
comment on function app.is_transient is
'Whether an SQLSTATE means temporary trouble of the server: conflicts, a full disk or memory, locks, a shutdown, I/O. The same row may succeed later.';

-- A backend never waits here, because no other one writes its rows: the key has its process id.
create or replace function app.record_loss(kind text, relation regclass, error text, lost bigint) returns void
language sql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
  insert into app.lost_records as l (kind, relation, error, backend, day, lost)
  values (
    record_loss.kind, record_loss.relation::text, record_loss.error, pg_backend_pid(), (now() at time zone 'UTC')::date, record_loss.lost
  )
  on conflict on constraint lost_records_pkey do update set lost = l.lost + excluded.lost, last_at = excluded.last_at;
$$;
comment on function app.record_loss is 'Counts rows whose audit entries or broadcasts were lost because of an error. Does not wait for other writers.';

create or replace function app.count_losses(kind text, out lost bigint, out last_lost_at timestamptz, out relation text, out error text)
language sql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(sum(r.lost), 0)::bigint, max(r.last_at), (array_agg(r.relation order by r.last_at desc))[1], (array_agg(r.error order by r.last_at desc))[1]
  from app.lost_records as r
  cross join app.settings as s
  where r.kind = count_losses.kind and r.last_at > greatest(now() - interval '7 days', s.losses_acknowledged_at);
$$;
comment on function app.count_losses is
'Rows of the last 7 days whose audit entry or broadcast was lost and not acknowledged: how many, and the last one''s time, table and SQLSTATE.';
