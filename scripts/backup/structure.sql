-- Lists the objects of a backup's schemas as (kind, name, facts, statement). A restored database must have exactly these.
-- `facts` are compared as they are. They contain names instead of numbers, because a restored column may have another position.
-- `statement` replaces the object by a new one with the same definition. Where PostgreSQL prints an expression differently after a restore,
-- structure.py runs the backup's statement, and compares what PostgreSQL prints then. What inherits its definition has no statement:
-- PostgreSQL itself keeps it equal to its parent's.
-- The list includes objects that a dump omits, such as policies on realtime tables that call our functions, and publications of our tables.
with extension_member as (
  select classid, objid from pg_depend where deptype = 'e'
), ours as (
  select oid, nspname, nspowner, nspacl from pg_namespace where nspname = any(%(schemas)s)
), relation as (
  select c.*, ours.nspname, format('%%I.%%I', ours.nspname, c.relname) as name
  from pg_class as c
  join ours on ours.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') and ('pg_class'::regclass, c.oid) not in (table extension_member)
), col as (
  select
    a.*, relation.relkind, relation.name as relation, format('%%s.%%I', relation.name, a.attname) as name, t.typstorage, t.typcollation,
    pg_get_expr(d.adbin, d.adrelid) as expression, format_type(a.atttypid, a.atttypmod) as type,
    case when a.attcollation <> t.typcollation then 'collate ' || (
      select format('%%I.%%I', n.nspname, k.collname) from pg_collation as k join pg_namespace as n on n.oid = k.collnamespace where k.oid = a.attcollation
    ) end as collated
  from relation
  join pg_attribute as a on a.attrelid = relation.oid and a.attnum > 0 and not a.attisdropped
  join pg_type as t on t.oid = a.atttypid
  left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
  where relation.relkind <> 'S'
), routine as (
  select p.*, format('%%I.%%I(%%s)', ours.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name
  from pg_proc as p
  join ours on ours.oid = p.pronamespace
  where ('pg_proc'::regclass, p.oid) not in (table extension_member)
), type as (
  select t.*, format('%%I.%%I', ours.nspname, t.typname) as name
  from pg_type as t
  join ours on ours.oid = t.typnamespace
  where t.typtype in ('e', 'd', 'r') and ('pg_type'::regclass, t.oid) not in (table extension_member)
), index as (
  select i.oid, i.relname, i.reloptions, x.*, relation.name as relation, n.nspname, k.contype, p.inhparent
  from pg_index as x
  join pg_class as i on i.oid = x.indexrelid
  join pg_namespace as n on n.oid = i.relnamespace
  join relation on relation.oid = x.indrelid
  left join pg_constraint as k on k.conindid = i.oid and k.contype in ('p', 'u', 'x')
  left join pg_inherits as p on p.inhrelid = i.oid
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
  where relkind <> 'c'
  union all
  select col.relation, relation.relowner, format(' (%%I)', col.attname), acl.*
  from col
  join relation on relation.oid = col.attrelid
  cross join aclexplode(col.attacl) as acl
  union all
  select routine.name, proowner, '', acl.*
  from routine, aclexplode(coalesce(proacl, acldefault('f', proowner))) as acl
  union all
  select 'type ' || type.name, typowner, '', acl.*
  from type, aclexplode(coalesce(typacl, acldefault('T', typowner))) as acl
  union all
  select 'schema ' || nspname, nspowner, '', acl.*
  from ours, aclexplode(nspacl) as acl
), domain_constraint as (
  select k.conname, k.convalidated, type.name, pg_get_constraintdef(k.oid) as definition
  from pg_constraint as k
  join type on type.oid = k.contypid
  where k.contype <> 'n'
), check_constraint as (
  select k.conname, k.convalidated, k.contype, relation.name, pg_get_constraintdef(k.oid) as definition, k.coninhcount > 0 or k.conparentid <> 0 as is_inherited
  from pg_constraint as k
  join relation on relation.oid = k.conrelid
  where k.contype <> 'n' -- not null, which only PostgreSQL 18 lists here
)
select 'schema' as kind, nspname::text as name, '' as facts, null::text as statement from ours
union all
select 'table', name, concat_ws(
    ' ', relkind, relpersistence, (select amname from pg_am where pg_am.oid = relam), case when relrowsecurity then 'row security' end,
    case when relforcerowsecurity then 'forced' end, pg_get_expr(relpartbound, relation.oid), reloptions,
    'toast ' || (select t.reloptions::text from pg_class as t where t.oid = reltoastrelid), 'replica identity ' || nullif(relreplident, 'd')::text,
    'of ' || format_type(nullif(reloftype, 0), null),
    (select concat_ws(' ', s.srvname, f.ftoptions) from pg_foreign_table as f join pg_foreign_server as s on s.oid = f.ftserver where f.ftrelid = relation.oid),
    'inherits ' || (
      select string_agg(format('%%I.%%I', n.nspname, c.relname), ', ' order by i.inhseqno)
      from pg_inherits as i join pg_class as c on c.oid = i.inhparent join pg_namespace as n on n.oid = c.relnamespace where i.inhrelid = relation.oid
    )
  ), null
from relation
where relkind <> 'v'
union all
select 'partition key', name, '', format(
    'alter table %%1$s rename to %%2$I; create table %%1$s (like %%3$I.%%2$I) partition by %%4$s',
    name, 'aside_' || md5(name), nspname, pg_get_partkeydef(oid)
  )
from relation
where relkind = 'p'
union all
select 'column', name, concat_ws(' ', type, collated, case when attidentity <> '' then 'identity ' || attidentity::text end, case when attgenerated <> '' then 'generated ' || attgenerated::text end), null
from col
union all
select 'options of column', name, concat_ws(
    ' ', case when attnotnull then 'not null' end, case when attstorage <> typstorage then 'storage ' || attstorage::text end, 'compression ' || nullif(attcompression::text, ''),
    'statistics ' || nullif(attstattarget, -1), attoptions, attfdwoptions
  ), null
from col
union all
select 'default', name, '', format('alter table only %%s alter column %%I set default %%s', relation, attname, expression)
from col
where attgenerated = '' and expression is not null
union all
-- In a copy without rows, because adding the columns rewrites the whole table.
select 'generated columns', 'of ' || relation.name, '', format(
    'alter table %%1$s rename to %%2$I; create table %%1$s (like %%3$I.%%2$I); alter table %%1$s %%4$s', relation.name, 'aside_' || md5(relation.name),
    relation.nspname, string_agg(format(
      'drop column %%1$I, add column %%1$I %%2$s generated always as (%%3$s) %%4$s', attname, concat_ws(' ', type, collated), expression,
      case attgenerated when 's' then 'stored' else 'virtual' end
    ), ', ' order by attname)
  )
from col
join relation on relation.oid = col.attrelid
where attgenerated <> ''
group by relation.name, relation.nspname
union all
select 'constraint', format('%%I on %%s', conname, name), concat_ws(
    ' ', contype, case when not convalidated then 'not validated' end, case when is_inherited then 'inherited' when contype not in ('c', 'x') then definition end
  ), case
    when not is_inherited and contype in ('c', 'x') then format(
      'alter table %%1$s drop constraint %%2$I; alter table %%1$s add constraint %%2$I %%3$s', name, conname,
      case when contype = 'x' or definition ~ ' NOT (VALID|ENFORCED)$' then definition else definition || ' NOT VALID' end
    )
  end
from check_constraint
union all
select 'index', format('%%I on %%s', relname, relation), concat_ws(
    ' ', case when not indisvalid then 'invalid' end, case when indisclustered then 'clustered' end, case when indisreplident then 'replica identity' end,
    'of ' || inhparent::regclass, 'statistics ' || (
      select string_agg(format('%%s %%s', a.attnum, a.attstattarget), ', ' order by a.attnum) from pg_attribute as a where a.attrelid = index.oid and a.attstattarget >= 0
    ), case when inhparent is not null or contype = 'x' then reloptions::text when contype is not null then pg_get_indexdef(oid) end
  ), case
    when inhparent is null and contype is null then format('alter index %%I.%%I rename to %%I; %%s', nspname, relname, 'aside_' || md5(relname), pg_get_indexdef(oid))
  end
from index
union all
select 'function', name, '', pg_get_functiondef(oid)
from routine
where prokind <> 'a'
union all
select 'aggregate', name, concat_ws(
    ' ', a.aggkind, a.aggnumdirectargs, a.aggtransfn::regprocedure, a.aggfinalfn::regprocedure, a.aggcombinefn::regprocedure, a.aggserialfn::regprocedure,
    a.aggdeserialfn::regprocedure, a.aggmtransfn::regprocedure, a.aggminvtransfn::regprocedure, a.aggmfinalfn::regprocedure, a.aggfinalextra,
    a.aggmfinalextra, a.aggfinalmodify, a.aggmfinalmodify, a.aggsortop::regoperator, a.aggtranstype::regtype, a.aggtransspace, a.aggmtranstype::regtype,
    a.aggmtransspace, quote_nullable(a.agginitval), quote_nullable(a.aggminitval), proparallel
  ), null
from routine
join pg_aggregate as a on a.aggfnoid = routine.oid
union all
select 'view', name, concat_ws(' ', reloptions), format('create or replace view %%s as %%s', name, pg_get_viewdef(oid))
from relation
where relkind = 'v'
union all
select 'materialized view', name, case when not relispopulated then 'not populated' else '' end, format(
    'alter materialized view %%1$s rename to %%2$I; create materialized view %%1$s as %%3$s with no data', name, 'aside_' || md5(name), rtrim(pg_get_viewdef(oid), ';')
  )
from relation
where relkind = 'm'
union all
select 'rule', format('%%I on %%s', r.rulename, relation.name), r.ev_enabled::text, format('drop rule %%I on %%s; %%s', r.rulename, relation.name, pg_get_ruledef(r.oid))
from pg_rewrite as r
join relation on relation.oid = r.ev_class
where r.rulename <> '_RETURN'
union all
select 'trigger', format('%%I on %%s', t.tgname, relation.name), concat_ws(' ', t.tgenabled, case when t.tgparentid <> 0 then 'inherited' end), case
    when t.tgparentid = 0 then format('drop trigger %%I on %%s; %%s', t.tgname, relation.name, pg_get_triggerdef(t.oid))
  end
from pg_trigger as t
join relation on relation.oid = t.tgrelid
where not t.tgisinternal
union all
select 'policy', format('%%I on %%s', p.polname, r.name), '', concat_ws(
    ' ', format('drop policy %%1$I on %%2$s; create policy %%1$I on %%2$s', p.polname, r.name), case when p.polpermissive then 'as permissive' else 'as restrictive' end,
    'for', case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end, 'to', array_to_string(array(
      select case when role = 0 then 'public' else quote_ident(rolname) end from unnest(p.polroles) as role left join pg_roles on pg_roles.oid = role order by rolname
    ), ', '), 'using (' || pg_get_expr(p.polqual, p.polrelid) || ')', 'with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'
  )
from pg_policy as p
join (select oid, name from relation union all table guarded) as r on r.oid = p.polrelid
union all
select 'statistics', format('%%I.%%I', ours.nspname, s.stxname), concat_ws(' ', nullif(s.stxstattarget, -1)), format(
    'drop statistics %%I.%%I; %%s', ours.nspname, s.stxname, pg_get_statisticsobjdef(s.oid)
  )
from pg_statistic_ext as s
join ours on ours.oid = s.stxnamespace
union all
select 'grant', format('%%s%%s on %%s to %%s', lower(privilege_type), part, name, case when grantee = 0 then 'public' else grantee::regrole::text end),
  case when is_grantable then 'with grant option' else '' end, null
from privilege
where grantee <> owner
union all
select 'type', name, concat_ws(
    ' ', typtype, array(select e.enumlabel from pg_enum as e where e.enumtypid = type.oid order by e.enumsortorder),
    case when typtype = 'd' then concat_ws(' ', format_type(typbasetype, typtypmod), nullif(typcollation, 0)::regcollation, case when typnotnull then 'not null' end) end,
    (
      select concat_ws(' ', format_type(r.rngsubtype, null), o.opcname, nullif(r.rngcollation, 0)::regcollation, r.rngcanonical, r.rngsubdiff, format_type(r.rngmultitypid, null))
      from pg_range as r join pg_opclass as o on o.oid = r.rngsubopc where r.rngtypid = type.oid
    )
  ), null
from type
union all
select 'default of domain', name, '', format('alter domain %%s set default %%s', name, coalesce(pg_get_expr(typdefaultbin, 0), quote_literal(typdefault)))
from type
where typtype = 'd' and typdefault is not null
union all
select 'constraint', format('%%I on %%s', conname, name), case when convalidated then '' else 'not validated' end, format(
    'alter domain %%1$s drop constraint %%2$I; alter domain %%1$s add constraint %%2$I %%3$s', name, conname,
    case when definition ~ ' NOT VALID$' then definition else definition || ' NOT VALID' end
  )
from domain_constraint
union all
select 'sequence', relation.name, concat_ws(
    ' ', format_type(s.seqtypid, null), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
    'owned by ' || (
      select col.name from pg_depend as d join col on col.attrelid = d.refobjid and col.attnum = d.refobjsubid
      where d.classid = 'pg_class'::regclass and d.objid = relation.oid and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
    )
  ), null
from pg_sequence as s
join relation on relation.oid = s.seqrelid
union all
select 'operator', o.oid::regoperator::text, concat_ws(
    ' ', o.oprcode::regprocedure, o.oprcom::regoperator, o.oprnegate::regoperator, o.oprrest, o.oprjoin, o.oprcanmerge, o.oprcanhash
  ), null
from pg_operator as o
join ours on ours.oid = o.oprnamespace
where ('pg_operator'::regclass, o.oid) not in (table extension_member)
union all
select 'operator class', format('%%I.%%I using %%I', ours.nspname, o.opcname, m.amname), concat_ws(
    ' ', (select format('%%I.%%I', n.nspname, f.opfname) from pg_opfamily as f join pg_namespace as n on n.oid = f.opfnamespace where f.oid = o.opcfamily),
    format_type(o.opcintype, null), format_type(nullif(o.opckeytype, 0), null), o.opcdefault
  ), null
from pg_opclass as o
join ours on ours.oid = o.opcnamespace
join pg_am as m on m.oid = o.opcmethod
where ('pg_opclass'::regclass, o.oid) not in (table extension_member)
union all
select 'operator family', format('%%I.%%I using %%I', ours.nspname, f.opfname, m.amname), concat_ws(
    ' ', array(
      select concat_ws(' ', a.amopstrategy, a.amoppurpose, a.amopopr::regoperator, nullif(a.amopsortfamily, 0)::bigint) from pg_amop as a where a.amopfamily = f.oid order by a.amopstrategy, a.amopopr::regoperator::text collate "C"
    ), array(
      select concat_ws(' ', a.amprocnum, a.amproclefttype::regtype, a.amprocrighttype::regtype, a.amproc::regprocedure) from pg_amproc as a where a.amprocfamily = f.oid order by a.amprocnum, a.amproc::regprocedure::text collate "C"
    )
  ), null
from pg_opfamily as f
join ours on ours.oid = f.opfnamespace
join pg_am as m on m.oid = f.opfmethod
where ('pg_opfamily'::regclass, f.oid) not in (table extension_member)
union all
-- The columns of a collation have other names in each version.
select 'collation', format('%%I.%%I', ours.nspname, k.collname), concat_ws(
    ' ', collprovider, collisdeterministic, collcollate, collctype,
    coalesce(to_jsonb(k) ->> 'colllocale', to_jsonb(k) ->> 'colliculocale'), to_jsonb(k) ->> 'collicurules'
  ), null
from pg_collation as k
join ours on ours.oid = k.collnamespace
where ('pg_collation'::regclass, k.oid) not in (table extension_member)
union all
select 'conversion', format('%%I.%%I', ours.nspname, k.conname), concat_ws(' ', conforencoding, contoencoding, conproc::regprocedure, condefault), null
from pg_conversion as k
join ours on ours.oid = k.connamespace
where ('pg_conversion'::regclass, k.oid) not in (table extension_member)
union all
select 'text search configuration', format('%%I.%%I', ours.nspname, k.cfgname), concat_ws(
    ' ', (select prsname from pg_ts_parser as p where p.oid = k.cfgparser),
    array(select concat_ws(' ', m.maptokentype, m.mapseqno, m.mapdict::regdictionary) from pg_ts_config_map as m where m.mapcfg = k.oid order by m.maptokentype, m.mapseqno)
  ), null
from pg_ts_config as k
join ours on ours.oid = k.cfgnamespace
where ('pg_ts_config'::regclass, k.oid) not in (table extension_member)
union all
select 'text search dictionary', format('%%I.%%I', ours.nspname, k.dictname), concat_ws(' ', (select tmplname from pg_ts_template as t where t.oid = k.dicttemplate), dictinitoption), null
from pg_ts_dict as k
join ours on ours.oid = k.dictnamespace
where ('pg_ts_dict'::regclass, k.oid) not in (table extension_member)
union all
select 'comment', concat_ws(' ', i.type, 'of', i.identity), d.description, null
from pg_description as d
cross join pg_identify_object(d.classoid, d.objoid, d.objsubid) as i
cross join pg_identify_object_as_address(d.classoid, d.objoid, d.objsubid) as a
where d.objoid >= 16384 and (d.classoid, d.objoid) not in (table extension_member)
  and (i.schema = any(%(schemas)s) or i.type <> 'event trigger' and a.object_names[1] = any(%(schemas)s))
union all
select 'publication', quote_ident(p.pubname), concat_ws(
    ' ', case when p.puballtables then 'all tables' end, 'schemas ' || x.schemas, case when pubinsert then 'insert' end, case when pubupdate then 'update' end,
    case when pubdelete then 'delete' end, case when pubtruncate then 'truncate' end, case when pubviaroot then 'via root' end,
    'generated columns ' || nullif(to_jsonb(p) ->> 'pubgencols', 'n')
  ), null
from pg_publication as p
cross join lateral (
  select string_agg(ours.nspname, ', ' order by ours.nspname) as schemas
  from pg_publication_namespace as pn join ours on ours.oid = pn.pnnspid where pn.pnpubid = p.oid
) as x
where p.puballtables or x.schemas is not null or exists (select from pg_publication_rel as pr join relation on relation.oid = pr.prrelid where pr.prpubid = p.oid)
union all
select 'publication', format('%%I of %%s', p.pubname, relation.name), coalesce(x.columns, ''), case
    when pr.prqual is not null then format(
      'alter publication %%1$I drop table only %%2$s; alter publication %%1$I add table only %%2$s%%3$s where (%%4$s)',
      p.pubname, relation.name, ' (' || x.columns || ')', pg_get_expr(pr.prqual, pr.prrelid)
    )
  end
from pg_publication_rel as pr
join pg_publication as p on p.oid = pr.prpubid
join relation on relation.oid = pr.prrelid
cross join lateral (
  select string_agg(quote_ident(a.attname), ', ' order by a.attname) as columns
  from pg_attribute as a where a.attrelid = pr.prrelid and a.attnum = any(pr.prattrs)
) as x
union all
select 'default privilege', format(
    '%%s%%s of %%s to %%s', lower(g.privilege_type), concat_ws('', ' on type ', d.defaclobjtype, ' in schema ' || n.nspname), d.defaclrole::regrole,
    case when g.grantee = 0 then 'public' else g.grantee::regrole::text end
  ), case when g.is_grantable then 'with grant option' else '' end, null
from pg_default_acl as d
left join pg_namespace as n on n.oid = d.defaclnamespace
cross join aclexplode(d.defaclacl) as g
where d.defaclrole in (select relowner from relation union select proowner from routine)
  and (d.defaclnamespace = 0 or n.nspname = any(%(schemas)s));
