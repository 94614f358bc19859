-- People see themselves and, with members:read, their co-members. They change only themselves.
grant select on public.profiles to authenticated;
grant update (full_name, avatar_url, preferences, current_organization_id) on public.profiles to authenticated;

create policy "read own and co-members" on public.profiles for select to authenticated
using (id = any((select app.visible_profile_ids())::uuid[]));

create policy "update own, inside own organizations" on public.profiles for update to authenticated
using (id = (select app.user_id()))
with check (
  id = (select app.user_id())
  and (current_organization_id is null or current_organization_id = any((select app.own_org_ids())::uuid[]))
);
