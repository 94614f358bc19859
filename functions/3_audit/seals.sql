-- Seals: what the audit trail held in each closed range of time, condensed into 32 bytes that are chained to the seal before. Whoever
-- keeps a seal elsewhere can prove later that nothing before it was changed, removed or put in.

-- What an entry says, in a form that does not depend on settings or on columns to come.
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
  -- An entry that an erasure changed counts as it was, if it is what the erasure left.
  select
    count(*), count(e.original),
    sha256(coalesce(string_agg(coalesce(e.original, h.hash), ''::bytea order by a.created_at, a.id), ''))
  from public.audit_logs as a
  cross join lateral (select app.audit_hash(a) as hash) as h
  left join app.audit_erasures as e on e.entry_id = a.id and e.entry_created_at = a.created_at and e.remaining = h.hash
  where a.created_at >= range_start and a.created_at < range_end;
$$;
comment on function app.audit_digest is 'How many entries the range holds, how many of them lost their person, and SHA-256 over the SHA-256 of each in order.';

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
comment on function app.compute_seal is 'The seal over a range, given the seal before it.';

-- An entry has the time at which its transaction began, and can be seen when it ends: only what began before the oldest transaction
-- that runs is complete.
create or replace function app.audit_complete_until() returns timestamptz
language sql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
  select least(now(), min(s.xact_start)) - interval '1 minute'
  from pg_stat_activity as s
  where s.datname = current_database() and s.backend_type not in ('autovacuum worker', 'walsender') and s.pid <> pg_backend_pid();
$$;
comment on function app.audit_complete_until is 'Before this moment no entry will appear any more. Definer: others'' transactions are not for everybody to see.';

create or replace function app.seal_audit(until timestamptz default null) returns setof app.audit_seals
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  seal app.audit_seals;
  previous app.audit_seals;
  complete_until timestamptz := least(app.audit_complete_until(), until);
begin
  perform pg_advisory_xact_lock(733140618); -- one at a time
  select * into previous from app.audit_seals as s order by s.sequence desc limit 1;
  seal.range_start := coalesce(previous.range_end, (select app.month_start(min(a.created_at)) from public.audit_logs as a));
  while seal.range_start < complete_until loop
    seal.sequence := coalesce(previous.sequence, 0) + 1;
    seal.range_end := least(complete_until, app.next_month(seal.range_start));
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
comment on function app.seal_audit is 'A job, hourly: seals what is complete since the last seal. Returns the new seals: keep a copy elsewhere.';

create or replace function app.verify_audit() returns table (
  sequence bigint, range_start timestamptz, range_end timestamptz, sealed bigint, found bigint, erased bigint, state text, seal bytea
)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  s app.audit_seals;
  previous app.audit_seals;
  now_ record;
begin
  for s in select * from app.audit_seals as a order by a.sequence loop
    now_ := app.audit_digest(s.range_start, s.range_end);
    return query select s.sequence, s.range_start, s.range_end, s.entries, now_.entries, now_.erased, case
      when s.sequence <> coalesce(previous.sequence, 0) + 1 or s.range_start <> coalesce(previous.range_end, s.range_start)
        or s.seal <> app.compute_seal(previous.seal, s.range_start, s.range_end, s.entries, s.digest) then 'seal broken'
      when now_.digest = s.digest and now_.erased > 0 then 'erased'
      when now_.digest = s.digest then 'intact'
      when now_.entries = 0 and exists (
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
'Recomputes every seal: intact, erased (intact but for persons that an erasure took), dropped (by retention), broken (entries) or seal broken.';
