-- The matrix is not secret: clients use it to show or hide buttons. Migrations change it.
grant select on public.role_permissions to authenticated;

create policy "everyone signed in reads" on public.role_permissions for select to authenticated
using (true);
