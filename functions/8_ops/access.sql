-- Access, for administrators: explains a person's permissions, checks the row level security of all tables, and suspends a tenant.
-- No other role can call these functions: schema ops has no grants.

-- Accepts any identifier that an administrator has at hand. If several people share an address it returns null, because a guess could
-- pick the wrong person.
create or replace function ops.person_id(person text) returns uuid
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select (array_agg(p.id))[1]
  from public.profiles as p
  where p.clerk_user_id = person or p.id::text = lower(person) or lower(p.email) = lower(person)
  having count(*) = 1;
$$;
comment on function ops.person_id is 'Finds a person by Clerk''s id, our id or e-mail address. Null if no person or more than one matches.';

create or replace function ops.organization_id(organization text) returns uuid
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select (array_agg(o.id))[1]
  from public.organizations as o
  where o.clerk_org_id = organization or o.id::text = lower(organization) or o.slug = organization
  having count(*) = 1;
$$;
comment on function ops.organization_id is 'Finds an organization by Clerk''s id, our id or slug. Null if no organization or more than one matches.';

-- Calls the helper that the policies use, with the claims that the person's token would have. Only the explanation is made here.
-- The claims of the session are restored at the end; after an error the rollback restores them.
create or replace function ops.explain_access(person text, organization text) returns table (
  permission text, allowed boolean, without_second_factor boolean, because text
)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  profile public.profiles;
  tenant public.organizations;
  held_role text;
  display_name text;
  general_denial text;
  previous_claims text := coalesce(current_setting('request.jwt.claims', true), '');
  claims jsonb;
  with_factor text[];
  without_factor text[];
begin
  select p.* into profile from public.profiles as p where p.id = ops.person_id(explain_access.person);
  select o.* into tenant from public.organizations as o where o.id = ops.organization_id(explain_access.organization);
  select m.role into held_role from public.organization_memberships as m where m.user_id = profile.id and m.organization_id = tenant.id;
  display_name := coalesce(profile.full_name, profile.email, profile.clerk_user_id);

  claims := jsonb_build_object('sub', profile.clerk_user_id, 'role', 'authenticated');
  perform set_config('request.jwt.claims', (claims || '{"fva": [0, 0]}')::text, true);
  with_factor := array(
    select distinct rp.permission from public.role_permissions as rp where tenant.id = any(app.org_ids(rp.permission))
  );
  perform set_config('request.jwt.claims', (claims || '{"fva": [0, -1]}')::text, true);
  without_factor := array(
    select distinct rp.permission from public.role_permissions as rp where tenant.id = any(app.org_ids(rp.permission))
  );
  perform set_config('request.jwt.claims', previous_claims, true);

  general_denial := case
    when profile.id is null and app.is_erased(explain_access.person)
      then format('%s was deleted in Clerk or erased here.', explain_access.person)
    when profile.id is null then format(
      'No person or more than one matches %s: pass Clerk''s user id. If the person exists in Clerk, the webhook has not arrived.',
      explain_access.person
    )
    when tenant.id is null then format(
      'No organization or more than one matches %s: pass Clerk''s organization id.', explain_access.organization
    )
    when exists (select from app.erasure_log as l where l.state <> 'complete' and (l.person).id = profile.id)
      then 'The person is being erased: their tokens are refused.'
    when profile.banned then format('%s is banned or deprovisioned in Clerk: their tokens are refused everywhere.', display_name)
    when tenant.deleted_at is not null
      then format('%s was deleted in Clerk: it has been hidden since %s, until it is purged.', tenant.name, tenant.deleted_at::date)
    when tenant.suspended_at is not null then format(
      '%s has been suspended since %s (%s): ops.resume_organization() ends the suspension.',
      tenant.name, tenant.suspended_at::date, tenant.suspension_reason
    )
    when held_role is null then format('%s is not a member of %s.', display_name, tenant.name)
  end;

  return query
    select
      rp.permission, rp.permission = any(with_factor), rp.permission = any(without_factor),
      case
        when general_denial is not null then general_denial
        when not held_role = any(rp.roles) then format(
          '%s is %s of %s, and the role %s lacks this permission. Only %s.', display_name, held_role, tenant.name, held_role,
          array_to_string(rp.roles, ' and ') || case cardinality(rp.roles) when 1 then ' has it' else ' have it' end
        )
        when not rp.permission = any(with_factor) then 'Denied by a rule that is not explained here: read app.caller_memberships.'
        when not rp.permission = any(without_factor) then format(
          '%s is %s of %s, and the role has this permission. But %s requires a second factor of this role: '
          'without one it acts as %s.',
          display_name, held_role, tenant.name, tenant.name, (select r.fallback from public.roles as r where r.key = held_role)
        )
        else format('%s is %s of %s, and the role has this permission.', display_name, held_role, tenant.name)
      end
    from (
      select rp.permission, array_agg(r.key order by r.rank desc) as roles
      from public.role_permissions as rp
      join public.roles as r on r.key = rp.role
      group by rp.permission
    ) as rp
    order by rp.permission;
