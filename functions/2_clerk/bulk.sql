-- The sync in bulk: merges pages of Clerk's Backend API. Each object on a page is treated as an event of the time of the request, so the
-- usual order of writes applies: data from a newer webhook wins, whether it arrived before the page or arrives later.
-- For `ballast clerk backfill`, as the role postgres.

create or replace function app.build_page_event(kind text, object jsonb, asked_at timestamptz) returns jsonb
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'type', case kind when 'membership' then 'organizationMembership' when 'invitation' then 'organizationInvitation' else kind end || '.updated',
    'data', object, 'timestamp', floor(extract(epoch from asked_at) * 1000)
  );
$$;
comment on function app.build_page_event is 'Builds the event that an object of a page is treated as. Kinds are those of app.clerk_records.';

-- Sets the audit actor and suppresses mail: people who joined long ago must not get a welcome mail.
create or replace function app.begin_bulk_merge(actor text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('app.actor', actor, true), set_config('app.no_mail', 'on', true);
end;
$$;
comment on function app.begin_bulk_merge is 'Sets the actor for the audit trail and turns mail off, until the transaction ends.';

create or replace function app.read_fields(kind text, object jsonb) returns jsonb
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  fields jsonb := app.clerk_fields(kind, object);
begin
  if kind = 'organization' and (fields ->> 'created_by' = 'erased' or app.is_erased(fields ->> 'created_by')) then
    return fields || '{"created_by": null}';
  end if;
  return fields;
end;
$$;
comment on function app.read_fields is 'The fields that app.merge_record would keep of an object.';

create or replace function app.has_changed_items(subscription jsonb) returns boolean
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select from jsonb_path_query(subscription, '$.items[*]') as i (item)
    left join app.clerk_records as r on r.kind = 'subscription_item' and r.clerk_id = app.clerk_text(i.item -> 'id')
    cross join lateral (select coalesce(app.clerk_event_time(i.item -> 'updated_at'), (r.stamp).source_updated_at) as updated_at) as u
    where not coalesce(
      (r.stamp).source_updated_at > u.updated_at
      or (r.stamp).source_updated_at = u.updated_at and r.fields = app.clerk_fields('subscription_item', i.item),
      false
    )
  );
end;
$$;
comment on function app.has_changed_items is 'Whether a merge of a Clerk subscription may change one of its items.';

-- When a page is read again, most of its objects are unchanged. One query finds the others. It needs no lock, because a record's
-- stamp never decreases.
-- An object with unchanged fields keeps its record's stamp, even if the page's stamp would be greater. That is safe, because the event that
-- set these fields has arrived or will arrive, and its stamp is greater than that of any earlier event.
create or replace function app.select_changed_objects(kind text, page jsonb) returns jsonb
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return (
    select coalesce(jsonb_agg(o.object), '[]')
    from jsonb_array_elements(page) as o (object)
    left join app.clerk_records as r on r.kind = kind and r.clerk_id = app.clerk_text(o.object -> 'id')
    cross join lateral (
      select coalesce(app.clerk_event_time(o.object -> 'updated_at'), (r.stamp).source_updated_at) as updated_at -- some roles have no time
    ) as u
    where not coalesce(
      (r.stamp).is_real and (
        (r.stamp).source_updated_at > u.updated_at
        or (r.stamp).source_updated_at = u.updated_at and (r.stamp).is_own and r.fields = app.read_fields(kind, o.object)
      ),
      false
    ) or kind = 'subscription' and app.has_changed_items(o.object)
  );
end;
$$;
comment on function app.select_changed_objects is 'The objects of a page that a merge may change.';

-- Unknown users need no merge, so they are inserted in bulk. A first backfill makes two inserts per page instead of hundreds, and each
-- audit trigger runs once. app.merge_record handles all other users. tests/scripts/clerk/test_backfill.py checks that both ways give
-- equal rows.
create or replace function app.insert_new_users(page jsonb, asked_at timestamptz) returns text[]
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  inserted text[];
begin
  with listed as materialized (
    select distinct on (u.id)
      u.id, coalesce(app.clerk_event_time(e.object -> 'updated_at'), asked_at) as updated_at, app.clerk_fields('user', e.object) as fields,
      app.clerk_addresses(e.object) as addresses
    from jsonb_array_elements(page) as e (object)
    cross join lateral (select app.clerk_text(e.object -> 'id') as id) as u
    where not exists (select from app.clerk_records as r where r.kind = 'user' and r.clerk_id = u.id)
      and not exists (select from public.profiles as p where p.clerk_user_id = u.id)
    order by u.id
  ), erased as materialized (
    select app.select_erased(array(select l.id from listed as l)) as ids
  ), fresh as materialized (
    select l.* from listed as l cross join erased as e where l.id <> all(e.ids)
  ), shown as (
    insert into public.profiles (clerk_user_id, email, full_name, avatar_url, banned, created_at)
    select
      f.id, f.fields ->> 'email', f.fields ->> 'full_name', f.fields ->> 'avatar_url', (f.fields -> 'banned')::boolean,
      coalesce(app.clerk_time(f.fields -> 'created_at'), now())
    from fresh as f
  ), noted as (
    insert into app.known_addresses (subject_hash, address_hash)
    select
      app.salted_hash(s.erasure_salt, f.id), app.salted_hash(s.erasure_salt, a.address)
    from fresh as f
    cross join app.settings as s
    cross join unnest(f.addresses) as a (address)
    on conflict do nothing
  ), kept as (
    insert into app.clerk_records as r (kind, clerk_id, stamp, fields)
    select 'user', f.id, (true, f.updated_at, true, asked_at, sha256(convert_to(f.fields::text, 'UTF8')))::app.clerk_stamp, f.fields
    from fresh as f
    returning r.clerk_id
  )
  select coalesce(array_agg(k.clerk_id), '{}') into inserted from kept as k;
  return inserted;
