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
    select case i.type when 'statistics object' then 'statistics' else i.type end as kind, i.identity as name
    from pg_depend as d
    cross join pg_identify_object(d.classid, d.objid, 0) as i
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid = 'public'::regnamespace and d.deptype = 'n'
      and d.classid <> 'pg_extension'::regclass
      and not exists (select from pg_depend as m where m.classid = d.classid and m.objid = d.objid and m.deptype = 'e')
    order by d.classid = 'pg_class'::regclass desc
  loop
    execute format('drop %s if exists %s cascade', target.kind, target.name);
  end loop;
end;
$do$;
