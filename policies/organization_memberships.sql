-- Read with members:read. Only the sync writes: Clerk decides who belongs.
grant select on public.organization_memberships to authenticated;

create policy "read with members:read" on public.organization_memberships for select to authenticated
using (organization_id = any((select app.org_ids('members:read'))::uuid[]));
