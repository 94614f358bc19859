-- Which person a row belongs to, by app.personal_data, which registry.sql fills.

-- An address that another account has too finds that person's rows as well: it finds nobody's.
create or replace function app.select_own_addresses(emails text[], clerk_user_id text) returns text[]
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(distinct lower(e.email)), '{}')
  from unnest(emails) as e (email)
  where e.email <> '' and not exists (
    select from public.profiles as other where lower(other.email) = lower(e.email) and other.clerk_user_id <> select_own_addresses.clerk_user_id
  );
$$;
comment on function app.select_own_addresses is 'Those of the addresses, in lower case, that no other account has.';

-- Only what Clerk has verified: everybody may type in somebody else's address.
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
    where w.mentions @> array[find_addresses.clerk_user_id] and w.type like 'user.%'
      and w.event -> 'data' ->> 'id' = find_addresses.clerk_user_id and a.address #>> '{}' <> ''
  );
end;
$$;
comment on function app.find_addresses is 'The addresses of a person that are still to be read here, in lower case.';

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
comment on function app.find_person is 'What a person can be found by. Of somebody unknown it is Clerk''s id alone.';

-- In no organization's trail: it is nobody's business but the person's and ours.
create or replace function app.record_request(person_id uuid, by_person boolean, action text, metadata jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  who public.audit_logs := app.start_audit_entry();
begin
  insert into public.audit_logs (
    user_id, actor, impersonator, ip_address, user_agent, request_id, action, resource_type, metadata, subject_ids
  )
  values (
    case when by_person then person_id else who.user_id end, case when not by_person then coalesce(who.actor, 'system') end,
    who.impersonator, case when not by_person then who.ip_address end, case when not by_person then who.user_agent end, who.request_id,
    record_request.action, 'personal_data', record_request.metadata, case when not by_person and person_id is not null then array[person_id] end
  );
end;
$$;
comment on function app.record_request is 'Records that a person, or somebody else, asked for their data or its erasure.';

-- How long, in words. An expression of the registry is ours, so it may be run.
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
comment on function app.retention_period is 'After which time the rows of a rule of app.personal_data go; null when something else says so.';

-- For the privacy page: what a visitor asks, not where it lies.
create or replace function public.privacy_notice() returns jsonb
language plpgsql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
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
      cross join lateral (select concat_ws(' ', app.retention_period(d)::text, d.retention) as words) as r
      where d.erasure <> 'none'
      group by d.category, d.data, d.purpose, d.lawful_basis, d.erasure, r.words
    ) as n
  );
end;
$$;
comment on function public.privacy_notice is
'For the privacy page: objects with category, data, purpose, lawful_basis, retention and erasure, in the order of app.personal_data. Definer: the registry is private.';

grant execute on function public.privacy_notice() to service_role;
