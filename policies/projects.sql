-- All access follows public.role_permissions. Clients may set neither the author nor, after creation, the organization.
grant select, delete on public.projects to authenticated;
grant insert (organization_id, title, description, status, metadata) on public.projects to authenticated;
grant update (title, description, status, metadata) on public.projects to authenticated;

create policy "read with projects:read" on public.projects for select to authenticated
using (organization_id = any((select app.org_ids('projects:read'))::uuid[]));

create policy "create with projects:create" on public.projects for insert to authenticated
with check (organization_id = any((select app.org_ids('projects:create'))::uuid[]));

create policy "update with projects:update" on public.projects for update to authenticated
using (organization_id = any((select app.org_ids('projects:update'))::uuid[]))
with check (organization_id = any((select app.org_ids('projects:update'))::uuid[]));

create policy "delete with projects:delete" on public.projects for delete to authenticated
using (organization_id = any((select app.org_ids('projects:delete'))::uuid[]));
