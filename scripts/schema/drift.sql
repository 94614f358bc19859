-- Our objects in public, app and ops as (kind, name, definition, place). Tables have no definition, because migrations create them.
-- realtime.messages is listed too: Supabase owns the table, but its policies are ours.
-- `place` is the ctid of the catalogue row of an object that a file creates. It changes with each `create or replace`.
with extension_member as (
  select classid, objid from pg_depend where deptype = 'e'
), relation as (
  select c.oid, c.relkind, c.relacl, c.relowner, c.reloptions, format('%I.%I', n.nspname, c.relname) as name
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  where (
      n.nspname in ('public', 'app', 'ops') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and pg_has_role(c.relowner, 'usage')
      or n.nspname = 'realtime' and c.relname = 'messages'
    ) and ('pg_class'::regclass, c.oid) not in (table extension_member)
), routine as (
  select p.oid, p.ctid, p.prokind, p.proacl, p.proowner,
    format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name
  from pg_proc as p
  join pg_namespace as n on n.oid = p.pronamespace
  where n.nspname in ('public', 'app', 'ops')
    and pg_has_role(p.proowner, 'usage') and ('pg_proc'::regclass, p.oid) not in (table extension_member)
), privilege as (
  select relation.name, relowner as owner, '' as part, acl.*
  from relation, aclexplode(relacl) as acl
  union all
  select relation.name, relowner, format(' (%I)', a.attname), acl.*
  from relation
  join pg_attribute as a on a.attrelid = relation.oid and not a.attisdropped
  cross join aclexplode(a.attacl) as acl
  union all
  select routine.name, proowner, '', acl.*
  from routine, aclexplode(coalesce(proacl, acldefault('f', proowner))) as acl
)
select 'table' as kind, name, '' as definition, null as place
from relation
union all
select 'function', name, case when prokind = 'a' then '' else pg_get_functiondef(oid) end, ctid::text
from routine
union all
select 'view', relation.name, concat_ws(' ', reloptions, pg_get_viewdef(relation.oid)), r.ctid::text
from relation
join pg_rewrite as r on r.ev_class = relation.oid
where relkind = 'v' and r.rulename = '_RETURN'
union all
select 'trigger', format('%I on %s', t.tgname, relation.name), concat_ws(' ', t.tgenabled, pg_get_triggerdef(t.oid)), t.ctid::text
from relation
join pg_trigger as t on t.tgrelid = relation.oid and not t.tgisinternal and t.tgparentid = 0
join routine on routine.oid = t.tgfoid
union all
select 'policy', format('%I on %s', p.polname, relation.name),
  concat_ws(' ', p.polcmd, p.polpermissive, array(select r::regrole::text from unnest(p.polroles) as r order by 1),
    pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid)), null
from relation
join pg_policy as p on p.polrelid = relation.oid
union all
select 'default', format('%s.%I', relation.name, a.attname), pg_get_expr(d.adbin, d.adrelid), null
from relation
join pg_attrdef as d on d.adrelid = relation.oid
join pg_attribute as a on a.attrelid = d.adrelid and a.attnum = d.adnum
union all
select 'grant', format('%s%s on %s to %s', lower(privilege_type), part, name,
  case when grantee = 0 then 'public' else grantee::regrole::text end), is_grantable::text, null
from privilege
where grantee <> owner;
