-- Tenants, people and their activity, for administrators in the SQL editor.

create or replace view ops.tenants with (security_invoker) as
select
  o.name as organization, o.clerk_org_id, o.id,
  case when o.deleted_at is not null then 'deleted' when o.suspended_at is not null then 'suspended' else 'active' end as state,
  coalesce(o.deleted_at, o.suspended_at) as state_since, o.suspension_reason,
  o.deleted_at + (
    select app.retention_period(d) from app.personal_data as d
    where d.relation = 'public.organizations'
  ) as purged_after,
  o.subscription_tier as plan, o.subscription_status as plan_status, seats.members as seats_used, o.max_seats as seats,
  seats.owners, seats.roles as members_by_role,
  case when o.deleted_at is null and seats.owners is null then 'yellow' else 'green' end as owner_status,
  (
    select count(*) from public.organization_invitations as i
    where i.organization_id = o.id
  ) as invitations,
  (
    select a.created_at from public.audit_logs as a
    where a.organization_id = o.id
    order by a.created_at desc limit 1
  ) as last_activity_at,
  o.mfa_required, o.created_at
from public.organizations as o
cross join
  lateral (
    select
      coalesce(sum(m.members), 0)::bigint as members,
      string_agg(format('%s %s', m.members, m.role), ', ' order by m.rank desc) as roles,
      string_agg(m.people, ', ') filter (where m.role = 'owner') as owners
    from (
      select
        m.role, r.rank, count(*) as members,
        string_agg(n.name, ', ' order by n.name, m.id) filter (where m.role = 'owner') as people
      from public.organization_memberships as m
      join public.roles as r on m.role = r.key
      join public.profiles as p on m.user_id = p.id
      cross join lateral (select coalesce(p.full_name, p.email, p.clerk_user_id) as name) as n
      where m.organization_id = o.id
      group by m.role, r.rank
    ) as m
  ) as seats
order by last_activity_at desc nulls last, o.name asc;
comment on view ops.tenants is
'Every organization: state, plan, used and available seats, owners, members by role, and the time of the last change in it. owner_status is yellow if it has no owner.';

-- Events about a new organization may arrive in any order, so one that was created within the last hour does not count.
create or replace view ops.owner_health with (security_invoker) as
select
  f.organizations, f.without_owner, f.first_clerk_org_id,
  case when f.without_owner > 0 then 'yellow' else 'green' end as status,
  case
    when f.without_owner > 0
      then format(
        'Organizations without an owner: %s (%s%s). Run `select ops.transfer_ownership(''%s'', ''user_…'');` with one of its admins, '
        'or delete the organization in Clerk. owner_status in ops.tenants shows them all.',
        f.without_owner, f.first_name, case when f.without_owner > 1 then ', …' else '' end, f.first_clerk_org_id
      )
    else 'OK.'
  end as advice
from (
  select
    count(*) as organizations, count(*) filter (where not w.has_owner) as without_owner,
    (array_agg(o.clerk_org_id order by o.created_at, o.id) filter (where not w.has_owner))[1] as first_clerk_org_id,
    (array_agg(o.name order by o.created_at, o.id) filter (where not w.has_owner))[1] as first_name
  from public.organizations as o
  cross join
    lateral (
      select
        exists(
          select from public.organization_memberships as m
          where m.organization_id = o.id and m.role = 'owner'
        ) as has_owner
    ) as w
  where o.deleted_at is null and o.created_at < now() - interval '1 hour'
) as f;
comment on view ops.owner_health is 'Whether every organization has an owner: one row. Use ops.transfer_ownership() for one without an owner.';

-- Takes the locks that events about the organization and the person take, so it runs before or after them. A member whose Clerk role maps
-- to owner is an owner in any case.
create or replace function ops.transfer_ownership(organization text, person text) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  tenant public.organizations;
  successor public.profiles;
  successor_name text;
  held public.organization_memberships;
  former public.profiles;
