-- Recomputes the hashes of the audit trail, for `ballast audit verify`: one JSON object, with the members of Trail in audit_trail.py.
-- It uses only tables and built-in functions: an administrator who changes entries can also replace the functions that make seals
-- (functions/3_audit/seals.sql). It reads each entry once.
-- proven: in hex, the digests of the interventions whose receipts are stored outside or were accepted.
with contents as materialized (
  select
    e.intervention_id, count(*) as entries,
    sha256(string_agg(
      uuid_send(e.entry_id) || timestamptz_send(e.entry_created_at) || e.original || e.remaining, ''::bytea
      order by e.entry_created_at, e.entry_id
    )) as digest
  from app.audit_erasures as e
  group by e.intervention_id
),

interventions as materialized (
  select
    i.*, d.digest, encode(d.digest, 'hex') = any(%(proven)s::text[]) as is_proven,
    case i.kind
      when 'erasure' then (c.entries, c.digest) is not distinct from (i.entries, i.contents)
      else i.contents = (
        select sha256(coalesce(string_agg(s.seal, ''::bytea order by s.sequence), ''))
        from app.audit_seals as s where s.range_start >= i.range_start and s.range_end <= i.range_end
      )
    end as is_consistent
  from app.audit_interventions as i
  cross join lateral (
    select sha256(convert_to(
      jsonb_build_array(
        i.id, i.kind, i.erasure, extract(epoch from i.range_start), extract(epoch from i.range_end), i.entries,
        extract(epoch from i.retention), extract(epoch from i.planned_at), encode(i.contents, 'hex')
      )::text, 'UTF8'
    )) as digest
  ) as d
  left join contents as c on c.intervention_id = i.id
  where i.happened_at is not null
),

-- Each erasure of an entry must begin with what another one left, except for one, the first. So they form a chain. Their times do not give
-- its order, because clocks may step back.
erased as materialized (
  select
    e.entry_id, e.entry_created_at, bool_and(e.is_proven) as is_proven,
    bool_and(e.is_consistent) and count(*) filter (where e.is_first) = 1 and count(*) filter (where e.is_last) = 1 as is_linked,
    (array_agg(e.original) filter (where e.is_first))[1] as original,
    (array_agg(e.remaining) filter (where e.is_last))[1] as remaining
  from (
    select
      e.*, i.is_proven, i.is_consistent,
      e.original <> all(array_agg(e.remaining) over entry) as is_first, e.remaining <> all(array_agg(e.original) over entry) as is_last
    from app.audit_erasures as e
    join interventions as i on i.id = e.intervention_id
    window entry as (partition by e.entry_id, e.entry_created_at)
  ) as e
  group by e.entry_id, e.entry_created_at
),

seals as materialized (
  select
    s.*, row_number() over w as place,
    s.sequence = coalesce(lag(s.sequence) over w, 0) + 1 and s.range_start = coalesce(lag(s.range_end) over w, s.range_start)
    and s.seal = sha256(
      coalesce(lag(s.seal) over w, '') || s.digest || s.interventions
      || convert_to(
        jsonb_build_array(
          extract(epoch from s.range_start), extract(epoch from s.range_end), s.entries, extract(epoch from s.retention)
        )::text, 'UTF8'
      )
    ) as is_chained,
    s.interventions = (
      select sha256(coalesce(string_agg(i.digest || timestamptz_send(i.happened_at), ''::bytea order by i.id), ''))
      from interventions as i where i.sealed_by = s.sequence
    ) as has_records
  from app.audit_seals as s
  window w as (order by s.sequence)
),

-- place is the seal's, 0 for entries before the first range, -1 for those after the last one, and -2 for those between two ranges.
found as materialized (
  select
    p.place, count(*) as entries, count(e.original) as erased, count(*) filter (where not e.is_proven) as unproven,
    sha256(coalesce(
      string_agg(coalesce(e.original, h.hash), ''::bytea order by a.created_at, a.id) filter (where p.place > 0), ''
    )) as digest
  from public.audit_logs as a
  cross join (
    select array_agg(s.range_start order by s.place) as starts, array_agg(s.range_end order by s.place) as ends, max(s.range_end) as last
    from seals as s
  ) as b
  cross join lateral (
    select case when b.last is null or a.created_at >= b.last then -1 else width_bucket(a.created_at, b.starts) end as place
  ) as w
  cross join lateral (select case when w.place > 0 and a.created_at >= b.ends[w.place] then -2 else w.place end as place) as p
  cross join lateral (
    select sha256(convert_to(
      jsonb_build_array(
        a.id, extract(epoch from a.created_at), a.organization_id, a.user_id, a.actor, a.impersonator, a.action, a.resource_type,
        a.resource_id, a.metadata, a.changes, host(a.ip_address), a.user_agent, a.request_id, a.subject_ids, a.mentions
      )::text, 'UTF8'
    )) as hash
  ) as h
  left join erased as e
    on e.entry_id = a.id and e.entry_created_at = a.created_at and e.is_linked and e.remaining = h.hash
  group by p.place
),

ranges as (
  select
    s.sequence, s.range_start, s.range_end, s.entries as sealed, coalesce(f.entries, 0) as found, coalesce(f.erased, 0) as erased,
    extract(epoch from s.retention) / 86400 as retention_days, encode(s.seal, 'hex') as seal,
    case
      when not s.is_chained then 'seal broken'
      when not s.has_records then 'records broken'
      when s.digest = coalesce(f.digest, sha256('')) then
        case when f.unproven > 0 then 'unproven' when f.erased > 0 then 'erased' else 'intact' end
      when f.entries is null and d.is_proven is not null then case when d.is_proven then 'dropped' else 'unproven' end
      else 'broken'
    end as state
  from seals as s
  left join found as f on f.place = s.place
  cross join lateral (
    select bool_or(i.is_proven) as is_proven from interventions as i
    where i.kind = 'retention' and i.is_consistent and i.range_start <= s.range_start and i.range_end >= s.range_end
  ) as d
)

select jsonb_build_object(
  'ranges', (select coalesce(jsonb_agg(to_jsonb(r) order by r.sequence), '[]') from ranges as r),
  'interventions', (
    select coalesce(
      jsonb_agg(
        jsonb_build_object(
          'digest', encode(i.digest, 'hex'), 'kind', i.kind, 'erasure', i.erasure, 'range_start', i.range_start, 'range_end', i.range_end,
          'entries', i.entries, 'retention_days', extract(epoch from i.retention) / 86400, 'happened_at', i.happened_at,
          'is_consistent', i.is_consistent, 'is_proven', i.is_proven
        ) order by i.happened_at, i.id
      ), '[]'
    )
    from interventions as i
  ),
  'unsealed', (select coalesce(sum(f.entries), 0) from found as f where f.place = -1),
  'too_old', (select coalesce(sum(f.entries), 0) from found as f where f.place = 0),
  'replaced', (
    select coalesce(jsonb_agg(t.name order by t.name), '[]')
    from unnest('{public.audit_logs,app.audit_seals,app.audit_interventions,app.audit_erasures}'::text[]) as t (name)
    join pg_class as c on c.oid = to_regclass(t.name)
    where c.relkind not in ('r', 'p') or row_security_active(c.oid)
  )
)
