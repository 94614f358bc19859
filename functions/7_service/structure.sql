-- The structure of the database as files made it. `ballast migrate up` records what each file creates, changes or drops, in the file's
-- transaction, so that ops.structure_health can report what someone changed by hand.

-- Lists our objects, each with a hash of what defines it. Expressions are hashed in PostgreSQL's internal form: it does not depend on the
-- session, and reading it takes no locks. It differs after a restore and on another major version.
-- A table's hash includes the names of its policies, triggers and rules, so that an additional one shows. Partitions and what extensions
-- own are left out. Supabase owns realtime.messages, but not its policies.
create or replace function app.list_structure() returns table (kind text, name text, hash text)
language sql stable parallel safe set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
  with namespace as (
    select n.* from pg_namespace as n where n.nspname in ('public', 'app', 'ops')
  ),
  relation as (
    select c.*, n.nspname || '.' || c.relname as name, n.nspname = 'realtime' as is_supabases
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where (
        n.nspname in ('public', 'app', 'ops') and c.relkind in ('r', 'p', 'v', 'm', 'c') and pg_has_role(c.relowner, 'usage')
        or n.nspname = 'realtime' and c.relname = 'messages'
      ) and not c.relispartition
      and not exists (select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
  ),
  our_table as (
    select r.* from relation as r where not r.is_supabases and r.relkind in ('r', 'p')
  ),
  trigger as (
    select t.*, r.name as relation_name from pg_trigger as t join relation as r on r.oid = t.tgrelid
    where not r.is_supabases and not t.tgisinternal and t.tgparentid = 0
  ),
  -- A trigger can be disabled on one partition only, and the triggers that check foreign keys can be disabled too.
  disabled as (
    select t.tgparentid, t.tgconstraint from pg_trigger as t where t.tgenabled in ('D', 'R')
  ),
  policy as (
    select p.*, r.name as relation_name from pg_policy as p join relation as r on r.oid = p.polrelid
  ),
  -- Only what the API's roles may do: the owner's own privileges print differently from version to version.
  grants as (
    select a.key, string_agg(concat(a.role, ':', a.privilege_type, case when a.is_grantable then '*' end), ',' order by a.role, a.privilege_type) as list
    from (
      select k.key, coalesce(g.rolname, 'public') as role, e.privilege_type, e.is_grantable
      from (
        select 'pg_class' || r.oid as key, r.relacl as acl from relation as r where not r.is_supabases
        union all
        select 'pg_proc' || p.oid, coalesce(p.proacl, acldefault('f', p.proowner)) from pg_proc as p join namespace as n on n.oid = p.pronamespace
        union all
        select format('%s.%s', t.oid, a.attnum), a.attacl from pg_attribute as a join our_table as t on t.oid = a.attrelid
        where a.attacl is not null
        union all
        select 'pg_namespace' || n.oid, n.nspacl from namespace as n
      ) as k
      cross join lateral aclexplode(k.acl) as e
      left join pg_roles as g on g.oid = e.grantee
      where e.grantee = 0 or g.rolname in ('anon', 'authenticated', 'service_role')
    ) as a
    group by a.key
  ),
  object (kind, name, facts) as (
    select 'schema', n.nspname::text, (select g.list from grants as g where g.key = 'pg_namespace' || n.oid)
    from namespace as n
    union all
    select
      case r.relkind when 'v' then 'view' when 'm' then 'view' when 'c' then 'type' else 'table' end, r.name,
      concat_ws(
        '|', r.relrowsecurity, r.relforcerowsecurity, r.relpersistence,
        case when r.relkind in ('v', 'm') then array_to_string(r.reloptions, ',') end,
        case when not r.is_supabases then concat_ws('|', r.relkind, r.relreplident, pg_get_userbyid(r.relowner), g.list) end,
        (select string_agg(p.polname, ',' order by p.polname) from policy as p where p.polrelid = r.oid),
        (select string_agg(t.tgname, ',' order by t.tgname) from trigger as t where t.tgrelid = r.oid),
        (
          select string_agg(concat_ws(' ', w.rulename, w.ev_enabled, w.ev_action), ',' order by w.rulename)
          from pg_rewrite as w where w.ev_class = r.oid and not r.is_supabases
        )
      )
    from relation as r
    left join grants as g on g.key = 'pg_class' || r.oid
    union all
    select
      'column', concat(r.name, '.', a.attname),
      concat_ws(
        '|', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attcollation, d.adbin, g.list
      )
    from relation as r
    join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
    left join grants as g on g.key = format('%s.%s', r.oid, a.attnum)
    where not r.is_supabases and r.relkind in ('r', 'p', 'c')
    union all
    -- PostgreSQL 18 lists not null here too: the columns have it.
    select
      'constraint', format('%s on %s', k.conname, t.name),
      concat_ws(
        '|', k.contype, k.convalidated, to_jsonb(k) ->> 'conenforced', k.condeferrable, k.condeferred, k.conkey::text,
        f.nspname || '.' || c.relname, k.confkey::text, k.confupdtype, k.confdeltype, k.confdelsetcols::text, k.confmatchtype,
        k.conexclop::regoperator[]::text, k.conbin,
        exists (select from disabled as x where x.tgconstraint = k.oid)
      )
    from our_table as t
    join pg_constraint as k on k.conrelid = t.oid and k.contype <> 'n' and k.conparentid = 0
    left join pg_class as c on c.oid = k.confrelid
    left join pg_namespace as f on f.oid = c.relnamespace
    union all
    select
      'index', format('%s on %s', c.relname, t.name),
      concat_ws(
        '|', i.indisunique, i.indnullsnotdistinct, i.indisprimary, i.indisexclusion, i.indimmediate, i.indisvalid, i.indisready,
        i.indnkeyatts, i.indkey::text, i.indcollation::text, i.indclass::text, i.indoption::text, i.indexprs, i.indpred, m.amname
      )
    from our_table as t
    join pg_index as i on i.indrelid = t.oid
    join pg_class as c on c.oid = i.indexrelid
    join pg_am as m on m.oid = c.relam
    union all
    select
      'trigger', format('%s on %s', t.tgname, t.relation_name),
      concat_ws(
        '|', t.tgenabled, exists (select from disabled as x where x.tgparentid = t.oid), t.tgtype, t.tgattr::text, encode(t.tgargs, 'hex'),
        t.tgdeferrable, t.tginitdeferred, t.tgoldtable, t.tgnewtable, t.tgqual, p.pronamespace::regnamespace, p.proname
      )
    from trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    union all
    select
      'policy', format('%s on %s', p.polname, p.relation_name),
      concat_ws(
        '|', p.polcmd, p.polpermissive,
        (select string_agg(coalesce(r.rolname, 'public'), ',' order by r.rolname) from unnest(p.polroles) as u (oid) left join pg_roles as r using (oid)),
        p.polqual, '|', p.polwithcheck
      )
    from policy as p
    union all
    select
      'function', format('%s.%s(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
      concat_ws(
        '|', p.prokind, l.lanname, p.prosrc, p.prosqlbody, p.probin, p.proconfig::text, p.prosecdef, p.proleakproof, p.provolatile,
        p.proparallel, p.proisstrict, p.proretset, format_type(p.prorettype, null), p.proargnames::text, p.proargdefaults,
        pg_get_userbyid(p.proowner), g.list
      )
    from namespace as n
    join pg_proc as p on p.pronamespace = n.oid and pg_has_role(p.proowner, 'usage')
    join pg_language as l on l.oid = p.prolang
    left join grants as g on g.key = 'pg_proc' || p.oid
    where not exists (select from pg_depend as d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
    union all
    select
      'publication', format('%s of %s', t.name, p.pubname),
      concat_ws('|', p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, r.prattrs::text, r.prqual)
    from our_table as t
    join pg_publication_rel as r on r.prrelid = t.oid
    join pg_publication as p on p.oid = r.prpubid
  )
  -- Before PostgreSQL 17 an expression includes its position in the statement, which differs when someone creates the object again.
  select
    o.kind, o.name,
    md5(coalesce(case when o.kind in ('column', 'constraint', 'index') then regexp_replace(o.facts, ':location -?\d+', '', 'g') else o.facts end, ''))
  from object as o;
$$;
comment on function app.list_structure is 'Every object of ours with a hash of its definition.';

-- What differs from the records: hash is null for an object that is missing, recorded is null for one that no file made.
create or replace function app.list_structure_changes() returns table (
  kind text, name text, hash text, recorded text, postgres_major integer
)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(l.kind, r.kind), coalesce(l.name, r.name), l.hash, r.hash, r.postgres_major
  from app.list_structure() as l
  full join app.recorded_objects as r on r.kind = l.kind and r.name = l.name
  where l.hash is distinct from r.hash;
$$;
comment on function app.list_structure_changes is 'Objects whose definition differs from the recorded one.';

-- `known` lists what differed before the file, as [kind, name, hash]: someone changed that by hand, so the file's records leave it out.
create or replace function app.record_structure(known jsonb default '[]') returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  number integer;
begin
  with change as (
    select c.kind, c.name, c.hash from app.list_structure_changes() as c
    where jsonb_build_array(c.kind, c.name, c.hash) not in (select k.value from jsonb_array_elements(known) as k)
  ),
  removed as (
    delete from app.recorded_objects as r using change as c where r.kind = c.kind and r.name = c.name and c.hash is null
  ),
  recorded as (
    insert into app.recorded_objects (kind, name, hash, postgres_major)
    select c.kind, c.name, c.hash, current_setting('server_version_num')::integer / 10000 from change as c where c.hash is not null
    on conflict (kind, name) do update
    set hash = excluded.hash, postgres_major = excluded.postgres_major, recorded_at = now()
  )
  select count(*) into number from change;
  return number;
end;
$$;
comment on function app.record_structure is 'Records the definitions that differ from the recorded ones, and returns their number.';
