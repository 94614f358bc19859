-- The sync: any order and any repetition of the same events ends in the same rows.
--
-- Each event is a set of writes to Clerk objects, each with a stamp. app.clerk_records keeps the greatest write per object, and
-- app.clerk_tombstones keeps the deletions. Both only grow, so the order of arrival does not matter. The rows in public are computed from
-- these two tables, never from an event. events.sql turns events into writes, records.sql maintains the two tables (with a worked example),
-- and this file computes the rows.

create or replace function app.lowest_role() returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select r.key from public.roles as r order by r.rank limit 1;
$$;
comment on function app.lowest_role is 'The role with the lowest rank. Clerk roles that app.clerk_roles does not map become this role.';

create or replace function app.clerk_role(key text, is_owner boolean) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case when r.may_own and is_owner then 'owner' else coalesce(c.role, app.lowest_role()) end
  from (select) as one
  left join app.clerk_roles as c on c.key = clerk_role.key
  left join public.roles as r on r.key = c.role;
$$;
comment on function app.clerk_role is
'Our role for a Clerk role key. A person who owns the organization gets the role owner, if public.roles.may_own is set for the mapped role.';

-- Several Clerk role keys may map to a role. Clerk's default key comes before custom ones.
create or replace function app.clerk_role_key(role text) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select c.key from app.clerk_roles as c where c.role = clerk_role_key.role
  order by c.key = 'org:' || clerk_role_key.role desc, starts_with(c.key, 'org:') desc, c.key
  limit 1;
$$;
comment on function app.clerk_role_key is 'The Clerk role key for an invitation in a role, or null if no key maps to the role.';

create or replace view app.organization_owners with (security_invoker) as
select
  o.id as organization_id, o.clerk_org_id,
  case when s.organization_id is null then r.fields ->> 'created_by' else p.clerk_user_id end as clerk_user_id
from public.organizations as o
left join app.ownerships as s on o.id = s.organization_id
left join public.profiles as p on s.owner_id = p.id
left join app.clerk_records as r on r.kind = 'organization' and o.clerk_org_id = r.clerk_id;
comment on view app.organization_owners is
'The Clerk id of the person who owns each organization: the last person it was transferred to here, else its creator in Clerk. Null if that person was erased.';

create or replace function app.project_roles(organization_id uuid) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  update public.organization_memberships as m
  set role = app.clerk_role(m.clerk_role, p.clerk_user_id = w.clerk_user_id)
  from app.organization_owners as w
  cross join public.profiles as p
  where m.organization_id = organization_id and w.organization_id = m.organization_id and p.id = m.user_id
    and m.role <> app.clerk_role(m.clerk_role, p.clerk_user_id = w.clerk_user_id);
end;
$$;
comment on function app.project_roles is 'Recomputes the roles of an organization''s members from their Clerk roles and its ownership.';

