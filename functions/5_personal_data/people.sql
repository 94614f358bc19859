-- Identifies people: their ids and addresses, by which the rules of app.personal_data (registry.sql) find rows.

-- An address that another account also has is left out, because it would find the rows of that person too.
create or replace function app.select_own_addresses(emails text[], clerk_user_id text) returns text[]
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(distinct lower(e.email)), '{}')
  from unnest(emails) as e (email)
  where e.email <> '' and not exists (
    select from public.profiles as other where lower(other.email) = lower(e.email) and other.clerk_user_id <> select_own_addresses.clerk_user_id
  );
$$;
comment on function app.select_own_addresses is 'Selects the addresses that no other account has, in lower case.';

-- Only addresses that Clerk has verified: anyone can enter another person's address. Reads only the person's own events, by an index:
-- others' events may mention the person as often as they like.
create or replace function app.find_addresses(clerk_user_id text) returns text[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select lower(p.email) from public.profiles as p where p.clerk_user_id = find_addresses.clerk_user_id and p.email <> ''
    union
    select lower(r.fields ->> 'email') from app.clerk_records as r
    where r.kind = 'user' and r.clerk_id = find_addresses.clerk_user_id and r.fields ->> 'email' <> ''
    union
    select lower(a.address #>> '{}')
    from
      app.webhook_events as w,
      jsonb_path_query(w.event, '$.data.email_addresses[*] ? (@.verification.status == "verified").email_address') as a (address)
    where w.type like 'user.%' and w.event -> 'data' ->> 'id' = find_addresses.clerk_user_id and a.address #>> '{}' <> ''
  );
end;
$$;
comment on function app.find_addresses is 'Finds the addresses of a person that are still stored here, in lower case.';

create or replace function app.find_person(clerk_user_id text) returns app.person
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  person app.person := (null, clerk_user_id, app.select_own_addresses(app.find_addresses(clerk_user_id), clerk_user_id));
begin
  select p.id into person.id from public.profiles as p where p.clerk_user_id = find_person.clerk_user_id;
  return person;
end;
$$;
comment on function app.find_person is 'The ids and addresses that identify a person. For an unknown person only Clerk''s id.';

-- Not part of any organization's trail: the request concerns only the person and the operator.
create or replace function app.record_request(person_id uuid, by_person boolean, action text, metadata jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  entry public.audit_logs := app.start_audit_entry();
begin
  insert into public.audit_logs (
    user_id, actor, impersonator, ip_address, user_agent, request_id, action, resource_type, metadata, subject_ids
  )
  values (
    case when by_person then person_id else entry.user_id end, case when not by_person then coalesce(entry.actor, 'system') end,
    entry.impersonator, entry.ip_address, entry.user_agent, entry.request_id,
    record_request.action, 'personal_data', record_request.metadata, case when not by_person and person_id is not null then array[person_id] end
  );
end;
$$;
comment on function app.record_request is 'Records in the audit trail that the person or an administrator requested an export or an erasure.';

-- Runs an SQL expression from the registry. That is safe because only functions/ write the registry.
create or replace function app.retention_period(rule app.personal_data) returns interval
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  kept interval;
begin
  if rule.retention_period is not null then
    execute 'select ' || rule.retention_period into kept;
  end if;
  return kept;
end;
$$;
comment on function app.retention_period is 'The interval after which rows of a rule of app.personal_data expire; null if the rule has none.';

-- For the privacy page: what a visitor needs to know, without tables and columns. Intervals read "1 hour", not "01:00:00".
create or replace function public.privacy_notice() returns jsonb
language plpgsql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp set intervalstyle = postgres_verbose
as $$
begin
  perform app.refuse_clerk_tokens();
  return (
    select coalesce(jsonb_agg(n.line order by n.position), '[]')
    from (
      select
        min(d.position) as position,
        jsonb_build_object(
          'category', d.category, 'data', d.data, 'purpose', d.purpose, 'lawful_basis', d.lawful_basis,
          'retention', upper(left(r.words, 1)) || substr(r.words, 2),
          'erasure', case d.erasure
            when 'delete' then 'Deleted' when 'set null' then 'Unlinked from you' when 'pseudonymise' then 'Made anonymous' else 'Kept'
          end
        ) as line
      from app.personal_data as d
      cross join lateral (select concat_ws(' ', ltrim(app.retention_period(d)::text, '@ '), d.retention) as words) as r
      where d.erasure <> 'none'
      group by d.category, d.data, d.purpose, d.lawful_basis, d.erasure, r.words
    ) as n
  );
end;
$$;
comment on function public.privacy_notice is
'For the privacy page. Returns objects with category, data, purpose, lawful_basis, retention and erasure, in the order of app.personal_data. Definer: the registry is private.';

grant execute on function public.privacy_notice() to service_role;
