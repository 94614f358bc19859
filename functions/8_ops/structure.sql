-- What someone changed by hand, for administrators: compares the database with what `ballast migrate up` recorded of each file.
-- Objects that no file made are not reported here: `ballast migrate check` finds them.

create or replace view ops.structure_changes with (security_invoker) as
select
  c.kind, c.name, case when c.hash is null then 'missing' else 'different' end as problem,
  case
    when c.kind in ('function', 'view', 'trigger', 'policy')
      then
        'Apply its file again: delete the row of the file from app.applied_sources, then run `ballast migrate up`.'
    when c.kind = 'publication'
      then
        format(
          'Run `alter publication %s add table %s`, or compare its options with its migration.',
          split_part(c.name, ' of ', 2), split_part(c.name, ' of ', 1)
        )
    when c.kind = 'table' and c.hash is not null
      then
        '`ballast migrate check` lists its policies, triggers and grants. Compare row level security, owner and rules with its migration.'
    else 'Create it again as its migration does.'
  end as remedy
from app.list_structure_changes() as c
where c.recorded is not null and (c.hash is null or c.postgres_major = current_setting('server_version_num')::integer / 10000)
order by
  array_position('{schema,table,column,type,constraint,index,trigger,policy,function,view,publication}', c.kind), c.name;
comment on view ops.structure_changes is
'Objects that files made and that someone changed or dropped by hand, each with its remedy. Empty if all is well.';

create or replace view ops.structure_health with (security_invoker) as
select
  r.recorded, c.changed, c.first_change, rule.verdict[1] as status, rule.verdict[2] as advice
from (
  select
    count(*) as recorded, count(*) filter (where o.postgres_major <> current_setting('server_version_num')::integer / 10000) as elsewhere
  from app.recorded_objects as o
) as r
cross join (
  select
    count(*) as changed,
    (array_agg(format('The %s %s %s.', h.kind, h.name, case h.problem when 'missing' then 'is missing' else 'was changed by hand' end)))[1]
      as first_change,
    (array_agg(h.remedy))[1] as remedy
  from ops.structure_changes as h
) as c
cross join lateral (
  select case
    when c.changed > 0
      then
        array[
          'red',
          concat_ws(
            ' ', c.first_change, c.remedy, 'If the change is wanted, add it to a file, then run `select ops.accept_structure()`.',
            case when c.changed > 1 then format('%s more in ops.structure_changes.', c.changed - 1) end
          )
        ]
    when r.recorded = 0 or r.elsewhere > 0
      then
        array[
          'yellow',
          'The structure was not recorded on this major version of PostgreSQL. Run `ballast migrate check`, then '
          || '`select ops.accept_structure()`.'
        ]
    else array['green', 'OK.']
  end as verdict
) as rule;
comment on view ops.structure_health is
'Whether tables, constraints, indexes, triggers, policies, functions and views are as files made them: one row.';

-- For a change that is wanted, after a restore with other tools than `ballast backup restore`, and after a major upgrade of PostgreSQL.
create or replace function ops.accept_structure() returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  return format('%s definitions were recorded: ops.structure_health compares with them from now on.', app.record_structure());
end;
$$;
comment on function ops.accept_structure is 'Records the present structure as the right one.';
