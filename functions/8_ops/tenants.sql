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
  seats.owners, seats.admins, seats.members - seats.owners - seats.admins - seats.viewers as members, seats.viewers,
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
      count(*) as members, count(*) filter (where m.role = 'owner') as owners, count(*) filter (where m.role = 'admin') as admins,
      count(*) filter (where m.role = 'viewer') as viewers
    from public.organization_memberships as m
    where m.organization_id = o.id
  ) as seats
order by last_activity_at desc nulls last, o.name asc;
comment on view ops.tenants is
'Every organization: state, plan, used and available seats, members by role, and the time of the last change in it.';

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
