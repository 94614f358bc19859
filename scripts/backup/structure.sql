-- Lists the objects of a backup's schemas as (kind, name, definition). A restored database must have exactly these.
-- Definitions contain names instead of numbers, because a restored column may have another position. The list includes objects that a
-- dump omits, such as policies on realtime tables that call our functions, and publications of our tables.
with extension_member as (
  select classid, objid from pg_depend where deptype = 'e'
), ours as (
  select oid, nspname from pg_namespace where nspname = any(%(schemas)s)
), relation as (
  select c.*, format('%%I.%%I', ours.nspname, c.relname) as name
  from pg_class as c
  join ours on ours.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and ('pg_class'::regclass, c.oid) not in (table extension_member)
), routine as (
  select p.*, format('%%I.%%I(%%s)', ours.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name
  from pg_proc as p
  join ours on ours.oid = p.pronamespace
  where ('pg_proc'::regclass, p.oid) not in (table extension_member)
), guarded as ( -- others' tables with policies that call our functions
  select c.oid, format('%%I.%%I', n.nspname, c.relname) as name
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  where n.nspname <> all(%(schemas)s) and c.oid in (
    select p.polrelid
    from pg_policy as p
    join pg_depend as d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_proc'::regclass
    join routine on routine.oid = d.refobjid
  )
), privilege as (
  select relation.name, relowner as owner, '' as part, acl.*
  from relation, aclexplode(coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))) as acl
  union all
  select relation.name, relowner, format(' (%%I)', a.attname), acl.*
  from relation
  join pg_attribute as a on a.attrelid = relation.oid and not a.attisdropped
  cross join aclexplode(a.attacl) as acl
  union all
  select routine.name, proowner, '', acl.*
  from routine, aclexplode(coalesce(proacl, acldefault('f', proowner))) as acl
  union all
  select 'schema ' || n.nspname, n.nspowner, '', acl.*
  from pg_namespace as n
  join ours using (oid)
  cross join aclexplode(n.nspacl) as acl
)
select 'table' as kind, name, concat_ws(
    ' ', relkind, relpersistence, case when relrowsecurity then 'row security' end, case when relforcerowsecurity then 'forced' end,
    pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid), reloptions
  ) as definition
from relation
where relkind <> 'v'
union all
select 'column', format('%%s.%%I', relation.name, a.attname), concat_ws(
    ' ', format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end, a.attidentity, a.attgenerated,
    pg_get_expr(d.adbin, d.adrelid), col_description(relation.oid, a.attnum)
  )
from relation
join pg_attribute as a on a.attrelid = relation.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
where relation.relkind <> 'S'
union all
select 'constraint', format('%%I on %%s', k.conname, relation.name), concat_ws(
    ' ', pg_get_constraintdef(k.oid), case when not k.convalidated then 'not validated' end
  )
from pg_constraint as k
join relation on relation.oid = k.conrelid
where k.contype <> 'n' -- not null, which only PostgreSQL 18 lists here
union all
select 'index', format('%%I on %%s', i.relname, relation.name), concat_ws(' ', pg_get_indexdef(i.oid), case when not x.indisvalid then 'invalid' end)
from pg_index as x
join pg_class as i on i.oid = x.indexrelid
join relation on relation.oid = x.indrelid
union all
select 'function', name, case when prokind = 'a' then '' else pg_get_functiondef(oid) end
from routine
union all
select 'view', name, concat_ws(' ', reloptions, pg_get_viewdef(oid))
from relation
where relkind in ('v', 'm')
union all
select 'trigger', format('%%I on %%s', t.tgname, relation.name), concat_ws(' ', t.tgenabled, pg_get_triggerdef(t.oid))
from pg_trigger as t
join relation on relation.oid = t.tgrelid
where not t.tgisinternal
union all
select 'policy', format('%%I on %%s', p.polname, r.name), concat_ws(
    ' ', p.polcmd, p.polpermissive, array(
      select case when role = 0 then 'public' else role::regrole::text end from unnest(p.polroles) as role order by 1
    ), pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid)
  )
from pg_policy as p
join (select oid, name from relation union all table guarded) as r on r.oid = p.polrelid
union all
select 'grant', format('%%s%%s on %%s to %%s', lower(privilege_type), part, name,
  case when grantee = 0 then 'public' else grantee::regrole::text end), is_grantable::text
from privilege
where grantee <> owner
union all
select 'type', format('%%I.%%I', ours.nspname, t.typname), concat_ws(
    ' ', t.typtype, array(select e.enumlabel from pg_enum as e where e.enumtypid = t.oid order by e.enumsortorder),
    case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) end
  )
from pg_type as t
join ours on ours.oid = t.typnamespace
where t.typtype in ('e', 'd', 'r') and ('pg_type'::regclass, t.oid) not in (table extension_member)
union all
select 'publication', format('%%I of %%s', p.pubname, relation.name), ''
from pg_publication_rel as pr
join pg_publication as p on p.oid = pr.prpubid
join relation on relation.oid = pr.prrelid
union all
-- By name, and without MAINTAIN, which servers before PostgreSQL 17 do not have.
select 'default privilege', concat_ws(' ', d.defaclrole::regrole, n.nspname, d.defaclobjtype), array(
    select concat_ws(
      ' ', lower(g.privilege_type), 'to', case when g.grantee = 0 then 'public' else g.grantee::regrole::text end,
      case when g.is_grantable then 'with grant option' end
    )
    from aclexplode(d.defaclacl) as g where g.privilege_type <> 'MAINTAIN' order by 1
  )::text
from pg_default_acl as d
left join pg_namespace as n on n.oid = d.defaclnamespace
where d.defaclrole in (select relowner from relation union select proowner from routine)
  and (d.defaclnamespace = 0 or n.nspname = any(%(schemas)s));
