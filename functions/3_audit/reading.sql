-- Pages of one tenant's audit entries, with the actors' names. The service exports them as CSV. People read the table through its policy.

create or replace view app.audit_entries with (security_invoker) as
select
  a.id, a.created_at, a.organization_id, coalesce(p.full_name, p.email, a.actor, 'an erased person') as actor, a.user_id, a.impersonator,
  a.action, a.resource_type, a.resource_id, a.metadata, a.changes, host(a.ip_address) as ip_address, a.user_agent, a.request_id
from public.audit_logs as a
left join public.profiles as p on a.user_id = p.id;
comment on view app.audit_entries is 'Audit entries, each with the name of its actor. Only definer functions read it.';

-- Newest first, with a cursor, so entries recorded after the first page are on no later page. The condition on created_at alone is
-- redundant, but lets the planner skip the partitions after the cursor.
--
-- Members choose how large entries are, so a page also ends after the entry that makes it exceed 2 MB. Rows are measured one at a time: a
-- window function would read all of them for each page.
create or replace function public.audit_page(
  organization_id uuid, since timestamptz, before_time timestamptz, before_id uuid, page integer
) returns setof app.audit_entries
language plpgsql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  entry app.audit_entries;
  bytes bigint := 0;
begin
  perform app.refuse_clerk_tokens();
  for entry in
    select e.*
    from app.audit_entries as e
    where
      e.organization_id = audit_page.organization_id
      and (e.created_at, e.id) < (audit_page.before_time, audit_page.before_id)
      and e.created_at <= audit_page.before_time
      and e.created_at >= audit_page.since
    order by e.created_at desc, e.id desc
    limit audit_page.page
  loop
    return next entry;
    bytes := bytes + octet_length(entry.metadata::text) + coalesce(octet_length(entry.changes::text), 0);
    exit when bytes > 2000000;
  end loop;
end;
$$;
comment on function public.audit_page is
'Up to `page` of the organization''s entries and about 2 MB, newest first: not older than `since`, and older than the entry (before_time, before_id). An empty page is the end. Does not check the caller''s permission. Definer: the service has no privilege on tables.';

grant execute on function public.audit_page(uuid, timestamptz, timestamptz, uuid, integer) to service_role;