end;
$$;
comment on function app.insert_new_users is 'Inserts the records and profiles of a page''s unknown users. Returns their ids.';

-- Only if the records of the person and the organization are greater than the copies in the membership, and if no membership of the two
-- was ever recorded.
create or replace function app.insert_new_memberships(page jsonb, asked_at timestamptz) returns text[]
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  inserted text[];
begin
  with listed as materialized (
    select distinct on (i.organization, i.person)
      i.id, i.organization, i.person, coalesce(app.clerk_event_time(e.object -> 'updated_at'), asked_at) as updated_at,
      app.clerk_fields('membership', e.object) as fields,
      coalesce(app.clerk_event_time(e.object -> 'organization' -> 'updated_at'), '-infinity') as organization_updated_at
    from jsonb_array_elements(page) as e (object)
    cross join lateral (
      select
        app.clerk_text(e.object -> 'id') as id, app.clerk_text(e.object -> 'organization' -> 'id') as organization,
        app.clerk_text(e.object -> 'public_user_data' -> 'user_id') as person
    ) as i
    where i.id is not null
      and not exists (select from app.clerk_records as r where r.kind = 'membership' and r.clerk_id = i.id)
      and not exists (
        select from app.clerk_records as r where r.kind = 'membership' and r.organization_id = i.organization and r.user_id = i.person
      )
      and not exists (select from app.clerk_tombstones as t where t.kind = 'membership' and t.clerk_id = i.id)
      and not exists (select from app.clerk_tombstones as t where t.organization_id = i.organization and t.user_id = i.person)
    order by i.organization, i.person
  ), erased as materialized (
    select app.select_erased(array(select l.person from listed as l)) as ids
  ), fresh as materialized (
    select l.*, o.id as organization_id, p.id as user_id, app.clerk_role(l.fields ->> 'role', w.clerk_user_id = l.person) as role
    from listed as l
    cross join erased as e
    join public.organizations as o on o.clerk_org_id = l.organization and o.deleted_at is null
    join app.organization_owners as w on w.organization_id = o.id
    join public.profiles as p on p.clerk_user_id = l.person
    join app.clerk_records as ru on ru.kind = 'user' and ru.clerk_id = l.person and (ru.stamp).is_real
    join app.clerk_records as ro on ro.kind = 'organization' and ro.clerk_id = l.organization
      and (ro.stamp).is_real and (ro.stamp).is_own and (ro.stamp).source_updated_at >= l.organization_updated_at
    where l.person <> all(e.ids)
      and not exists (select from public.organization_memberships as m where m.organization_id = o.id and m.user_id = p.id)
  ), shown as (
    insert into public.organization_memberships (organization_id, user_id, role, clerk_role, clerk_membership_id, joined_at)
    select
      f.organization_id, f.user_id, f.role, f.fields ->> 'role', f.id, coalesce(app.clerk_time(f.fields -> 'created_at'), now())
    from fresh as f
  ), kept as (
    insert into app.clerk_records as r (kind, clerk_id, organization_id, user_id, stamp, fields)
    select
      'membership', f.id, f.organization, f.person,
      (true, f.updated_at, true, asked_at, sha256(convert_to(f.fields::text, 'UTF8')))::app.clerk_stamp, f.fields
    from fresh as f
    returning r.clerk_id
  )
  select coalesce(array_agg(k.clerk_id), '{}') into inserted from kept as k;
  return inserted;
end;
$$;
comment on function app.insert_new_memberships is 'Inserts the records and rows of a page''s new memberships. Returns their ids.';

create or replace function app.merge_clerk_page(kind text, page jsonb, asked_at timestamptz, actor text) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  moment timestamptz := date_trunc('milliseconds', asked_at); -- the precision of events
  candidates jsonb := app.select_changed_objects(merge_clerk_page.kind, page);
  inserted text[] := '{}';
  object jsonb;
  changed integer;
begin
  if candidates = '[]' then
    return 0;
  end if;
  perform app.lock_clerk_data(candidates);
  perform app.begin_bulk_merge(actor);
  if merge_clerk_page.kind = 'user' then
    inserted := app.insert_new_users(candidates, moment);
  elsif merge_clerk_page.kind = 'membership' then
    inserted := app.insert_new_memberships(candidates, moment);
  end if;
  changed := cardinality(inserted);
  for object in
    select e.object from jsonb_array_elements(candidates) as e (object) where coalesce(app.clerk_text(e.object -> 'id') <> all(inserted), true)
  loop
    if app.apply_clerk_event(app.build_page_event(merge_clerk_page.kind, object, moment)) = 'processed' then
      changed := changed + 1;
    end if;
  end loop;
  return changed;
end;
$$;
comment on function app.merge_clerk_page is 'Merges a page of Clerk''s API that was requested at asked_at or later. Returns the number of objects that changed a record.';
