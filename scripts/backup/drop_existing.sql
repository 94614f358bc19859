-- Drops all our objects so that a backup can replace them. It runs in the transaction of the restore: if that fails, they are still there.
do $do$
declare
  schema text;
  target record;
begin
  foreach schema in array array['app', 'ops', 'supabase_migrations'] loop
    execute format('drop schema if exists %I cascade', schema);
  end loop;
  for target in
    select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' when 'f' then 'foreign table' else 'table' end as kind,
      format('public.%I', c.relname) as name
    from pg_class as c
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
      and not exists (select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
  loop
    execute format('drop %s if exists %s cascade', target.kind, target.name);
  end loop;
  for target in
    select format('public.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) as name
    from pg_proc as p
    where p.pronamespace = 'public'::regnamespace
      and not exists (select from pg_depend as d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
  loop
    execute format('drop routine if exists %s cascade', target.name);
  end loop;
  for target in
    select format('public.%I', t.typname) as name
    from pg_type as t
    where t.typnamespace = 'public'::regnamespace and t.typtype in ('e', 'd', 'r')
      and not exists (select from pg_depend as d where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e')
  loop
    execute format('drop type if exists %s cascade', target.name);
  end loop;
end;
$do$;
