-- Tenants for the benchmark rls. The roles are in rls_variants.sql, because a test of query plans uses these tenants on a shared server.
-- Sizes come in settings bench.organizations, bench.users, bench.memberships (per user) and bench.projects.

-- Skips triggers and foreign keys, which would only take time: the loaded rows are consistent.
set session_replication_role = replica;

insert into public.organizations (clerk_org_id, name)
select 'org_' || i, 'Organization ' || i from generate_series(1, current_setting('bench.organizations')::integer) as i;

insert into public.profiles (clerk_user_id, full_name)
select 'user_' || i, 'Person ' || i from generate_series(1, current_setting('bench.users')::integer) as i;

-- All members may run all measured queries: they are owners and admins, with a second factor in their claims.
insert into public.organization_memberships (organization_id, user_id, role)
select o.id as organization_id, p.id as user_id, case when i % 2 = 0 then 'owner' else 'admin' end as role
from generate_series(1, current_setting('bench.users')::integer) as i
cross join generate_series(0, current_setting('bench.memberships')::integer - 1) as n
join public.profiles as p on p.clerk_user_id = 'user_' || i
join public.organizations as o on o.clerk_org_id = 'org_' || 1 + (i * 7 + n * 311) % current_setting('bench.organizations')::integer
on conflict do nothing;

-- In random organizations, each with a unique time, so that "the newest 50" has one answer.
insert into public.specimens (organization_id, title, description, created_at)
select o.ids[1 + floor(random() * cardinality(o.ids))], 'Project ' || i, repeat('What it is about. ', 5), now() - i * interval '1 second'
from (select array_agg(id) as ids from public.organizations) as o, generate_series(1, current_setting('bench.projects')::integer) as i;

reset session_replication_role;