end;
$$;
comment on function ops.explain_access is
'Explains what a person may do in an organization: one row per permission, with and without a second factor.';

-- Hides the organization like a deleted one, but keeps its members and rows. The audit trail records the suspension with its reason;
-- owners can read it after the organization is resumed.
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
    raise exception 'There is no organization %.', clerk_org_id using hint = 'Pass Clerk''s id, org_…: ops.tenants lists the ids.';
  elsif coalesce(btrim(reason), '') = '' then
    raise exception 'A suspension needs a reason.' using hint = 'Pass the reason as the second argument: owners read it later.';
  elsif tenant.suspended_at is not null then
    return format('%s has already been suspended since %s: %s', tenant.name, tenant.suspended_at, tenant.suspension_reason);
  end if;
  perform set_config('app.unaudited', 'on', true);
  update public.organizations as o set suspended_at = now(), suspension_reason = btrim(reason) where o.id = tenant.id;
  perform set_config('app.unaudited', '', true);
  insert into public.audit_logs (organization_id, actor, action, resource_type, resource_id, metadata, mentions)
  select
    tenant.id, 'administrator', 'organization.suspended', 'organization', tenant.id::text, m.metadata,
    app.hash_mentions(app.find_identifiers(m.metadata::text))
  from jsonb_build_object('name', tenant.name, 'reason', btrim(reason)) as m (metadata);
  return format('%s is suspended: only administrators can reach its data. ops.resume_organization() ends the suspension.', tenant.name);
end;
$$;
comment on function ops.suspend_organization is 'Restricts an organization''s data to administrators until ops.resume_organization(). Deletes nothing.';

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
    raise exception 'There is no organization %.', clerk_org_id using hint = 'Pass Clerk''s id, org_…: ops.tenants lists the ids.';
  elsif tenant.suspended_at is null then
    return format('%s is not suspended.', tenant.name);
  end if;
  perform set_config('app.unaudited', 'on', true);
  update public.organizations as o set suspended_at = null, suspension_reason = null where o.id = tenant.id;
  perform set_config('app.unaudited', '', true);
  insert into public.audit_logs (organization_id, actor, action, resource_type, resource_id, metadata, mentions)
  select
    tenant.id, 'administrator', 'organization.resumed', 'organization', tenant.id::text, m.metadata,
    app.hash_mentions(app.find_identifiers(m.metadata::text))
  from jsonb_build_object('name', tenant.name, 'reason', tenant.suspension_reason, 'suspended_at', tenant.suspended_at) as m (metadata);
  return format('%s is no longer suspended: its members can reach it again.', tenant.name);
end;
$$;
comment on function ops.resume_organization is 'Ends a suspension by ops.suspend_organization().';

-- Supabase owns realtime.messages and decides its grants and that its row level security is not forced, so these are no gaps.
-- A partition can be queried directly, not only through its parent, so each partition has a row.
create or replace view ops.rls_coverage with (security_invoker) as
with relation as (
  select
    c.oid, n.nspname, c.relname, c.relrowsecurity, c.relforcerowsecurity, n.nspname = 'realtime' as is_supabases, c.relispartition,
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
    p.polrelid as oid, p.polname, r.oid as role, case r.oid when 0 then 'public' else pg_get_userbyid(r.oid) end as role_name,
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
  select g.oid, g.command, g.column_name, g.grantee, case g.grantee when 0 then 'public' else pg_get_userbyid(g.grantee) end as role_name
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
    case when not r.relrowsecurity then 'Row level security is off: run alter table … enable row level security.' end,
    case when not r.relforcerowsecurity and not r.is_supabases then 'Row level security is not forced: the owner bypasses policies.' end,
    (
      select 'Granted to ' || string_agg(distinct g.role_name, ', ' order by g.role_name) || ', which needs no access: revoke it.'
      from api as g
      where g.oid = r.oid and not r.is_supabases and (g.role_name in ('anon', 'public') or r.nspname = 'app')
    ),
    (
      select
        'authenticated has a grant, but there is no policy for '
        || string_agg(distinct g.command, ', ' order by g.command) || '.'
      from api as g
      where
        g.oid = r.oid and not r.is_supabases and g.role_name = 'authenticated' and g.command in ('select', 'insert', 'update', 'delete')
        and not exists (
          select from policy as p
          where p.oid = r.oid and p.command = g.command and p.role_name in ('authenticated', 'public') and p.polpermissive
        )
    ),
    (
      select
        'Policies without effect, because the grant is missing: '
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
'Every table with its row level security, policies and grants. gap describes what is wrong; it is null if nothing is.';

create or replace view ops.access_health with (security_invoker) as
select
  counted.tables, counted.gaps, counted.first_gap, counted.suspended,
  case when counted.gaps > 0 then 'red' else 'green' end as status,
  case
    when counted.gaps > 0 then 'A table lacks protection. Read gap in ops.rls_coverage and fix the table''s file in policies/.'
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
comment on view ops.access_health is 'Tables with a gap in their row level security, and the number of suspended organizations: one row.';