begin
  select o.* into tenant from public.organizations as o where o.id = ops.organization_id(organization) and o.deleted_at is null;
  select p.* into successor from public.profiles as p where p.id = ops.person_id(person);
  if tenant.id is null then
    raise exception 'No organization or more than one matches %.', organization using
      hint = 'Pass Clerk''s id, org_…: ops.tenants lists the ids. A deleted organization has no owner.';
  elsif successor.id is null then
    raise exception 'No person or more than one matches %.', person using hint = 'Pass Clerk''s id, user_…: ops.people lists the ids.';
  end if;
  successor_name := coalesce(successor.full_name, successor.email, successor.clerk_user_id);
  perform app.lock_clerk_objects(array[tenant.clerk_org_id, successor.clerk_user_id]);
  select m.* into held from public.organization_memberships as m where m.organization_id = tenant.id and m.user_id = successor.id;
  if held.id is null then
    raise exception '% is not a member of %.', successor_name, tenant.name using
      hint = 'Only a member can own the organization: invite the person, and repeat this once they have joined.';
  elsif not exists (select from app.clerk_roles as c join public.roles as r on r.key = c.role where c.key = held.clerk_role and r.may_own) then
    raise exception '% is % of %, and this role cannot own an organization.', successor_name, held.role, tenant.name using
      hint = format('In Clerk, first give the person one of these roles: %s.', (
        select string_agg(c.key, ', ' order by r.rank, c.key) from app.clerk_roles as c
        join public.roles as r on r.key = c.role
        where r.may_own and starts_with(c.key, 'org:')
      ));
  end if;

  select p.* into former from app.organization_owners as w join public.profiles as p on p.clerk_user_id = w.clerk_user_id
  where w.organization_id = tenant.id;
  insert into app.ownerships as s (organization_id, owner_id) values (tenant.id, successor.id)
  on conflict on constraint ownerships_pkey do update set owner_id = excluded.owner_id, transferred_at = now();
  perform app.project_roles(tenant.id);
  insert into public.audit_logs (organization_id, actor, action, resource_type, resource_id, metadata, subject_ids)
  values (
    tenant.id, 'administrator', 'organization.ownership_transferred', 'organization', tenant.id::text,
    jsonb_build_object('from', former.id, 'to', successor.id), array_remove(array[nullif(former.id, successor.id), successor.id], null)
  );
  return format('%s owns %s.', successor_name, tenant.name) || coalesce((
    select format(' Also owners, by their Clerk role: %s.', string_agg(coalesce(p.full_name, p.email, p.clerk_user_id), ', ' order by p.id))
    from public.organization_memberships as m
    join public.profiles as p on p.id = m.user_id
    where m.organization_id = tenant.id and m.role = 'owner' and m.user_id <> successor.id
    having count(*) > 0
  ), '');
end;
$$;
comment on function ops.transfer_ownership is
'Makes a member the owner of an organization. organization is a Clerk id, our id or a slug; person is a Clerk id, our id or an e-mail address. The former owner keeps the role from Clerk. Events, backfill and reconcile do not change the owner.';

create or replace view ops.people with (security_invoker) as
select
  coalesce(p.full_name, p.email, p.clerk_user_id) as person, p.email, p.clerk_user_id, p.id,
  case
    when exists (
      select from app.erasure_log as l
      where l.state <> 'complete' and (l.person).id = p.id
    ) then 'being erased'
    when p.banned then 'banned'
    else 'active'
  end as state,
  p.banned, p.last_seen_at,
  array(
    select format('%s (%s)', o.name, m.role)
    from public.organization_memberships as m
    join public.organizations as o on m.organization_id = o.id
    where m.user_id = p.id
    order by o.name, o.id
  ) as organizations,
  p.created_at
from public.profiles as p
order by p.last_seen_at desc nulls last, p.created_at desc;
comment on view ops.people is 'Every person: their organizations and roles, when they were last seen, and whether they are banned (or deprovisioned) in Clerk or being erased.';

create or replace view ops.audit_activity with (security_invoker) as
select
  o.name as organization, coalesce(p.full_name, p.email, a.actor, 'an erased person') as actor, a.impersonator, a.action,
  count(*) as entries, min(a.created_at) as first_at, max(a.created_at) as last_at
from public.audit_logs as a
left join public.organizations as o on a.organization_id = o.id
left join public.profiles as p on a.user_id = p.id
where a.created_at >= now() - interval '30 days'
group by o.name, coalesce(p.full_name, p.email, a.actor, 'an erased person'), a.impersonator, a.action
order by max(a.created_at) desc;
comment on view ops.audit_activity is 'Audit entries of the last 30 days, counted by organization, actor and action.';
