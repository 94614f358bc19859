-- Finds and repairs differences between pages of Clerk's Backend API and our rows. For `ballast clerk reconcile`, as the role postgres.

-- Leaves out objects that were deleted or erased, and those with a newer record: there the page is out of date.
create or replace function app.read_clerk_page(kind text, page jsonb, asked_at timestamptz)
returns table (object jsonb, clerk_id text, organization text, person text, fields jsonb, known jsonb)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return query
    with listed as materialized (
      select
        e.object, app.clerk_text(e.object -> 'id') as id,
        coalesce(app.clerk_text(e.object -> 'organization' -> 'id'), app.clerk_text(e.object -> 'organization_id')) as org_id,
        case kind
          when 'user' then app.clerk_text(e.object -> 'id')
          when 'membership' then app.clerk_text(e.object -> 'public_user_data' -> 'user_id')
        end as user_id
      from jsonb_array_elements(page) as e (object)
    ), erased as materialized (
      select app.select_erased(array(select l.user_id from listed as l where l.user_id is not null)) as ids
    )
    select l.object, l.id, l.org_id, l.user_id, app.read_fields(kind, l.object), r.fields
    from listed as l
    cross join erased as e
    left join app.clerk_records as r on r.kind = kind and r.clerk_id = l.id
    where coalesce(l.user_id <> all(e.ids), true)
      and not exists (select from app.clerk_tombstones as t where t.kind = kind and t.clerk_id = l.id)
      and not exists (select from app.clerk_tombstones as t where t.kind = 'organization' and t.clerk_id = l.org_id)
      and not (kind = 'invitation' and app.invitation_predates_erasure(app.read_fields(kind, l.object)))
      and not coalesce(
        r.stamp > (true, coalesce(app.clerk_event_time(l.object -> 'updated_at'), asked_at), true, asked_at, null)::app.clerk_stamp, false
      );
end;
$$;
comment on function app.read_clerk_page is 'The objects of a page that are still current: their Clerk ids, the fields that we keep, and those of the record.';

-- A missed event may leave an item in force. Clerk's other items of that organization are given by their ids.
create or replace function app.select_ended_items(organization text, listed text[], asked_at timestamptz) returns setof app.clerk_records
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return query
    select r.*
    from app.clerk_items_in_force as i
    join app.clerk_records as r on r.kind = 'subscription_item' and r.clerk_id = i.clerk_id
    where i.organization_id = organization and i.clerk_id <> all(listed) and (r.stamp).event_at <= asked_at;
end;
$$;
comment on function app.select_ended_items is 'The records of items that are in force here, but missing from the list that Clerk was asked for at asked_at. Newer records are left out.';

create or replace function app.end_subscription_items(organization text, listed text[], asked_at timestamptz) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.merge_record(
    r.kind, r.clerk_id, (true, asked_at, false, asked_at, null),
    jsonb_build_object('status', 'ended', 'plan', jsonb_build_object('slug', r.fields -> 'plan')), organization
  )
  from app.select_ended_items(organization, listed, asked_at) as r;
end;
$$;
comment on function app.end_subscription_items is 'Ends the items of an organization that are missing from the list that Clerk was asked for at asked_at.';

create or replace function app.clerk_item_ids(subscription jsonb) returns text[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select app.clerk_text(id) from jsonb_path_query(subscription, '$.items[*].id') as id where app.clerk_text(id) is not null);
end;
$$;
comment on function app.clerk_item_ids is 'The ids of the items of a Clerk subscription.';

