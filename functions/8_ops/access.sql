-- Who reaches what, for administrators: which rule lets a person do what, which tables are open to whom, and how to close a tenant.
-- Nobody else can call any of it: ops has no grants.

-- By whatever an administrator has at hand. Of several who share an address, none: guessing would answer for the wrong person.
create or replace function ops.person_id(person text) returns uuid
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select (array_agg(p.id))[1]
  from public.profiles as p
  where p.clerk_user_id = person or p.id::text = lower(person) or lower(p.email) = lower(person)
  having count(*) = 1;
$$;
comment on function ops.person_id is 'A person by Clerk''s id, our id or their e-mail address; null for nobody, and for more than one.';

create or replace function ops.organization_id(organization text) returns uuid
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select (array_agg(o.id))[1]
  from public.organizations as o
  where o.clerk_org_id = organization or o.id::text = lower(organization) or o.slug = organization
  having count(*) = 1;
$$;
comment on function ops.organization_id is 'An organization by Clerk''s id, our id or its slug; null for none, and for more than one.';

-- Whether they may is asked of the policies' own helper, with the claims that a token of theirs would have: only the words are ours.
-- The setting is put back afterwards, by the roll-back when something fails.
create or replace function ops.explain_access(person text, organization text) returns table (
  permission text, allowed boolean, without_second_factor boolean, because text
)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  who public.profiles;
  tenant public.organizations;
  held_role text;
  their_name text;
  never text;
  earlier text := coalesce(current_setting('request.jwt.claims', true), '');
  claims jsonb;
  with_factor text[];
  without_factor text[];
begin
  select p.* into who from public.profiles as p where p.id = ops.person_id(explain_access.person);
  select o.* into tenant from public.organizations as o where o.id = ops.organization_id(explain_access.organization);
  select m.role into held_role from public.organization_memberships as m where m.user_id = who.id and m.organization_id = tenant.id;
  their_name := coalesce(who.full_name, who.email, who.clerk_user_id);

  claims := jsonb_build_object('sub', who.clerk_user_id, 'role', 'authenticated');
  perform set_config('request.jwt.claims', (claims || '{"fva": [0, 0]}')::text, true);
  with_factor := array(
    select distinct rp.permission from public.role_permissions as rp where tenant.id = any(app.org_ids(rp.permission))
  );
  perform set_config('request.jwt.claims', (claims || '{"fva": [0, -1]}')::text, true);
  without_factor := array(
    select distinct rp.permission from public.role_permissions as rp where tenant.id = any(app.org_ids(rp.permission))
  );
  perform set_config('request.jwt.claims', earlier, true);

  never := case
    when who.id is null and app.is_erased(explain_access.person) then format('%s was deleted in Clerk, or erased here.', explain_access.person)
    when who.id is null then format(
      'Nobody is known as %s, or several are: name one by Clerk''s id. If they exist in Clerk, their webhook has not arrived.', explain_access.person
    )
    when tenant.id is null then format(
      'No organization is known as %s, or several are: name one by Clerk''s id.', explain_access.organization
    )
    when exists (select from app.erasure_log as l where l.state <> 'complete' and (l.person).id = who.id)
      then 'The person is being erased: no token of theirs counts.'
    when who.banned then format('%s is banned in Clerk: no token of theirs counts, anywhere.', their_name)
    when tenant.deleted_at is not null
      then format('%s was deleted in Clerk on %s: it is hidden until it is purged.', tenant.name, tenant.deleted_at::date)
    when tenant.suspended_at is not null then format(
      '%s is suspended since %s (%s): ops.resume_organization() ends it.', tenant.name, tenant.suspended_at::date, tenant.suspension_reason
    )
    when held_role is null then format('%s is not a member of %s.', their_name, tenant.name)
  end;

  return query
    select
      rp.permission, rp.permission = any(with_factor), rp.permission = any(without_factor),
      case
        when never is not null then never
        when not held_role = any(rp.roles) then format(
          '%s is %s of %s, and %s does not have it: %s.', their_name, held_role, tenant.name, held_role, array_to_string(rp.roles, ' and ')
            || case cardinality(rp.roles) when 1 then ' does' else ' do' end
        )
        when not rp.permission = any(with_factor) then 'No rule known here explains it: read app.caller_memberships.'
        when not rp.permission = any(without_factor) then format(
          '%s is %s of %s, and the role has it; but %s asks its owners and admins for a second factor: without one they act as viewers.',
          their_name, held_role, tenant.name, tenant.name
        )
        else format('%s is %s of %s, and the role has it.', their_name, held_role, tenant.name)
      end
    from (
      select r.permission, array_agg(r.role order by array_position('{owner,admin,member,viewer}', r.role)) as roles
      from public.role_permissions as r
      group by r.permission
    ) as rp
    order by rp.permission;
