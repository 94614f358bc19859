-- Read with audit:read. Nobody writes through the API.
grant select on public.audit_logs to authenticated;

create policy "read with audit:read" on public.audit_logs for select to authenticated
using (organization_id = any((select app.org_ids('audit:read'))::uuid[]));
