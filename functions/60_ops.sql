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
