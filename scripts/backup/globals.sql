-- Lists what a dump of our schemas omits, as (kind, text). Kind `role` is the name of a role that the dump refers to.
-- Statements of kind `before` run before the dump is restored: they create roles and extensions, and revoke default privileges.
-- Statements of kind `after` run after it: policies on others' tables that call our functions, publications of our tables, and default
-- privileges. Every statement can be repeated.
with ours as (
  select oid from pg_namespace where nspname = any(%(schemas)s)
), relation as (
  select c.oid, c.relowner, c.relacl, format('%%I.%%I', n.nspname, c.relname) as name
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  where n.oid in (table ours)
), routine as (
  select p.oid, p.proowner, p.proacl from pg_proc as p where p.pronamespace in (table ours)
), acl as (
  select relacl as items from relation
  union all select a.attacl from pg_attribute as a join relation on relation.oid = a.attrelid
  union all select proacl from routine
  union all select n.nspacl from pg_namespace as n join ours using (oid)
  union all select d.defaclacl from pg_default_acl as d where d.defaclnamespace in (table ours) or d.defaclnamespace = 0
), named as (
  select relowner as role from relation
  union select proowner from routine
  union select n.nspowner from pg_namespace as n join ours using (oid)
  union select unnest(array[x.grantee, x.grantor]) from acl, aclexplode(acl.items) as x
  union select unnest(p.polroles) from pg_policy as p join relation on relation.oid = p.polrelid
  union select d.defaclrole from pg_default_acl as d where d.defaclnamespace in (table ours)
), policy as (
  select p.*, format('%%I on %%I.%%I', p.polname, n.nspname, c.relname) as name, format('%%I.%%I', n.nspname, c.relname) as of
  from pg_policy as p
  join pg_class as c on c.oid = p.polrelid
  join pg_namespace as n on n.oid = c.relnamespace
  where c.relnamespace not in (table ours) and exists (
    select
    from pg_depend as d
    join routine on routine.oid = d.refobjid and d.refclassid = 'pg_proc'::regclass
    where d.classid = 'pg_policy'::regclass and d.objid = p.oid
  )
), standing as ( -- default privileges of the roles that own our objects, which apply in every schema
  select d.defaclrole, d.defaclobjtype as kind, d.defaclacl as now, acldefault(
      case d.defaclobjtype when 'S' then 's' else d.defaclobjtype end, d.defaclrole
    ) as at_first
  from pg_default_acl as d
  where d.defaclnamespace = 0 and d.defaclrole in (select relowner from relation union select proowner from routine)
), role as (
  select r.rolname from pg_roles as r where r.oid in (table named) and r.rolname not like 'pg\_%%'
), statement as (
  select 0 as place, 'role' as kind, rolname::text as text from role
  union all
  select 1, 'before', format(
      'do $do$ begin if to_regrole(%%L) is null then create role %%I nologin; end if; end $do$', quote_ident(rolname), rolname
    )
  from role
  union all
  select 2, 'before', format('create schema if not exists %%I', n.nspname)
  from pg_extension as e
  join pg_namespace as n on n.oid = e.extnamespace
  where e.extname <> 'plpgsql' and n.nspname not in ('pg_catalog', 'public')
  union all
  select 3, 'before', format('create extension if not exists %%I schema %%I', e.extname, n.nspname)
  from pg_extension as e
  join pg_namespace as n on n.oid = e.extnamespace
  where e.extname <> 'plpgsql' and exists ( -- only extensions that our objects use
    select
    from pg_depend as d
    join pg_depend as member on member.classid = d.refclassid and member.objid = d.refobjid and member.deptype = 'e'
    where member.refobjid = e.oid and (
      d.classid = 'pg_class'::regclass and (d.objid in (select oid from relation) or d.objid in (
        select i.indexrelid from pg_index as i join relation on relation.oid = i.indrelid
      ))
      or d.classid = 'pg_proc'::regclass and d.objid in (select oid from routine)
      or d.classid = 'pg_attrdef'::regclass and d.objid in (select a.oid from pg_attrdef as a join relation on relation.oid = a.adrelid)
    )
  )
  union all
  -- A dump stores grants as differences from PostgreSQL's own defaults. A new Supabase project has other defaults, which would grant
  -- anon access to every restored table of public. So revoke them first.
  select 4, 'before', $text$
do $do$
declare
  change record;
begin
  for change in
    select
      case when n.oid is null then '' else format('in schema %%I ', n.nspname) end as place,
      case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types' end as kind,
      x.verb, x.privilege_type as privilege, case when x.grantee = 0 then 'public' else quote_ident(x.grantee::regrole::text) end as grantee
    from pg_default_acl as d
    left join pg_namespace as n on n.oid = d.defaclnamespace
    cross join lateral (
      select case when n.oid is null then acldefault(case d.defaclobjtype when 'S' then 's' else d.defaclobjtype end, d.defaclrole) end as items
    ) as normal
    cross join lateral (
      select 'revoke' as verb, g.* from aclexplode(d.defaclacl) as g
      where (g.grantee, g.privilege_type) not in (select u.grantee, u.privilege_type from aclexplode(normal.items) as u)
      union all
      select 'grant', u.* from aclexplode(normal.items) as u
      where (u.grantee, u.privilege_type) not in (select g.grantee, g.privilege_type from aclexplode(d.defaclacl) as g)
    ) as x
    where d.defaclrole = current_user::regrole and d.defaclobjtype <> 'n'
      and (n.oid is null or n.nspname in ('public', 'app', 'ops', 'supabase_migrations'))
  loop
    execute format(
      'alter default privileges %%s%%s %%s on %%s %%s %%s', change.place, change.verb, change.privilege, change.kind,
      case change.verb when 'grant' then 'to' else 'from' end, change.grantee
    );
  end loop;
end;
$do$$text$
  union all
  -- A Supabase table may not exist yet. If a restored database lacks its policies, the check of the structure reports it.
  select 5, 'after', format(
      'do $do$ begin if to_regclass(%%L) is not null then execute %%L; execute %%L; end if; end $do$', of, 'drop policy if exists ' || name,
      concat_ws(
        ' ', 'create policy', name, case when polpermissive then 'as permissive' else 'as restrictive' end,
        'for', case polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
        'to', (
          select string_agg(case when role = 0 then 'public' else quote_ident(role::regrole::text) end, ', ') from unnest(polroles) as role
        ),
        'using (' || pg_get_expr(polqual, polrelid) || ')', 'with check (' || pg_get_expr(polwithcheck, polrelid) || ')'
      )
    )
  from policy
  union all
  select distinct 7, 'after', format(
      'do $do$ begin if not exists (select from pg_publication where pubname = %%L) then create publication %%I; end if; end $do$',
      p.pubname, p.pubname
    )
  from pg_publication_rel as pr
  join pg_publication as p on p.oid = pr.prpubid
  join relation on relation.oid = pr.prrelid
  union all
  select 8, 'after', format(
      'do $do$ begin if not exists (select from pg_publication_rel as r join pg_publication as p on p.oid = r.prpubid where p.pubname = %%L and r.prrelid = %%L::regclass) then alter publication %%I add table %%s; end if; end $do$',
      p.pubname, relation.name, p.pubname, relation.name
    )
  from pg_publication_rel as pr
  join pg_publication as p on p.oid = pr.prpubid
  join relation on relation.oid = pr.prrelid
  union all
  select case x.verb when 'revoke' then 9 else 10 end, 'after', format(
      'alter default privileges %%s %%s on %%s %%s %%s', x.verb, x.privilege_type,
      case s.kind when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types' else 'schemas' end,
      case x.verb when 'grant' then 'to' else 'from' end, case when x.grantee = 0 then 'public' else quote_ident(x.grantee::regrole::text) end
    )
  from standing as s
  cross join lateral (
    select 'revoke' as verb, f.* from aclexplode(s.at_first) as f
    where (f.grantee, f.privilege_type) not in (select n.grantee, n.privilege_type from aclexplode(s.now) as n)
    union all
    select 'grant', n.* from aclexplode(s.now) as n
    where (n.grantee, n.privilege_type) not in (select f.grantee, f.privilege_type from aclexplode(s.at_first) as f)
  ) as x
  where x.grantee <> s.defaclrole
)
select kind, text from statement order by place, text;
