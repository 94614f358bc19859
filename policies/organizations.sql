-- Members read their organization. organization:update allows changing name and settings. Only the sync writes the other columns.
grant select on public.organizations to authenticated;
grant update (name, settings) on public.organizations to authenticated;

create policy "members read" on public.organizations for select to authenticated
using (id = any((select app.own_org_ids())::uuid[]));

create policy "update with organization:update" on public.organizations for update to authenticated
using (id = any((select app.org_ids('organization:update'))::uuid[]))
with check (id = any((select app.org_ids('organization:update'))::uuid[]));
