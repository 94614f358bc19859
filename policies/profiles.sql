-- People read their own profile and, with members:read, those of their co-members. They change only their own.
-- Co-members need not share all organizations, so current_organization_id, last_seen_at and preferences are not granted.
-- public.start_session() returns a person's own values.
grant select (id, clerk_user_id, email, full_name, avatar_url, banned, created_at, updated_at) on public.profiles to authenticated;
grant update (full_name, avatar_url, preferences, current_organization_id) on public.profiles to authenticated;

create policy "read own and co-members" on public.profiles for select to authenticated
using (id = any((select app.visible_profile_ids())::uuid[]));

create policy "update own" on public.profiles for update to authenticated
using (id = (select app.user_id()))
with check (id = (select app.user_id()));