end;
$$;
comment on function ops.explain_access is
'What a person may do in an organization, and why: a row per permission, for a session with a second factor and for one without.';

-- It is hidden as a deleted one is, but for its members and rows, which stay. Recorded in the trail, which owners read afterwards.
create or replace function ops.suspend_organization(clerk_org_id text, reason text) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  tenant public.organizations;
begin
  perform app.lock_clerk_objects(array[clerk_org_id]);
  select o.* into tenant from public.organizations as o where o.clerk_org_id = clerk_org_id for update;
  if tenant.id is null then
    raise exception 'There is no organization %.', clerk_org_id using hint = 'Name it by Clerk''s id, org_…: ops.tenants has them.';
  elsif coalesce(btrim(reason), '') = '' then
    raise exception 'Say why: whoever looks at it later wants to know.';
  elsif tenant.suspended_at is not null then
    return format('%s is suspended since %s already: %s', tenant.name, tenant.suspended_at, tenant.suspension_reason);
  end if;
  perform set_config('app.unaudited', 'on', true);
  update public.organizations as o set suspended_at = now(), suspension_reason = btrim(reason) where o.id = tenant.id;
  perform set_config('app.unaudited', '', true);
  insert into public.audit_logs (organization_id, actor, action, resource_type, resource_id, metadata)
  values (
    tenant.id, 'administrator', 'organization.suspended', 'organization', tenant.id::text,
    jsonb_build_object('name', tenant.name, 'reason', btrim(reason))
  );
  return format('%s is suspended: nobody but administrators reaches its data. ops.resume_organization() ends it.', tenant.name);
end;
$$;
comment on function ops.suspend_organization is 'Lets nobody but administrators reach an organization''s data, until ops.resume_organization(). It loses nothing.';

create or replace function ops.resume_organization(clerk_org_id text) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  tenant public.organizations;
begin
  perform app.lock_clerk_objects(array[clerk_org_id]);
  select o.* into tenant from public.organizations as o where o.clerk_org_id = clerk_org_id for update;
  if tenant.id is null then
    raise exception 'There is no organization %.', clerk_org_id using hint = 'Name it by Clerk''s id, org_…: ops.tenants has them.';
  elsif tenant.suspended_at is null then
    return format('%s is not suspended.', tenant.name);
  end if;
  perform set_config('app.unaudited', 'on', true);
  update public.organizations as o set suspended_at = null, suspension_reason = null where o.id = tenant.id;
  perform set_config('app.unaudited', '', true);
  insert into public.audit_logs (organization_id, actor, action, resource_type, resource_id, metadata)
  values (
    tenant.id, 'administrator', 'organization.resumed', 'organization', tenant.id::text,
    jsonb_build_object('name', tenant.name, 'reason', tenant.suspension_reason, 'suspended_at', tenant.suspended_at)
  );
  return format('%s is no longer suspended: its members reach it again.', tenant.name);
end;
$$;
comment on function ops.resume_organization is 'Ends what ops.suspend_organization() began.';

-- realtime.messages is Supabase's: its grants and that it is not forced are theirs. A partition is reached through its parent, but by
-- itself too, so each has a row.
create or replace view ops.rls_coverage with (security_invoker) as
with relation as (
  select
    c.oid, n.nspname, c.relname, c.relrowsecurity, c.relforcerowsecurity, n.nspname = 'realtime' as is_theirs, c.relispartition,
    exists(
      select from pg_attribute as a
      where a.attrelid = c.oid and a.attname = 'organization_id' and not a.attisdropped
    ) as has_tenant
  from pg_class as c
  join pg_namespace as n on c.relnamespace = n.oid
  where
    (n.nspname in ('public', 'app') and c.relkind in ('r', 'p') or n.nspname = 'realtime' and c.relname = 'messages')
    and not exists (
      select from pg_depend as d
      where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
    )
),

policy as (
  select
    p.polrelid as oid, p.polname, r.oid as role, case r.oid when 0 then 'everybody' else pg_get_userbyid(r.oid) end as role_name,
    k.command, p.polpermissive, pg_get_expr(p.polqual, p.polrelid) as condition, pg_get_expr(p.polwithcheck, p.polrelid) as check_condition
  from pg_policy as p
  cross join lateral unnest(p.polroles) as r (oid)
  cross join lateral unnest(case p.polcmd
    when 'r' then '{select}' when 'a' then '{insert}' when 'w' then '{update}' when 'd' then '{delete}' else '{select,insert,update,delete}'
  end::text[]) as k (command)
),

