-- Roles are not secret: clients show their names. Migrations change them.
grant select on public.roles to authenticated;

create policy "everyone signed in reads" on public.roles for select to authenticated
using (true);
