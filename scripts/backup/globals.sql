-- Lists what a dump of our schemas omits, as (kind, text). Kind `role` is the name of a role that the dump refers to. Kind `extension`
-- describes an extension that our objects need, as JSON. Kind `missing` names an object that our objects need, or that uses them, and that no
-- backup contains: the restore fails, or the restored database lacks it.
-- Statements of kind `before` run before the dump is restored: they create roles and extensions, and revoke default privileges.
-- Statements of kind `after` run after it: policies on others' tables that call our functions, publications of our tables, and default
-- privileges. Every statement can be repeated.
with recursive ours as (
  select oid from pg_namespace where nspname = any(%(schemas)s)
), relation as (
  select c.oid, c.relowner, c.relacl, format('%%I.%%I', n.nspname, c.relname) as name
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  where n.oid in (table ours)
), routine as (
  select p.oid, p.proowner, p.proacl from pg_proc as p where p.pronamespace in (table ours)
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
), part (classid, objid) as ( -- our objects and their parts: columns, constraints, indexes, defaults, rules, triggers and policies
  select d.classid, d.objid
  from pg_depend as d
  where d.refclassid = 'pg_namespace'::regclass and d.refobjid in (table ours) and d.classid <> 'pg_extension'::regclass
    and not exists (
      select from pg_depend as member where member.classid = d.classid and member.objid = d.objid and member.deptype = 'e'
    )
  union
  select 'pg_policy'::regclass, policy.oid from policy
  union
  select d.classid, d.objid
  from part
  join pg_depend as d on d.refclassid = part.classid and d.refobjid = part.objid
  where d.deptype in ('a', 'i', 'I', 'P', 'S')
), needed (classid, objid) as ( -- what these refer to, the type of an array's elements, and the extension that each belongs to
  select d.refclassid, d.refobjid from part join pg_depend as d using (classid, objid)
  union
  select d.refclassid, d.refobjid
  from needed
  join pg_depend as d using (classid, objid)
  where d.deptype in ('i', 'e') or d.classid in ('pg_extension'::regclass, 'pg_foreign_server'::regclass)
), required (extension, other) as ( -- an extension that another one requires is created first
  select d.objid, d.refobjid
  from pg_depend as d
  where d.classid = 'pg_extension'::regclass and d.refclassid = 'pg_extension'::regclass
  union
  select r.extension, d.refobjid
  from required as r
  join pg_depend as d on d.classid = 'pg_extension'::regclass and d.refclassid = 'pg_extension'::regclass and d.objid = r.other
), extension as (
  select e.extname as name, n.nspname as schema, e.extversion as version, count(required) as depth
  from pg_extension as e
  join pg_namespace as n on n.oid = e.extnamespace
  left join required on required.extension = e.oid
  where e.extname <> 'plpgsql' and ('pg_extension'::regclass, e.oid) in (table needed)
  group by e.oid, n.oid
), home as ( -- the schemas of these extensions, with their grants
  select n.oid, n.nspname as schema, n.nspowner, n.nspacl
  from pg_namespace as n
  where n.nspname in (select schema from extension) and n.nspname not in ('pg_catalog', 'public')
), published as ( -- our tables in publications, each with its columns and row filter
  select pr.prpubid, pr.prrelid, relation.name, concat_ws(
      ' ', 'table only', relation.name,
      '(' || (
        select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
        from pg_attribute as a where a.attrelid = pr.prrelid and a.attnum = any(pr.prattrs)
      ) || ')', 'where (' || pg_get_expr(pr.prqual, pr.prrelid) || ')'
    ) as text
  from pg_publication_rel as pr
  join relation on relation.oid = pr.prrelid
), publication as (
  select
    p.pubname, p.puballtables, x.schemas,
    case when p.puballtables then 'all tables' else concat_ws(', ', 'tables in schema ' || x.schemas, x.tables) end as content,
    format(
      'with (publish = %%L, publish_via_partition_root = %%s%%s)',
      concat_ws(
        ', ', case when pubinsert then 'insert' end, case when pubupdate then 'update' end, case when pubdelete then 'delete' end,
        case when pubtruncate then 'truncate' end
      ), p.pubviaroot::text, case when to_jsonb(p) ->> 'pubgencols' = 's' then ', publish_generated_columns = stored' end
    ) as options, x.additions, (
      select r.rolname from pg_roles as r where r.oid = p.pubowner and not r.rolsuper and r.rolname <> current_user
    ) as owner
  from pg_publication as p
  cross join lateral (
    select
      (
        select string_agg(quote_ident(n.nspname), ', ' order by n.nspname)
        from pg_publication_namespace as pn
        join pg_namespace as n on n.oid = pn.pnnspid
        where pn.pnpubid = p.oid and n.oid in (table ours)
      ) as schemas,
      (select string_agg(text, ', ' order by name) from published where prpubid = p.oid) as tables,
      (
        select string_agg(format('; alter publication %%I add %%s', p.pubname, text), '' order by name) from published where prpubid = p.oid
      ) as additions
  ) as x
  where p.puballtables or x.schemas is not null or x.tables is not null
), acl as (
  select relacl as items from relation
  union all select a.attacl from pg_attribute as a join relation on relation.oid = a.attrelid
  union all select proacl from routine
  union all select n.nspacl from pg_namespace as n join ours using (oid)
  union all select home.nspacl from home
  union all select d.defaclacl from pg_default_acl as d where d.defaclnamespace in (table ours) or d.defaclnamespace = 0
), named as (
  select relowner as role from relation
  union select proowner from routine
  union select n.nspowner from pg_namespace as n join ours using (oid)
  union select unnest(array[x.grantee, x.grantor]) from acl, aclexplode(acl.items) as x
  union select unnest(p.polroles) from pg_policy as p join relation on relation.oid = p.polrelid
  union select d.defaclrole from pg_default_acl as d where d.defaclnamespace in (table ours)
  union select p.polrole from policy, unnest(policy.polroles) as p (polrole)
  union select r.oid from publication join pg_roles as r on r.rolname = publication.owner
), standing as ( -- default privileges of the roles that own our objects, which apply in every schema
  select d.defaclrole, d.defaclobjtype as kind, d.defaclacl as now, acldefault(
      case d.defaclobjtype when 'S' then 's' else d.defaclobjtype end, d.defaclrole
    ) as at_first
  from pg_default_acl as d
  where d.defaclnamespace = 0 and d.defaclrole in (select relowner from relation union select proowner from routine)
), missing (object) as (
  -- Objects of other schemas, apart from those of extensions and of Supabase, which a project has before the restore.
  select pg_describe_object(d.refclassid, d.refobjid, 0)
  from part
  join pg_depend as d using (classid, objid)
  cross join pg_identify_object(d.refclassid, d.refobjid, 0) as i
  where d.refobjid >= 16384 and d.refclassid <> 'pg_namespace'::regclass and d.deptype in ('n', 'a') and i.schema <> all(%(schemas)s)
    and i.schema not in ('auth', 'storage', 'realtime', 'extensions', 'vault', 'cron', 'net', 'graphql_public', 'supabase_functions', 'pg_toast')
    and (d.refclassid, d.refobjid) not in (select classid, objid from pg_depend where deptype = 'e')
  union
  -- Objects without a schema: foreign servers, languages and access methods.
  select pg_describe_object(d.refclassid, d.refobjid, 0)
  from part
  join pg_depend as d using (classid, objid)
  where d.refobjid >= 16384 and d.refclassid in ('pg_foreign_server'::regclass, 'pg_language'::regclass, 'pg_am'::regclass)
    and (d.refclassid, d.refobjid) not in (select classid, objid from pg_depend where deptype = 'e')
  union
  -- What uses our functions or types.
  select pg_describe_object(d.classid, d.objid, 0)
  from part
  join pg_depend as d on d.refclassid = part.classid and d.refobjid = part.objid
  where d.classid in ('pg_cast'::regclass, 'pg_transform'::regclass, 'pg_event_trigger'::regclass, 'pg_foreign_data_wrapper'::regclass)
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
  -- A Supabase project has some of these schemas with their grants, such as extensions.
  select 2, 'before', format(
      'do $do$ begin if to_regnamespace(%%L) is null then create schema %%I; end if;%%s end $do$', quote_ident(schema), schema, ' if '
      || format('pg_has_role((select nspowner from pg_namespace where nspname = %%L), ''usage'') then', schema) || (
        select string_agg(
          format(' grant %%s on schema %%I to %%s;', g.privilege_type, schema, case when g.grantee = 0 then 'public' else g.grantee::regrole::text end),
          '' order by g.grantee::regrole::text, g.privilege_type
        )
        from aclexplode(home.nspacl) as g
        where g.grantee <> home.nspowner
      ) || ' end if;'
    )
  from home
  union all
  select 3 + depth, 'extension', json_build_object('name', name, 'namespace', schema, 'version', version)::text
  from extension
  union all
  select 3 + depth, 'before', format('create extension if not exists %%I schema %%I', name, schema)
  from extension
  union all
  -- A dump stores grants as differences from PostgreSQL's own defaults. A new Supabase project has other defaults, which would grant
  -- anon access to every restored table of public. So revoke them first.
  select 1000, 'before', $text$
do $do$
declare
  change record;
begin
  for change in
    select
      case when n.oid is null then '' else format('in schema %%I ', n.nspname) end as place,
      case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types' end as kind,
      x.verb, x.privilege_type as privilege, case when x.grantee = 0 then 'public' else x.grantee::regrole::text end as grantee
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
  select 1005, 'after', format(
      'do $do$ begin if to_regclass(%%L) is not null then execute %%L; execute %%L; end if; end $do$', of, 'drop policy if exists ' || name,
      concat_ws(
        ' ', 'create policy', name, case when polpermissive then 'as permissive' else 'as restrictive' end,
        'for', case polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
        'to', (
          select string_agg(x.name, ', ' order by x.name)
          from unnest(polroles) as role
          cross join lateral (select case when role = 0 then 'public' else role::regrole::text end) as x (name)
        ),
        'using (' || pg_get_expr(polqual, polrelid) || ')', 'with check (' || pg_get_expr(polwithcheck, polrelid) || ')'
      )
    )
  from policy
  union all
  select 1007, 'after', format(
      $text$do $do$
declare
  present pg_publication;
begin
  select * into present from pg_publication where pubname = %%1$L;
  if present.oid is not null and (present.puballtables or %%2$L) then
    execute %%3$L;
    present := null;
  end if;
  execute case when present.oid is null then %%4$L else %%5$L end;
exception when insufficient_privilege then
  raise warning using errcode = '01B01', message = 'The publication ' || %%1$L || ' was not restored: ' || sqlerrm;
end $do$$text$,
      pubname, puballtables or schemas is not null, format('drop publication %%I', pubname),
      concat_ws(' ', 'create publication', quote_ident(pubname), 'for ' || content, options),
      concat_ws(' ', format('alter publication %%I set', pubname), substr(options, 6), additions)
    )
  from publication
  union all
  select 1008, 'after', format(
      'do $do$ begin alter publication %%1$I owner to %%2$I; exception when insufficient_privilege or undefined_object then raise warning using '
      'errcode = ''01B01'', message = ''The publication '' || %%1$L || '' does not belong to '' || %%2$L || '' again: '' || sqlerrm; end $do$',
      pubname, owner
    )
  from publication
  where owner is not null
  union all
  select case x.verb when 'revoke' then 1009 else 1010 end, 'after', format(
      'alter default privileges %%s %%s on %%s %%s %%s', x.verb, x.privilege_type,
      case s.kind when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types' else 'schemas' end,
      case x.verb when 'grant' then 'to' else 'from' end, case when x.grantee = 0 then 'public' else x.grantee::regrole::text end
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
select kind, text from (
  select place, kind, text from statement
  union all
  select 0, 'missing', object from missing
) as found order by place, text;