privilege as (
  select r.oid, null as column_name, lower(g.privilege_type) as command, g.grantee
  from relation as r
  join pg_class as c on r.oid = c.oid
  cross join lateral aclexplode(c.relacl) as g
  where g.grantee <> c.relowner
  union all
  select r.oid, a.attname, lower(g.privilege_type), g.grantee
  from relation as r
  join pg_class as c on r.oid = c.oid
  join pg_attribute as a on r.oid = a.attrelid and not a.attisdropped
  cross join lateral aclexplode(a.attacl) as g
  where g.grantee <> c.relowner
),

api as (
  select g.oid, g.command, g.column_name, g.grantee, case g.grantee when 0 then 'everybody' else pg_get_userbyid(g.grantee) end as role_name
  from privilege as g
  where g.grantee = 0 or pg_get_userbyid(g.grantee) in ('anon', 'authenticated', 'service_role')
)

select
  r.nspname::text as schema, r.relname::text as relation, r.relrowsecurity as enabled, r.relforcerowsecurity as forced,
  array(
    select format('%s to %s: %s', p.command, p.role_name, p.polname) from policy as p
    where p.oid = r.oid
    order by p.role_name, array_position('{select,insert,update,delete}', p.command), p.polname
  ) as policies,
  array(
    select format('%s to %s%s', g.command, g.role_name, ' (' || string_agg(g.column_name, ', ' order by g.column_name) || ')')
    from api as g
    where g.oid = r.oid
    group by g.command, g.role_name, g.column_name is null
    order by g.role_name, array_position('{select,insert,update,delete}', g.command), g.command
  ) as grants,
  nullif(concat_ws(
    ' ',
    case when not r.relrowsecurity then 'Row level security is off: alter table … enable row level security.' end,
    case when not r.relforcerowsecurity and not r.is_theirs then 'Row level security is not forced: its owner passes by the policies.' end,
    (
      select 'Granted to ' || string_agg(distinct g.role_name, ', ' order by g.role_name) || ', who need nothing here.' from api as g
      where g.oid = r.oid and not r.is_theirs and (g.role_name in ('anon', 'everybody') or r.nspname = 'app')
    ),
    (
      select
        'Nothing gets through to authenticated: granted, but no policy for '
        || string_agg(distinct g.command, ', ' order by g.command) || '.'
      from api as g
      where
        g.oid = r.oid and not r.is_theirs and g.role_name = 'authenticated' and g.command in ('select', 'insert', 'update', 'delete')
        and not exists (
          select from policy as p
          where p.oid = r.oid and p.command = g.command and p.role_name in ('authenticated', 'everybody') and p.polpermissive
        )
    ),
    (
      select
        'Without effect, for want of a grant: '
        || string_agg(p.polname || ' (' || p.command || ')', ', ' order by p.polname, p.command) || '.'
      from policy as p
      where p.oid = r.oid and p.role <> 0 and not exists (
        select from api as g
        where g.oid = r.oid and g.command = p.command and g.grantee in (p.role, 0)
      )
    ),
    (
      select 'Open to every tenant: ' || string_agg(distinct p.polname, ', ' order by p.polname) || '.' from policy as p
      where p.oid = r.oid and p.polpermissive and (
        p.role = 0 or r.has_tenant and 'true' in (p.condition, p.check_condition)
      )
    )
  ), '') as gap
from relation as r
order by r.nspname <> 'public', r.nspname, r.relname;
comment on view ops.rls_coverage is
'Every table: row level security, policies by command and role, grants by role, and gap: what is wrong with it in words, or null.';

create or replace view ops.access_health with (security_invoker) as
select
  counted.tables, counted.gaps, counted.first_gap, counted.suspended,
  case when counted.gaps > 0 then 'red' else 'green' end as status,
  case
    when counted.gaps > 0 then 'Read gap in ops.rls_coverage, and mend the table''s file in policies/.'
    else 'OK.'
  end as advice
from (
  select
    count(*) as tables, count(c.gap) as gaps,
    min(concat(c.schema, '.', c.relation, ': ', c.gap)) filter (where c.gap is not null) as first_gap,
    (
      select count(*) from public.organizations as o
      where o.suspended_at is not null
    ) as suspended
  from ops.rls_coverage as c
) as counted;
comment on view ops.access_health is 'Whether a table has a gap in its row level security, and how many organizations are suspended: one row.';
