-- How the service reads the audit trail for an export: pages of one tenant's entries, with the names of who did it.
-- People read through the table's policy.

create or replace view app.audit_entries with (security_invoker) as
select
  a.id, a.created_at, a.organization_id, coalesce(p.full_name, p.email, a.actor, 'an erased person') as actor, a.user_id, a.impersonator,
  a.action, a.resource_type, a.resource_id, a.metadata, a.changes, host(a.ip_address) as ip_address, a.user_agent, a.request_id
from public.audit_logs as a
left join public.profiles as p on a.user_id = p.id;
comment on view app.audit_entries is 'Audit entries, each with the name of who did it. Only definer functions read it.';

-- Newest first, behind a cursor: what is recorded after the first page comes on no page. The second condition says nothing new, and
-- lets the planner leave out the months behind the cursor.
create or replace function public.audit_page(
  organization_id uuid, from_ timestamptz, before_time timestamptz, before_id uuid, page integer
) returns setof app.audit_entries
language sql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select e.*
  from app.audit_entries as e
  where
    e.organization_id = audit_page.organization_id
    and (e.created_at, e.id) < (audit_page.before_time, audit_page.before_id)
    and e.created_at <= audit_page.before_time
    and e.created_at >= audit_page.from_
  order by e.created_at desc, e.id desc
  limit audit_page.page;
$$;
comment on function public.audit_page is
'Up to `page` of the organization''s entries since `from_`, newest first, older than the entry (before_time, before_id). Does not check the caller''s permission. Definer: the service has no privilege on tables.';

grant execute on function public.audit_page(uuid, timestamptz, timestamptz, uuid, integer) to service_role;
