-- Access and portability: exports the data about a person in pages, so that neither the database nor the service holds it all at once.
--
-- Example: app.export_query() builds one query per domain from app.personal_data. The rule of domain 'activity' has relation
-- public.audit_logs, subject 't.user_id = person.id', made_at 't.created_at', ordered_by '{created_at,id}', and (shortened) exported
-- '{t.id,t.action}'. The query for every page but the first is:
--
--   select row_to_json(x)::text as line, jsonb_build_array(t.created_at, t.id) as key
--   from (
--     select t.*
--     from public.audit_logs as t
--     cross join (select ($1).*) as person
--     where (t.user_id = person.id) and t.created_at <= $2
--       and (t.created_at, t.id) > (($3 ->> 0)::timestamp with time zone, ($3 ->> 1)::uuid)
--       and t.created_at >= ($3 ->> 0)::timestamp with time zone
--     order by t.created_at, t.id
--     limit $4
--   ) as t
--   cross join (select ($1).*) as person
--   cross join lateral (select t.id, t.action) as x
--
-- With $4 = 2 and the previous key $3 = ["2026-11-30T08:15:00+00:00", "4f0…"] it returns the next two rows and their keys:
--   {"id":"51a…","action":"project.created"}   ["2026-11-30T09:12:00+00:00", "1c8…"]
--   {"id":"6d2…","action":"project.deleted"}   ["2026-11-30T09:40:00+00:00", "6d2…"]
-- public.export_page() reads the rows one at a time, because they may be large, and stops at 2 MB. The next page begins after the last key.
-- A page that ends before $4 rows and before 2 MB is the last one of its domain: its key is null.

-- What a person logged may name others. Whether these have an account makes no difference, because an export must not show it. A large
-- object is left out, so that a page of them does not take too long.
create or replace function app.leave_out_others(value jsonb, person app.person) returns jsonb
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(e.key, e.value) filter (
    where not exists (
      select from unnest(app.find_identifiers(concat(to_json(e.key), e.value))) as i (id)
      where lower(i.id) <> all(array_remove(array[person.id::text, lower(person.clerk_user_id)] || person.emails, null))
    )
  )
  from jsonb_each(value) as e
  where octet_length(value::text) <= 1000;
$$;
comment on function app.leave_out_others is 'The fields of the object that contain no id or address except the person''s own; null if there are none, or it is larger than 1 kB.';

-- A person may start one export an hour, unless the last one failed. An export also counts as failed if no page of it was read for a
-- minute. The limit does not apply to administrators.
create or replace function public.begin_export(clerk_user_id text, requested_by text default 'person') returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  person app.person;
  free_at timestamptz;
  export app.exports;
begin
  perform app.refuse_clerk_tokens();
  person := app.find_person(clerk_user_id);
  perform from public.profiles as p where p.id = person.id for update; -- serializes concurrent requests
  if not found then
    raise sqlstate 'PT404' using message = 'No data about this person is stored.', hint = 'Check the id: user_…, as Clerk shows it.';
  end if;
  select max(case e.outcome when 'finished' then e.started_at + interval '1 hour' else e.touched_at + interval '1 minute' end) into free_at
  from app.exports as e
  where e.person_id = person.id and e.requested_by = 'person' and e.outcome <> 'failed';
  if requested_by = 'person' and free_at > now() then
    return jsonb_build_object('retry_after', ceil(extract(epoch from free_at - now())));
  end if;

  insert into app.exports (person_id, requested_by) values (person.id, requested_by) returning * into export;
  perform app.record_request(
    person.id, requested_by = 'person', 'personal_data.exported', jsonb_build_object('export_id', export.id)
  );
  return jsonb_build_object(
    'export_id', export.id, 'schema_version', 1, 'generated_at', export.started_at,
    'domains', (
      select jsonb_agg(jsonb_build_object('name', d.domain, 'description', d.data) order by d.position)
      from app.personal_data as d
      where d.domain is not null
    )
  );
end;
$$;
comment on function public.begin_export is
'Starts an export for a person. The service has authenticated the caller. Returns {export_id, schema_version, generated_at, domains}, or {retry_after} in seconds. Definer: the service has no privilege on tables.';

