-- The roles of the API, for administrators: anon and authenticated see what policies and grants allow, service_role is the service, and
-- authenticator logs in for the Data API and becomes one of the three. On hosted Supabase `postgres` may change their settings and
-- memberships, but not their attributes.

create or replace view ops.role_faults with (security_invoker) as
with api as (
  select r.* from pg_roles as r
  where r.rolname in ('anon', 'authenticated', 'service_role', 'authenticator')
),

owner as (
  select n.nspowner as oid from pg_namespace as n
  where n.nspname = 'app'
),

-- A setting of a role in this database overrides one of the role, then one of the database, then one of all roles.
assigned as (
  select
    r.oid as role, r.rolname as role_name, split_part(c.pair, '=', 1) as name, substr(c.pair, strpos(c.pair, '=') + 1) as value,
    (s.setrole <> 0)::integer * 2 + (s.setdatabase <> 0)::integer as precedence,
    concat_ws(
      ' ', 'alter',
      case when s.setrole <> 0 then format('role %I', r.rolname) when s.setdatabase = 0 then 'role all' end,
      case
        when s.setrole <> 0 and s.setdatabase <> 0 then format('in database %I', current_database())
        when s.setdatabase <> 0 then format('database %I', current_database())
      end,
      'reset', split_part(c.pair, '=', 1)
    ) as remedy
  from pg_db_role_setting as s
  join pg_roles as r on s.setrole in (r.oid, 0)
  cross join unnest(s.setconfig) as c (pair)
  where s.setdatabase in (0, (
    select d.oid from pg_database as d
    where d.datname = current_database()
  ))
),

setting as (
  select distinct on (s.role, s.name) s.* from assigned as s
  order by s.role asc, s.name asc, s.precedence desc
)

select
  'red' as status, a.rolname::text as role,
  format('The role %s %s the attribute %s.', a.rolname, case when attribute.expected then 'lacks' else 'has' end, attribute.name) as fault,
  format(
    'Run `alter role %I %s%s` as a superuser. On hosted Supabase ask support to do it: `postgres` may not.',
    a.rolname, case when not attribute.expected then 'no' end, attribute.name
  ) as remedy
from api as a
cross join
  lateral (
    values
    ('superuser', a.rolsuper, false), ('bypassrls', a.rolbypassrls, a.rolname = 'service_role'), ('createrole', a.rolcreaterole, false),
    ('createdb', a.rolcreatedb, false), ('replication', a.rolreplication, false), ('login', a.rolcanlogin, a.rolname = 'authenticator'),
    ('inherit', a.rolinherit and a.rolname = 'authenticator', false)
  ) as attribute (name, found, expected)
where attribute.found <> attribute.expected
union all
-- authenticator may be a member of a product's own role, unless that role can do more than the three.
select
  'red', a.rolname, format('The role %s may act as %s.', a.rolname, g.rolname),
  format('Run `revoke %I from %I`. If the grant was not a mistake, find out who used it.', g.rolname, a.rolname)
from api as a
join pg_auth_members as m on a.oid = m.member
join pg_roles as g on m.roleid = g.oid
where
  case
    when a.rolname <> 'authenticator' then true
    when g.rolname in ('anon', 'authenticated', 'service_role') then false
    else exists (
      select from pg_roles as r
      where
        pg_has_role(g.oid, r.oid, 'member') and r.rolname <> 'service_role' and (
          r.rolsuper
          or r.rolbypassrls
          or r.rolcreaterole
          or r.rolreplication
          or r.rolname like 'pg\_%'
          or r.oid in (select o.oid from owner as o)
        )
    )
  end
union all
-- PostgreSQL 16 introduced this option. Without it authenticator has to become the role explicitly.
select
  'red', a.rolname, format('The role %s inherits the privileges of %s.', a.rolname, m.roleid::regrole),
  format('Run `grant %s to %I with inherit false`.', m.roleid::regrole, a.rolname)
