-- Read with audit:read. No API role may write.
grant select on public.audit_logs to authenticated;

create policy "read with audit:read" on public.audit_logs for select to authenticated
using (organization_id = any((select app.org_ids('audit:read'))::uuid[]));
