-- One role per way to protect public.specimens, for the benchmark rls: the rows, indexes and caches are the same for all.
-- Roles belong to the whole server: run this on a server of its own.

-- No RLS: what an application does that knows its caller's organizations and never forgets to name them.
create role bench_by_hand nologin bypassrls;
grant bench_by_hand to authenticator;
grant usage on schema public, app to bench_by_hand;
grant select, insert on public.specimens to bench_by_hand;
grant select on public.organization_memberships to bench_by_hand;

-- The specification's policies, with app.user_id() in place of auth.uid(), which raises on Clerk's ids, and called once
-- instead of once a row; on memberships without its recursion, which PostgreSQL refuses.
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
