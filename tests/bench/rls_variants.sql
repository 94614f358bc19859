-- One role per way to protect public.specimens, for the benchmark rls. All roles use the same rows, indexes and caches.
-- Roles belong to the whole server, so run this on a temporary server.

-- No RLS: an application that always filters by its caller's organizations.
create role bench_by_hand nologin bypassrls;
grant bench_by_hand to authenticator;
grant usage on schema public, app to bench_by_hand;
grant select, insert on public.specimens to bench_by_hand;
grant select on public.organization_memberships to bench_by_hand;

-- The policies of the specification with two changes. They call app.user_id() once per statement instead of auth.uid() per row, which
-- raises on Clerk ids. The policy on memberships is not recursive, because PostgreSQL refuses that.
create role bench_exists nologin;
grant bench_exists to authenticator;
grant usage on schema public, app to bench_exists;
grant select, insert on public.specimens to bench_exists;
grant select on public.organization_memberships to bench_exists;
grant execute on function app.user_id() to bench_exists;

create policy "bench: own memberships" on public.organization_memberships for select to bench_exists
using (user_id = (select app.user_id()));

create policy "bench: viewable by members" on public.specimens for select to bench_exists
using (exists (
  select from public.organization_memberships as m
  where m.organization_id = specimens.organization_id and m.user_id = (select app.user_id())
));

create policy "bench: manageable by members" on public.specimens for all to bench_exists
using (exists (
  select from public.organization_memberships as m
  where m.organization_id = specimens.organization_id and m.user_id = (select app.user_id()) and m.role in ('owner', 'admin', 'member')
));
