-- Seals: a hash chain over the audit trail. Each seal is a 32-byte hash over the entries of a closed range of time and over the previous
-- seal. An administrator who keeps a copy of a seal elsewhere can later detect any entry that was changed, removed or inserted before it.

-- The hashed form of an entry depends neither on settings nor on columns that are added later.
create or replace function app.audit_hash(entry public.audit_logs) returns bytea
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(
    jsonb_build_array(
      entry.id, extract(epoch from entry.created_at), entry.organization_id, entry.user_id, entry.actor, entry.impersonator, entry.action,
      entry.resource_type, entry.resource_id, entry.metadata, entry.changes, host(entry.ip_address), entry.user_agent, entry.request_id
    )::text, 'UTF8'
  ));
$$;
comment on function app.audit_hash is 'SHA-256 of an entry.';

create or replace function app.audit_digest(
  range_start timestamptz, range_end timestamptz, out entries bigint, out erased bigint, out digest bytea
)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  -- An entry that an erasure changed counts with its original hash, if it still is exactly what the erasure left.
  select
    count(*), count(e.original),
    sha256(coalesce(string_agg(coalesce(e.original, h.hash), ''::bytea order by a.created_at, a.id), ''))
  from public.audit_logs as a
  cross join lateral (select app.audit_hash(a) as hash) as h
  left join app.audit_erasures as e on e.entry_id = a.id and e.entry_created_at = a.created_at and e.remaining = h.hash
  where a.created_at >= range_start and a.created_at < range_end;
$$;
comment on function app.audit_digest is 'Of a range: the number of entries, the number changed by an erasure, and the SHA-256 over all entries'' hashes in order.';

create or replace function app.compute_seal(
  previous bytea, range_start timestamptz, range_end timestamptz, entries bigint, digest bytea
) returns bytea
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select sha256(
    coalesce(previous, '') || digest
    || convert_to(jsonb_build_array(extract(epoch from range_start), extract(epoch from range_end), entries)::text, 'UTF8')
  );
$$;
comment on function app.compute_seal is 'The seal of a range, computed from its digest and the previous seal.';

-- An entry has the start time of its transaction, but becomes visible when the transaction ends. Therefore the trail is complete only up to
-- the start of the oldest running transaction.
create or replace function app.audit_complete_until() returns timestamptz
language sql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
  select least(now(), min(s.xact_start)) - interval '1 minute'
  from pg_stat_activity as s
  where s.datname = current_database() and s.backend_type not in ('autovacuum worker', 'walsender') and s.pid <> pg_backend_pid();
$$;
comment on function app.audit_complete_until is 'No new entry will appear before this time. Definer: only privileged roles see the transactions of other roles.';

-- Members choose how large entries are, and the job that seals them has a timeout. Entries of one transaction have the same time and cannot
-- be separated. The sort is inside, so that large values are only read up to the limit.
create or replace function app.end_seal_range(range_start timestamptz, latest timestamptz) returns timestamptz
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  entry record;
  bytes bigint := 0;
  newest timestamptz := range_start;
begin
  for entry in
    select a.created_at, octet_length(a.metadata::text) + coalesce(octet_length(a.changes::text), 0) + 300 as size
    from (
      select * from public.audit_logs as a where a.created_at >= range_start and a.created_at < latest order by a.created_at offset 0
    ) as a
  loop
    if bytes > 20000000 and entry.created_at > newest then
      return entry.created_at;
    end if;
    bytes := bytes + entry.size;
    newest := entry.created_at;
  end loop;
  return latest;
end;
$$;
comment on function app.end_seal_range is 'Where a seal ends: after about 20 MB of entries, and at the latest at the given time.';

create or replace function app.seal_audit(until timestamptz default null) returns setof app.audit_seals
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  deadline constant timestamptz := clock_timestamp() + interval '3 seconds';
  seal app.audit_seals;
  previous app.audit_seals;
  complete_until timestamptz := least(app.audit_complete_until(), until);
begin
  perform pg_advisory_xact_lock(733140618); -- one run at a time
  select * into previous from app.audit_seals as s order by s.sequence desc limit 1;
  seal.range_start := coalesce(previous.range_end, (select app.month_start(min(a.created_at)) from public.audit_logs as a));
  while seal.range_start < complete_until and clock_timestamp() < deadline loop
    seal.sequence := coalesce(previous.sequence, 0) + 1;
    seal.range_end := app.end_seal_range(seal.range_start, least(complete_until, app.next_month(seal.range_start)));
    select d.entries, d.digest into seal.entries, seal.digest from app.audit_digest(seal.range_start, seal.range_end) as d;
    seal.seal := app.compute_seal(previous.seal, seal.range_start, seal.range_end, seal.entries, seal.digest);
    seal.sealed_at := clock_timestamp();
    insert into app.audit_seals select (seal).*;
    return next seal;
    previous := seal;
    seal.range_start := seal.range_end;
  end loop;
end;
$$;
comment on function app.seal_audit is 'An hourly job: seals the entries since the last seal, as far as they are complete, for three seconds. Returns the new seals; keep a copy elsewhere.';

create or replace function app.verify_audit() returns table (
  sequence bigint, range_start timestamptz, range_end timestamptz, sealed bigint, found bigint, erased bigint, state text, seal bytea
)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  s app.audit_seals;
  previous app.audit_seals;
  current record;
begin
  for s in select * from app.audit_seals as a order by a.sequence loop
    current := app.audit_digest(s.range_start, s.range_end);
    return query select s.sequence, s.range_start, s.range_end, s.entries, current.entries, current.erased, case
      when s.sequence <> coalesce(previous.sequence, 0) + 1 or s.range_start <> coalesce(previous.range_end, s.range_start)
        or s.seal <> app.compute_seal(previous.seal, s.range_start, s.range_end, s.entries, s.digest) then 'seal broken'
      when current.digest = s.digest and current.erased > 0 then 'erased'
      when current.digest = s.digest then 'intact'
      when current.entries = 0 and exists (
        select from app.audit_interventions as i
        where i.kind = 'retention' and i.range_start <= s.range_start and i.range_end >= s.range_end
      ) then 'dropped'
      else 'broken'
    end, s.seal;
    previous := s;
  end loop;
end;
$$;
comment on function app.verify_audit is
'Recomputes each seal: intact, erased (intact except for what erasures removed), dropped (by retention), broken (the entries) or seal broken.';
