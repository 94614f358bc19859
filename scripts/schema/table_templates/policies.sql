-- All access follows public.role_permissions. Clients may set neither the author nor, after creation, the organization.
grant select, delete on public.{{ table.name }} to authenticated;
grant insert ({{ ("organization_id, " ~ table.listed) | wrap(44 + table.name | length) }}) on public.{{ table.name }} to authenticated;
grant update ({{ table.listed | wrap(44 + table.name | length) }}) on public.{{ table.name }} to authenticated;

create policy "read with {{ table.name }}:read" on public.{{ table.name }} for select to authenticated
using (organization_id = any((select app.org_ids('{{ table.name }}:read'))::uuid[]));

create policy "create with {{ table.name }}:create" on public.{{ table.name }} for insert to authenticated
with check (organization_id = any((select app.org_ids('{{ table.name }}:create'))::uuid[]));

create policy "update with {{ table.name }}:update" on public.{{ table.name }} for update to authenticated
using (organization_id = any((select app.org_ids('{{ table.name }}:update'))::uuid[]))
with check (organization_id = any((select app.org_ids('{{ table.name }}:update'))::uuid[]));

create policy "delete with {{ table.name }}:delete" on public.{{ table.name }} for delete to authenticated
using (organization_id = any((select app.org_ids('{{ table.name }}:delete'))::uuid[]));