from api as a
join pg_auth_members as m on a.oid = m.member
where a.rolname = 'authenticator' and to_jsonb(m) ->> 'inherit_option' = 'true'
union all
select
  case when rule.name = 'search_path' then 'yellow' else 'red' end, s.role_name, format(rule.fault, s.role_name, s.name, s.value),
  format('Run `%s`, then `notify pgrst, ''reload config''`.', s.remedy)
from setting as s
join (
  values
  ('search_path', 'The role %s has its own %s: %s. Names in its queries may mean other objects.'),
  ('role', 'The role %s starts every session with another %s: %s.'),
  ('pgrst.db_anon_role', 'The role %s sets %s: requests without a token act as %s.'),
  ('pgrst.db_schemas', 'The role %s sets %s to %s: the Data API shows a private schema.'),
  ('session_replication_role', 'The role %s sets %s to %s: triggers and foreign keys do nothing in its sessions.')
) as rule (name, fault) on s.name = rule.name
where
  case s.name
    when 'session_replication_role' then lower(s.value) = 'replica'
    when 'pgrst.db_anon_role' then s.role_name = 'authenticator' and s.value <> 'anon'
    when 'pgrst.db_schemas' then s.role_name = 'authenticator' and s.value ~ '\m(app|ops)\M'
    else s.role in (select a.oid from api as a)
  end
union all
select
  'yellow', t.role, format('Statements of the role %s have no timeout: a slow query can occupy a connection indefinitely.', t.role),
  format(
    'Run `alter role %I %sset statement_timeout = %L`, then `notify pgrst, ''reload config''`.',
    t.role, case s.precedence when 3 then format('in database %I ', current_database()) end, t.usual
  )
from (values ('anon', '3s'), ('authenticated', '8s'), ('authenticator', '8s')) as t (role, usual)
left join setting as s on t.role = s.role_name and s.name = 'statement_timeout'
where s.value is null or s.value ~ '^\s*0*(\.0*)?\s*[a-z]*$'
union all
select
  'red', g.role, format('New %s are granted to %s without any file saying so.', kind.name, g.role),
  format(
    'Run `alter default privileges for role %s %srevoke all on %s from %s`, then `ballast migrate check`.',
    d.defaclrole::regrole, 'in schema ' || n.nspname || ' ', kind.name, g.role
  )
from pg_default_acl as d
join owner as o on d.defaclrole = o.oid
left join pg_namespace as n on d.defaclnamespace = n.oid
cross join
  lateral (
    select distinct case e.grantee when 0 then 'public' else e.grantee::regrole::text end as role from aclexplode(d.defaclacl) as e
  ) as g
join (values ('r', 'tables'), ('S', 'sequences'), ('f', 'functions')) as kind (code, name) on d.defaclobjtype::text = kind.code
where coalesce(n.nspname, 'public') in ('public', 'app', 'ops') and g.role in ('public', 'anon', 'authenticated', 'service_role')
union all
select
  'red', 'public', 'Every role may execute a new function, until a file revokes it.',
  format('Run `alter default privileges for role %s revoke execute on functions from public`.', o.oid::regrole)
from owner as o
where not exists (
  select from pg_default_acl as d
  where d.defaclrole = o.oid and d.defaclnamespace = 0 and d.defaclobjtype = 'f'
);
comment on view ops.role_faults is
'Attributes, memberships, settings and default privileges by which the API''s roles can do more than intended, or run without a timeout. Empty if all is well.';

create or replace view ops.role_health with (security_invoker) as
select
  count(f.fault) as faults, coalesce((array_agg(f.status order by f.status, f.role, f.fault))[1], 'green') as status,
  coalesce((array_agg(f.fault || ' ' || f.remedy order by f.status, f.role, f.fault))[1], 'OK.')
  || case when count(f.fault) > 1 then format(' %s more in ops.role_faults.', count(f.fault) - 1) else '' end as advice
from ops.role_faults as f;
comment on view ops.role_health is 'Whether the API''s roles are as intended: one row. ops.role_faults lists the faults.';