-- A column that people may edit here is written only if the value changed in Clerk, so that their edit lasts.
create or replace function app.project_profile(clerk_id text, fields jsonb, before jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  insert into public.profiles as p (clerk_user_id, email, full_name, avatar_url, banned, created_at)
  values (
    clerk_id, fields ->> 'email', fields ->> 'full_name', fields ->> 'avatar_url', (fields -> 'banned')::boolean,
    coalesce(app.clerk_time(fields -> 'created_at'), now())
  )
  on conflict (clerk_user_id) do update set
    email = excluded.email,
    full_name = case when fields -> 'full_name' = before -> 'full_name' then p.full_name else excluded.full_name end,
    avatar_url = case when fields -> 'avatar_url' = before -> 'avatar_url' then p.avatar_url else excluded.avatar_url end,
    banned = excluded.banned,
    created_at = coalesce(app.clerk_time(fields -> 'created_at'), p.created_at);
end;
$$;
comment on function app.project_profile is 'Writes a person''s profile from the record''s new fields and its previous ones (null for a new record).';

create or replace function app.project_organization(clerk_id text, fields jsonb, before jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  seats numeric := (fields ->> 'max_seats')::numeric; -- null: Clerk gave no limit; 0: Clerk sets no limit
  seat_limit integer := case when seats between 1 and 1e9 then floor(seats)::integer end;
  organization uuid;
begin
  insert into public.organizations as o (clerk_org_id, name, slug, max_seats, created_at, deleted_at)
  values (
    clerk_id, fields ->> 'name', fields ->> 'slug', seat_limit, coalesce(app.clerk_time(fields -> 'created_at'), now()),
    (select now() from app.clerk_tombstones as t where t.kind = 'organization' and t.clerk_id = project_organization.clerk_id)
  )
  on conflict (clerk_org_id) do update set
    name = case when fields -> 'name' = before -> 'name' then o.name else excluded.name end,
    slug = excluded.slug,
    max_seats = excluded.max_seats,
    created_at = coalesce(app.clerk_time(fields -> 'created_at'), o.created_at)
  returning o.id into organization;

  if fields -> 'created_by' is distinct from before -> 'created_by' then
    perform app.project_roles(organization);
  end if;
end;
$$;
comment on function app.project_organization is 'Writes an organization from the record''s new fields and its previous ones (null for a new record).';

-- A person who leaves and rejoins gets a new membership id, so a person and an organization may have several memberships. The newest one
-- counts. Once it is deleted, older ones whose deletion has not arrived yet do not return. A membership from a session token counts until
-- Clerk's own arrives, unless a deletion is newer than the token.
create or replace function app.project_membership(organization text, person text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  membership app.clerk_records;
  began_at timestamptz;
begin
  select r.* into membership
  from app.clerk_records as r
  where r.organization_id = organization and r.kind = 'membership' and r.user_id = person
    and not exists (
      select from app.clerk_tombstones as t
      where t.organization_id = organization and t.user_id = person and case
        when (r.stamp).is_real then t.began_at > app.clerk_time(r.fields -> 'created_at')
        else t.deleted_at >= (r.stamp).source_updated_at
      end
    )
  order by r.stamp desc, r.clerk_id desc
  limit 1;

  if membership.clerk_id is null then
    delete from public.organization_memberships as m
    using public.organizations as o, public.profiles as p
    where o.clerk_org_id = organization and p.clerk_user_id = person and m.organization_id = o.id and m.user_id = p.id;
    return;
  end if;

  began_at := app.clerk_time(membership.fields -> 'created_at');
  insert into public.organization_memberships as m (organization_id, user_id, role, clerk_role, clerk_membership_id, joined_at)
  select
    o.id, p.id, app.clerk_role(membership.fields ->> 'role', w.clerk_user_id = person), membership.fields ->> 'role',
    case when (membership.stamp).is_real then membership.clerk_id end, coalesce(began_at, now())
  from public.organizations as o
  cross join public.profiles as p
  join app.organization_owners as w on w.organization_id = o.id
  where o.clerk_org_id = organization and o.deleted_at is null and p.clerk_user_id = person
  on conflict (user_id, organization_id) do update set
    role = excluded.role, clerk_role = excluded.clerk_role, clerk_membership_id = excluded.clerk_membership_id,
    joined_at = coalesce(began_at, m.joined_at)
  where (m.role, m.clerk_role, m.clerk_membership_id, m.joined_at)
    is distinct from (excluded.role, excluded.clerk_role, excluded.clerk_membership_id, coalesce(began_at, m.joined_at));
end;
$$;
comment on function app.project_membership is 'Writes or deletes the membership of a person in an organization, given by their Clerk ids.';

create or replace function app.project_invitation(clerk_id text, organization text, fields jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  if fields ->> 'email' is null then
    delete from public.organization_invitations as i where i.clerk_invitation_id = clerk_id;
    return;
  end if;
  insert into public.organization_invitations as i
  (organization_id, clerk_invitation_id, email, role, clerk_role, expires_at, created_at)
  select
    o.id, clerk_id, fields ->> 'email', app.clerk_role(fields ->> 'role', false), fields ->> 'role',
    app.clerk_time(fields -> 'expires_at'), coalesce(app.clerk_time(fields -> 'created_at'), now())
  from public.organizations as o
  where o.clerk_org_id = organization and o.deleted_at is null
  on conflict (clerk_invitation_id) do update set
    email = excluded.email, role = excluded.role, clerk_role = excluded.clerk_role,
    expires_at = excluded.expires_at, created_at = coalesce(app.clerk_time(fields -> 'created_at'), i.created_at);
end;
$$;
comment on function app.project_invitation is 'Writes a pending invitation, or deletes it if it has no address.';

-- The tier comes from one item, the status from the newest subscription. Items rank by their status: active, past_due, and canceled, which
-- Clerk keeps in force until the end of the period that is paid for. Among equals, one whose plan is mapped comes first, then the newest.
--
-- Worked example: Acme pays for three items. Its tier is starter.
-- (tests/db/test_clerk_sync.py runs this example.)
--
--   item | plan       | status   | period_end | updated_at | rank
--   -----+------------+----------+------------+------------+---------------------------------
--   a    | starter    | active   | tomorrow   | 10:00      | 1
--   b    | enterprise | canceled | tomorrow   | 11:00      | 3, although it is newer
--   c    | pro        | canceled | yesterday  | 12:00      | none: its period is over
--   d    | made_up    | active   | tomorrow   | 13:00      | 1, after a: made_up is not mapped
--
-- Without a, made_up ranks first. Acme is then on the free tier, and ops.clerk_plans shows the plan that lacks a mapping.
create or replace view app.clerk_items_in_force with (security_invoker) as
select
  r.organization_id, r.clerk_id, r.fields ->> 'plan' as plan, r.fields ->> 'status' as status, p.tier,
  row_number() over (
    partition by r.organization_id
    order by
      array_position('{canceled,past_due,active}', r.fields ->> 'status') desc, p.slug is not null desc, r.stamp desc, r.clerk_id desc
  ) as rank
from app.clerk_records as r
left join app.clerk_plans as p on p.slug = r.fields ->> 'plan'
where r.kind = 'subscription_item' and r.organization_id is not null and (
  r.fields ->> 'status' in ('active', 'past_due')
  or r.fields ->> 'status' = 'canceled' and coalesce(app.clerk_time(r.fields -> 'period_end') > now(), true)
);
comment on view app.clerk_items_in_force is 'The subscription items that give an organization its plan; the one with rank 1 determines the tier.';

create or replace function app.project_billing(organization text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  tier text := (select i.tier from app.clerk_items_in_force as i where i.organization_id = organization and i.rank = 1);
  status text;
begin
  select case r.fields ->> 'status' when 'active' then 'active' when 'past_due' then 'past_due' else 'cancelled' end into status
  from app.clerk_records as r
  where r.organization_id = organization and r.kind = 'subscription' and r.fields ->> 'status' is not null
  order by r.stamp desc, r.clerk_id desc
  limit 1;

  update public.organizations as o
  set subscription_tier = coalesce(tier, 'free'), subscription_status = coalesce(status, 'active')
  where o.clerk_org_id = organization
    and (o.subscription_tier, o.subscription_status) is distinct from (coalesce(tier, 'free'), coalesce(status, 'active'));
end;
$$;
comment on function app.project_billing is 'Writes an organization''s tier and status from its subscriptions and their items.';

-- Clerk reports the end of a cancelled item with an event. If that event is lost, the item still ends with its period. Tiers of
-- organizations without such an item stay as they are, because a product may set them without Clerk.
create or replace function app.end_billing_periods() returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  ended text[] := array(
    select r.organization_id
    from app.clerk_records as r
    join public.organizations as o on o.clerk_org_id = r.organization_id
    left join app.clerk_items_in_force as i on i.organization_id = r.organization_id and i.rank = 1
    where r.kind = 'subscription_item' and r.fields ->> 'status' = 'canceled' and app.clerk_time(r.fields -> 'period_end') <= now()
      and o.subscription_tier <> coalesce(i.tier, 'free')
    limit 1000
  );
begin
  perform app.lock_clerk_objects(ended);
  perform app.project_billing(e.organization_id) from unnest(ended) as e (organization_id);
exception when lock_not_available or deadlock_detected then
  null; -- an event is being applied to one of them; the next run tries again
end;
$$;
comment on function app.end_billing_periods is 'Recomputes the tier of organizations whose cancelled item is past its period. The job retention calls it.';
