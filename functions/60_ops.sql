-- What administrators look at in the SQL editor. Nobody else can: ops has no grants.

create or replace view ops.webhook_failures with (security_invoker) as
select e.message_id, e.type, e.error, e.attempts, e.received_at, e.next_attempt_at
from app.webhook_events as e
where e.outcome = 'failed'
order by e.received_at;
comment on view ops.webhook_failures is 'Clerk events that could not be applied, oldest first. `ballast inbox retry` applies them again.';

create or replace view ops.clerk_roles with (security_invoker) as
select
  r.fields ->> 'key' as key, r.fields ->> 'name' as name, coalesce(c.role, 'viewer') as role, c.key is not null as mapped,
  r.fields -> 'permissions' as clerk_permissions
from app.clerk_records as r
left join app.clerk_roles as c on c.key = r.fields ->> 'key'
where r.kind = 'role'
order by key;
comment on view ops.clerk_roles is 'Roles that exist in Clerk and what each means here; insert into app.clerk_roles to map one.';

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
comment on view ops.audit_activity is 'Who did what how often in which organization, in the last 30 days.';