-- For columns that people may edit here, compares the page with the record of Clerk's value. For all others, with the row.
create or replace function app.clerk_differences(kind text, page jsonb, asked_at timestamptz)
returns table (object jsonb, clerk_id text, difference text, columns text[])
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  case clerk_differences.kind
    when 'user' then
      return query
        select l.object, l.clerk_id, case when p.id is null then 'missing' else 'stale' end, d.columns
        from app.read_clerk_page(kind, page, asked_at) as l
        left join public.profiles as p on p.clerk_user_id = l.clerk_id
        cross join lateral (select array_remove(array[
          case when l.known -> 'full_name' is distinct from l.fields -> 'full_name' then 'full_name' end,
          case when l.known -> 'avatar_url' is distinct from l.fields -> 'avatar_url' then 'avatar_url' end,
          case when p.email is distinct from l.fields ->> 'email' then 'email' end,
          case when p.banned is distinct from (l.fields -> 'banned')::boolean then 'banned' end,
          case when p.created_at <> app.clerk_time(l.fields -> 'created_at') then 'created_at' end
        ], null) as columns) as d
        where p.id is null or d.columns <> '{}';
    when 'organization' then
      return query
        select l.object, l.clerk_id, case when o.id is null then 'missing' else 'stale' end, d.columns
        from app.read_clerk_page(kind, page, asked_at) as l
        left join public.organizations as o on o.clerk_org_id = l.clerk_id
        cross join lateral (select array_remove(array[
          case when l.known -> 'name' is distinct from l.fields -> 'name' then 'name' end,
          case when l.known -> 'max_seats' is distinct from l.fields -> 'max_seats' then 'max_seats' end,
          case when l.known -> 'created_by' is distinct from l.fields -> 'created_by' then 'created_by' end,
          case when o.slug is distinct from l.fields ->> 'slug' then 'slug' end,
          case when o.created_at <> app.clerk_time(l.fields -> 'created_at') then 'created_at' end
        ], null) as columns) as d
        where not exists (select from app.clerk_tombstones as t where t.kind = 'organization' and t.clerk_id = l.clerk_id)
          and (o.id is null or d.columns <> '{}');
    when 'membership' then
      return query
        select
          l.object, l.clerk_id, case when m.id is null then 'missing' when 'role' = any(d.columns) then 'wrong role' else 'stale' end, d.columns
        from app.read_clerk_page(kind, page, asked_at) as l
        left join public.organizations as o on o.clerk_org_id = l.organization
        left join public.profiles as p on p.clerk_user_id = l.person
        left join public.organization_memberships as m on m.organization_id = o.id and m.user_id = p.id
        left join app.organization_owners as w on w.organization_id = o.id
        cross join lateral (select array_remove(array[
          case
            when m.clerk_role is distinct from l.fields ->> 'role'
              or m.role <> app.clerk_role(l.fields ->> 'role', w.clerk_user_id = l.person) then 'role'
          end,
          case when m.clerk_membership_id is distinct from l.clerk_id then 'clerk_membership_id' end,
          case when m.joined_at <> app.clerk_time(l.fields -> 'created_at') then 'joined_at' end
        ], null) as columns) as d
        where m.id is null or d.columns <> '{}';
    when 'invitation' then
      return query
        select l.object, l.clerk_id, case when i.id is null then 'missing' else 'stale' end, d.columns
        from app.read_clerk_page(kind, page, asked_at) as l
        left join public.organization_invitations as i on i.clerk_invitation_id = l.clerk_id
        cross join lateral (select array_remove(array[
          case when i.email is distinct from l.fields ->> 'email' then 'email' end,
          case
            when i.clerk_role is distinct from l.fields ->> 'role' or i.role <> app.clerk_role(l.fields ->> 'role', false) then 'role'
          end,
          case when i.expires_at is distinct from app.clerk_time(l.fields -> 'expires_at') then 'expires_at' end,
          case when i.created_at <> app.clerk_time(l.fields -> 'created_at') then 'created_at' end
        ], null) as columns) as d
        where l.fields ->> 'email' is not null and l.object ->> 'status' = 'pending' and (i.id is null or d.columns <> '{}');
    when 'subscription' then
      return query
        select l.object, l.clerk_id, case when l.known is null then 'missing' else 'stale' end, d.columns
        from app.read_clerk_page(kind, page, asked_at) as l
        cross join lateral (select array_remove(array[
          case when l.known -> 'status' is distinct from l.fields -> 'status' then 'status' end,
          case
            when app.has_changed_items(l.object)
              or exists (select from app.select_ended_items(l.organization, app.clerk_item_ids(l.object), asked_at)) then 'items'
          end
        ], null) as columns) as d
        where l.known is null or d.columns <> '{}';
    else -- roles and permissions have no row in public
      return query
        select l.object, l.clerk_id, case when l.known is null then 'missing' else 'stale' end, d.columns
        from app.read_clerk_page(kind, page, asked_at) as l
        cross join lateral (
          select coalesce(array_agg(f.key order by f.key), '{}') as columns
          from jsonb_each(l.fields) as f
          where l.known -> f.key is distinct from f.value
        ) as d
        where l.known is null or d.columns <> '{}';
  end case;
end;
$$;
comment on function app.clerk_differences is
'Objects of a page that are missing here, stale or have the wrong role, with the columns that differ. The page was requested at asked_at or later.';

