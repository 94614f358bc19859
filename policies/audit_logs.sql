-- Read with audit:read. No API role may write. subject_ids and mentions are not granted: what they hold depends on other tenants' people,
-- or identifies people across tenants.
grant select (
  id, organization_id, user_id, actor, impersonator, action, resource_type, resource_id, changes, metadata,
  ip_address, user_agent, request_id, created_at
) on public.audit_logs to authenticated;

create policy "read with audit:read" on public.audit_logs for select to authenticated
using (organization_id = any((select app.org_ids('audit:read'))::uuid[]));
