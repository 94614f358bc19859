-- People see themselves and, with members:read, their co-members. They change only themselves.
-- Co-members need not belong to the same other tenants: where somebody works now, when they were last seen and what they
-- prefer is not granted. public.start_session() tells a person their own.
grant select (id, clerk_user_id, email, full_name, avatar_url, banned, created_at, updated_at) on public.profiles to authenticated;
grant update (full_name, avatar_url, preferences, current_organization_id) on public.profiles to authenticated;

create policy "read own and co-members" on public.profiles for select to authenticated
using (id = any((select app.visible_profile_ids())::uuid[]));

create policy "update own" on public.profiles for update to authenticated
using (id = (select app.user_id()))
with check (id = (select app.user_id()));