-- A row may differ although its record is current, if it was edited by hand. Therefore the rows are always written again from the records.
create or replace function app.repair_clerk_objects(kind text, page jsonb, asked_at timestamptz, actor text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  object jsonb;
  known app.clerk_records;
begin
  perform app.lock_clerk_data(page);
  perform app.begin_bulk_merge(actor);
  for object in select e.object from jsonb_array_elements(page) as e (object) loop
    perform app.apply_clerk_event(app.build_page_event(kind, object, asked_at));
    select r.* into known from app.clerk_records as r where r.kind = kind and r.clerk_id = app.clerk_text(object -> 'id');
    case known.kind
      when 'user' then perform app.project_profile(known.clerk_id, known.fields, known.fields);
      when 'organization' then perform app.project_organization(known.clerk_id, known.fields, known.fields - 'created_by');
      when 'membership' then perform app.project_membership(known.organization_id, known.user_id);
      when 'invitation' then perform app.project_invitation(known.clerk_id, known.organization_id, known.fields);
      when 'subscription' then
        perform app.end_subscription_items(known.organization_id, app.clerk_item_ids(object), asked_at);
      else null; -- deleted or erased in the meantime
    end case;
  end loop;
end;
$$;
comment on function app.repair_clerk_objects is 'Merges Clerk objects that were requested at asked_at or later, and writes their rows again from the records.';

-- A membership that is known only from a session token has no Clerk id. People whose erasure is running are left out.
create or replace function app.clerk_mirror(kind text) returns table (clerk_id text, organization text, person text)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  case clerk_mirror.kind
    when 'user' then
      return query
        with erased as materialized (
          select e.id from unnest(app.select_erased(array(select p.clerk_user_id from public.profiles as p))) as e (id)
        )
        select p.clerk_user_id, null::text, p.clerk_user_id
        from public.profiles as p
        where not exists (select from erased as e where e.id = p.clerk_user_id);
    when 'organization' then
      return query select o.clerk_org_id, o.clerk_org_id, null::text from public.organizations as o where o.deleted_at is null;
    when 'membership' then
      return query
        select m.clerk_membership_id, o.clerk_org_id, p.clerk_user_id
        from public.organization_memberships as m
        join public.organizations as o on o.id = m.organization_id
        join public.profiles as p on p.id = m.user_id;
    when 'invitation' then
      return query
        select i.clerk_invitation_id, o.clerk_org_id, null::text
        from public.organization_invitations as i
        join public.organizations as o on o.id = i.organization_id;
    when 'subscription' then
      return query
        select distinct on (r.organization_id) r.clerk_id, r.organization_id, null::text
        from app.clerk_records as r
        join public.organizations as o on o.clerk_org_id = r.organization_id and o.deleted_at is null
        where r.kind = 'subscription' and r.fields ->> 'status' <> 'ended'
        order by r.organization_id, r.stamp desc;
    else
      return query select r.clerk_id, null::text, null::text from app.clerk_records as r where r.kind = clerk_mirror.kind;
  end case;
end;
$$;
comment on function app.clerk_mirror is 'The Clerk ids of all rows of a kind; of subscriptions, of those that have not ended.';

-- Does what a deletion event does. Without clerk_id it deletes a membership that is known only from a session token. A token issued later
-- may create it again.
create or replace function app.delete_clerk_object(
  kind text, clerk_id text, organization text, person text, asked_at timestamptz, actor text
) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  known app.clerk_records;
begin
  perform app.lock_clerk_objects(array[clerk_id, organization, person]);
  perform set_config('app.actor', actor, true);
  select r.* into known from app.clerk_records as r where r.kind = kind and r.clerk_id = clerk_id;
  if (known.stamp).event_at > asked_at then
    return false;
  end if;
  if kind = 'membership' then
    return app.record_deletion(
      kind, coalesce(clerk_id, format('reconciled:%s:%s', organization, person)), asked_at, organization, person,
      app.clerk_time(known.fields -> 'created_at')
    );
  end if;
  if kind = 'subscription' then -- Clerk ends subscriptions and does not delete them
    perform app.end_subscription_items(organization, '{}', asked_at);
    return app.merge_record(kind, clerk_id, (true, asked_at, false, asked_at, null), '{"status": "ended"}', organization);
  end if;
  return app.record_deletion(kind, clerk_id, asked_at);
end;
$$;
comment on function app.delete_clerk_object is
'Deletes an object that Clerk did not have at asked_at. False if it is already deleted, or its record is newer than asked_at.';