-- Selects rows in key order. Their text is made after the sort, only for the rows that are read. The first page has no key to compare with.
-- The key's first column is compared once more on its own, so that PostgreSQL skips the partitions before it.
create or replace function app.export_query(rule app.personal_data, is_first boolean) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select format(
    $query$
      select row_to_json(x)::text as line, jsonb_build_array(%1$s) as key
      from (
        select t.*
        from %2$s as t
        cross join (select ($1).*) as person
        where (%4$s) and %5$s and %6$s
        order by %1$s
        limit $4
      ) as t
      cross join (select ($1).*) as person
      cross join lateral (select %3$s) as x
    $query$,
    k.names, rule.relation, array_to_string(rule.exported, ', '), rule.subject, coalesce(rule.made_at || ' <= $2', 'true'),
    case when is_first then 'true' else format('(%s) > (%s) and %s >= %s', k.names, k.after, k.first_name, k.first_after) end
  )
  from (
    select
      string_agg(c.name, ', ' order by c.place) as names, string_agg(c.after, ', ' order by c.place) as after,
      min(c.name) filter (where c.place = 1) as first_name, min(c.after) filter (where c.place = 1) as first_after
    from (
      select
        o.place, format('t.%I', o.name) as name,
        format('($3 ->> %s)::%s', o.place - 1, format_type(a.atttypid, a.atttypmod)) as after
      from unnest(rule.ordered_by) with ordinality as o (name, place)
      join pg_attribute as a on a.attrelid = rule.relation::regclass and a.attname = o.name
    ) as c
  ) as k;
$$;
comment on function app.export_query is
'Builds the query for the rows of a domain, as text, and their keys. Parameters: $1 the person, $2 the time of the export, $3 the previous key, $4 the number of rows.';

create or replace function app.count_export_records(export_id uuid) returns bigint
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  export app.exports := (select e from app.exports as e where e.id = count_export_records.export_id);
  person app.person := app.find_person((select p.clerk_user_id from public.profiles as p where p.id = export.person_id));
  rule app.personal_data;
  counted bigint;
  total bigint := 0;
begin
  for rule in select d.* from app.personal_data as d where d.domain is not null loop
    execute format(
      'select count(*) from %s as t cross join (select ($1).*) as person where (%s) and %s',
      rule.relation, rule.subject, coalesce(rule.made_at || ' <= $2', 'true')
    ) into counted using person, export.started_at;
    total := total + counted;
  end loop;
  return total;
end;
$$;
comment on function app.count_export_records is 'Counts the rows of an export, for a progress bar.';

-- A page spans as many domains as fit, because most people have few rows.
create or replace function public.export_page(export_id uuid, after jsonb, page integer)
returns table (domain text, content text, entries integer, next jsonb)
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  export app.exports;
  person app.person;
  rule app.personal_data;
  key jsonb := after -> 'key';
  after_key jsonb;
  line text;
  lines text[];
  remaining integer := page;
  size integer; -- of the domain's part, in bytes
  bytes integer := 0;
begin
  perform app.refuse_clerk_tokens();
  perform app.refuse_deep_json(after);
  update app.exports as e set touched_at = clock_timestamp() where e.id = export_id and e.outcome = 'running' returning e.* into export;
  if export.id is null then
    raise sqlstate 'PT404' using message = 'This export does not exist or is finished.', hint = 'Start a new one with begin_export().';
  end if;
  person := app.find_person((select p.clerk_user_id from public.profiles as p where p.id = export.person_id));
  for rule in
    select d.* from app.personal_data as d
    where d.domain is not null
      and d.position >= coalesce((select f.position from app.personal_data as f where f.domain = after ->> 'domain'), 0)
    order by d.position
  loop
    domain := rule.domain;
    if remaining <= 0 or bytes >= 2000000 then
      content := '';
      entries := 0;
      next := jsonb_build_object('domain', domain, 'key', null);
      return next;
      return;
    end if;
    after_key := key;
    lines := '{}';
    size := 0;
    for line, key in execute app.export_query(rule, coalesce(after_key, 'null') = 'null') using person, export.started_at, after_key, remaining loop
      lines := lines || line;
      size := size + octet_length(line);
      exit when size >= 2000000;
    end loop;
    content := array_to_string(lines, e',\n');
    entries := cardinality(lines);
    if entries < remaining and size < 2000000 then
      key := null;
    end if;
    next := case when key is not null then jsonb_build_object('domain', domain, 'key', key) end;
    return next;
    exit when next is not null;
    remaining := remaining - entries;
    bytes := bytes + size;
  end loop;
end;
$$;
comment on function public.export_page is
'Returns up to `page` records in the order of the domains. content holds JSON objects separated by commas. Pass the last row''s next as `after` of the next call; null means the end. Definer: the service has no privilege on tables.';

create or replace function public.end_export(export_id uuid, failed boolean) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  update app.exports as e set outcome = case when failed then 'failed' else 'finished' end, touched_at = now()
  where e.id = export_id and e.outcome = 'running';
$$;
comment on function public.end_export is
'Ends an export. After a failed one the person may start another at once. Definer: the service has no privilege on tables.';

grant execute on function
public.begin_export(text, text), public.export_page(uuid, jsonb, integer), public.end_export(uuid, boolean)
to service_role;
