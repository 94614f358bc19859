-- Seals: a hash chain over the audit trail. Each seal is a 32-byte hash over the entries of a closed range of time and over the previous
-- seal. The seals are also stored next to the backups, where a database administrator cannot write. `ballast audit verify` compares them.
-- It computes all hashes itself (scripts/health/audit_trail.sql), because an administrator can also replace the functions here.

-- The hashed form of an entry depends neither on settings nor on columns that are added later.
create or replace function app.audit_hash(entry public.audit_logs) returns bytea
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(
    jsonb_build_array(
      entry.id, extract(epoch from entry.created_at), entry.organization_id, entry.user_id, entry.actor, entry.impersonator, entry.action,
      entry.resource_type, entry.resource_id, entry.metadata, entry.changes, host(entry.ip_address), entry.user_agent, entry.request_id,
      entry.subject_ids, entry.mentions
    )::text, 'UTF8'
  ));
$$;
comment on function app.audit_hash is 'SHA-256 of an entry.';

-- An entry that erasures changed counts with its hash before the first of them: the one that none of the others left. Clocks may step back,
-- so the times of the erasures do not give their order.
create or replace function app.audit_digest(range_start timestamptz, range_end timestamptz, out entries bigint, out digest bytea)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  with changed as materialized (
    select
      e.entry_id, e.entry_created_at, e.original,
      e.original <> all(array_agg(e.remaining) over (partition by e.entry_id, e.entry_created_at)) as is_first
    from app.audit_erasures as e
    join app.audit_interventions as i on i.id = e.intervention_id
    where e.entry_created_at >= audit_digest.range_start and e.entry_created_at < audit_digest.range_end and i.happened_at is not null
  )
  select count(*), sha256(coalesce(string_agg(coalesce(c.original, app.audit_hash(a)), ''::bytea order by a.created_at, a.id), ''))
  from public.audit_logs as a
  left join changed as c on c.entry_id = a.id and c.entry_created_at = a.created_at and c.is_first
  where a.created_at >= audit_digest.range_start and a.created_at < audit_digest.range_end;
$$;
comment on function app.audit_digest is 'Of a range: the number of entries, and the SHA-256 over all entries'' hashes in order.';

create or replace function app.intervention_digest(intervention app.audit_interventions) returns bytea
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(
    jsonb_build_array(
      intervention.id, intervention.kind, intervention.erasure, extract(epoch from intervention.range_start),
      extract(epoch from intervention.range_end), intervention.entries, extract(epoch from intervention.retention),
      extract(epoch from intervention.planned_at), encode(intervention.contents, 'hex')
    )::text, 'UTF8'
  ));
$$;
comment on function app.intervention_digest is 'SHA-256 of a planned intervention: the name of its receipt.';

create or replace function app.compute_seal(previous bytea, seal app.audit_seals) returns bytea
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select sha256(
    coalesce(previous, '') || seal.digest || seal.interventions
    || convert_to(
      jsonb_build_array(
        extract(epoch from seal.range_start), extract(epoch from seal.range_end), seal.entries, extract(epoch from seal.retention)
      )::text, 'UTF8'
    )
  );
$$;
comment on function app.compute_seal is 'The seal of a range, computed from its other columns and the previous seal.';

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
  covered uuid[];
begin
  perform pg_advisory_xact_lock(733140618); -- one run at a time
  select * into previous from app.audit_seals as s order by s.sequence desc limit 1;
  seal.range_start := coalesce(previous.range_end, (select app.month_start(min(a.created_at)) from public.audit_logs as a));
  while seal.range_start < complete_until and clock_timestamp() < deadline loop
    seal.sequence := coalesce(previous.sequence, 0) + 1;
    seal.range_end := app.end_seal_range(seal.range_start, least(complete_until, app.next_month(seal.range_start)));
    select d.entries, d.digest into seal.entries, seal.digest from app.audit_digest(seal.range_start, seal.range_end) as d;
    covered := array(select i.id from app.audit_interventions as i where i.happened_at is not null and i.sealed_by is null);
    seal.interventions := (
      select sha256(coalesce(string_agg(app.intervention_digest(i) || timestamptz_send(i.happened_at), ''::bytea order by i.id), ''))
      from app.audit_interventions as i where i.id = any(covered)
    );
    seal.retention := (select s.audit_retention from app.settings as s);
    seal.seal := app.compute_seal(previous.seal, seal);
    seal.sealed_at := clock_timestamp();
    insert into app.audit_seals select (seal).*;
    update app.audit_interventions as i set sealed_by = seal.sequence where i.id = any(covered);
    return next seal;
    previous := seal;
    seal.range_start := seal.range_end;
  end loop;
end;
$$;
comment on function app.seal_audit is
'An hourly job: seals the entries since the last seal, as far as they are complete, and the interventions since then, for three seconds. Returns the new seals.';

create or replace function app.seals_after(newest bigint, seal text) returns jsonb
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    jsonb_agg(
      to_jsonb(s) || jsonb_build_object(
        'seal', encode(s.seal, 'hex'), 'digest', encode(s.digest, 'hex'), 'interventions', encode(s.interventions, 'hex')
      ) order by s.sequence
    ), '[]'
  )
  from (select a.* from app.audit_seals as a where a.sequence > seals_after.newest order by a.sequence limit 1000) as s
  having seals_after.seal is null
    or exists (select from app.audit_seals as a where a.sequence = seals_after.newest and encode(a.seal, 'hex') = seals_after.seal);
$$;
comment on function app.seals_after is
'Up to 1,000 seals after the given one, oldest first; null if the chain does not contain that one. A null seal is not checked.';
