-- Read with members:read. Only the sync writes: Clerk sends and revokes invitations.
grant select on public.organization_invitations to authenticated;

create policy "read with members:read" on public.organization_invitations for select to authenticated
using (organization_id = any((select app.org_ids('members:read'))::uuid[]));
