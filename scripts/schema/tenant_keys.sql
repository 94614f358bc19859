-- Foreign and unique keys that join rows of several tenants, as (kind, name). RLS does not see keys: a violation, or its
-- absence, shows whether another tenant's row exists, and a reference from another tenant prevents a deletion.
--
-- A tenant table has a column organization_id uuid; public.organizations counts as one, by its id. A key of a tenant table must include this column:
-- a foreign key must refer to the parent's, an index must have it as a key column, an exclusion constraint must compare it with `=`. Keys of
-- other tables, and foreign keys to profiles, are judged only if clients may write one of their columns.
--
-- Three kinds of keys pass: a primary key that the database generates and clients may not write; a foreign key of a table that is no tenant
-- table, if it includes the row's own id and clients may not write that; and a key whose comment begins with `Across tenants: `.
with tenant as (
  select a.attrelid as relation, a.attnum as number
  from pg_attribute as a
  join pg_class as c on c.oid = a.attrelid
  where a.atttypid = 'uuid'::regtype and not a.attisdropped and c.relkind in ('r', 'p')
    and a.attname = case a.attrelid when to_regclass('public.organizations') then 'id' else 'organization_id' end
), ours as (
  select c.oid as relation, t.number as tenant_column
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  left join tenant as t on t.relation = c.oid and c.oid <> to_regclass('public.organizations')
  where n.nspname in ('public', 'app', 'ops') and c.relkind in ('r', 'p')
), written as (
  select a.attrelid as relation, a.attnum as number
  from pg_attribute as a
  join ours on ours.relation = a.attrelid
  where a.attnum > 0 and not a.attisdropped
    and (has_column_privilege('authenticated', a.attrelid, a.attnum, 'insert, update')
      or has_column_privilege('anon', a.attrelid, a.attnum, 'insert, update'))
), broken as (
  select 'foreign key' as kind, k.conname as name, k.conrelid as relation, obj_description(k.oid, 'pg_constraint') as comment
  from pg_constraint as k
  join ours on ours.relation = k.conrelid
  left join tenant as parent on parent.relation = k.confrelid
  where k.contype = 'f' and k.conparentid = 0
    and (
      ours.tenant_column is not null and parent.relation is not null
      or (parent.relation is not null or k.confrelid = to_regclass('public.profiles'))
      and exists (select from written as w where w.relation = k.conrelid and w.number = any(k.conkey))
    )
    and not exists (
      select from unnest(k.conkey, k.confkey) as u (child, parent_column)
      join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = u.child
      where u.child = ours.tenant_column and u.parent_column = parent.number
        or ours.tenant_column is null and a.attname = 'id'
        and not exists (select from written as w where w.relation = k.conrelid and w.number = u.child)
    )
  union all
  select case when k.contype = 'x' then 'exclusion constraint' else 'unique key' end, c.relname, i.indrelid,
    coalesce(obj_description(k.oid, 'pg_constraint'), obj_description(i.indexrelid, 'pg_class'))
  from pg_index as i
  join pg_class as c on c.oid = i.indexrelid
  join ours on ours.relation = i.indrelid
  left join pg_constraint as k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('p', 'u', 'x')
  cross join lateral (select (i.indkey::smallint[])[0:i.indnkeyatts - 1] as columns) as key
  where (i.indisunique or i.indisexclusion)
    and not exists (select from pg_inherits as h where h.inhrelid = i.indexrelid)
    and (
      ours.tenant_column is not null
      or exists (select from written as w where w.relation = i.indrelid and (w.number = any(key.columns) or i.indexprs is not null))
    )
    and not exists (
      select from unnest(key.columns, k.conexclop) as u (number, operator)
      where u.number = ours.tenant_column
        and (u.operator is null or (select o.oprname = '=' from pg_operator as o where o.oid = u.operator))
    )
    and not (
      i.indisprimary
      and exists (
        select from pg_attribute as a
        where a.attrelid = i.indrelid and a.attnum = any(key.columns) and (a.atthasdef or a.attidentity <> '')
      )
      and not exists (select from written as w where w.relation = i.indrelid and w.number = any(key.columns))
    )
)
select kind, format('%I on %s', name, relation::regclass) as name
from broken
where comment is null or comment !~ '^Across tenants: \S'
order by relation::regclass::text, kind, name;
