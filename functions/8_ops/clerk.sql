-- Clerk events that failed here, and changes that Clerk refused. Only administrators read schema ops: it has no grants.

create or replace view ops.webhook_failures with (security_invoker) as
select e.message_id, e.type, e.error, e.attempts, e.received_at, e.next_attempt_at
from app.webhook_events as e
where e.outcome = 'failed'
order by e.received_at;
comment on view ops.webhook_failures is
'Clerk events that could not be applied, oldest first. `ballast inbox retry` applies them again, `ballast inbox dismiss` gives one up.';

create or replace function ops.retry_webhook(message_id text) returns table (outcome text, error text)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if app.retry_clerk_event(retry_webhook.message_id) is null then
    raise exception 'No message % was received.', retry_webhook.message_id using hint = 'ops.webhook_failures lists the ids.';
  end if;
  return query select e.outcome, e.error from app.webhook_events as e where e.message_id = retry_webhook.message_id;
end;
$$;
comment on function ops.retry_webhook is 'Retries a failed event and returns its outcome. For an event that did not fail it returns the recorded outcome.';

-- For an event that can never be applied. It is not retried any more, a delivery by Clerk is a duplicate, and retention deletes it like an
-- applied one.
create or replace function ops.dismiss_webhook(message_id text, reason text, dismissed_by text default session_user) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  known app.webhook_events;
begin
  select e.* into known from app.webhook_events as e where e.message_id = message_id for update;
  if known.message_id is null then
    raise exception 'No message % was received.', message_id using hint = 'ops.webhook_failures lists the ids.';
  elsif known.outcome <> 'failed' then
    raise exception 'The outcome of % is %, so it cannot be dismissed.', message_id, known.outcome using hint = 'Only failed events can be dismissed.';
  elsif coalesce(btrim(reason), '') = '' then
    raise exception 'A dismissal needs a reason.' using hint = 'Pass the reason as the second argument.';
  end if;
  update app.webhook_events as e
  set
    outcome = 'dismissed', dismissed_by = dismissed_by, dismissal_reason = left(btrim(reason), 500), next_attempt_at = null, applied_at = now()
  where e.message_id = message_id;
  delete from app.event_failures as f where f.message_id = message_id;
  insert into public.audit_logs (actor, action, resource_type, resource_id, metadata, mentions)
  select
    'administrator', 'webhook.dismissed', 'webhook', message_id, m.metadata, app.hash_mentions(app.find_identifiers(m.metadata::text))
  from jsonb_build_object('type', known.type, 'reason', left(btrim(reason), 500), 'dismissed_by', dismissed_by) as m (metadata);
  return format('%s (%s) is dismissed. If Clerk has its data, `ballast clerk reconcile --fix` repairs what it would have changed.', message_id, known.type);
end;
$$;
comment on function ops.dismiss_webhook is
'Gives up a failed event, with the reason. Records who did it in the inbox and in the audit trail. The event is not applied any more.';

create or replace view ops.clerk_roles with (security_invoker) as
select
  r.fields ->> 'key' as key, r.fields ->> 'name' as name, coalesce(c.role, app.lowest_role()) as role, c.key is not null as mapped,
  r.fields -> 'permissions' as clerk_permissions
from app.clerk_records as r
left join app.clerk_roles as c on c.key = r.fields ->> 'key'
where r.kind = 'role'
order by key;
comment on view ops.clerk_roles is 'Clerk''s roles and the role that each maps to here. To map one, insert a row into app.clerk_roles.';

create or replace view ops.clerk_plans with (security_invoker) as
select
  i.plan, coalesce(i.tier, 'free') as tier, i.tier is not null as mapped, count(distinct i.organization_id) as organizations,
  case when i.tier is null then 'yellow' else 'green' end as status,
  case
    when i.plan is null then 'Clerk named no plan: look the subscription up in Clerk.'
    when i.tier is null then 'Map it: insert into app.clerk_plans (slug, tier) values (…).'
    else 'OK.'
  end as advice
from app.clerk_items_in_force as i
join public.organizations as o on i.organization_id = o.clerk_org_id and o.deleted_at is null
group by i.plan, i.tier
order by mapped asc, organizations desc, i.plan asc;
comment on view ops.clerk_plans is
'The plans that organizations subscribe to, and the tier that each maps to here. A yellow one has no mapping: organizations that pay only for it are on the free tier.';

create or replace view ops.refused_names with (security_invoker) as
select n.person_id, n.changed_at, n.attempts, n.error
from app.name_changes as n
where n.error is not null
order by n.changed_at;
comment on view ops.refused_names is 'Changed names that Clerk refused or could not store yet.';
