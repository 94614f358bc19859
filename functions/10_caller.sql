-- Who is asking, and what they may do. Policies call these once per statement and they may never raise:
-- on Supabase Realtime one raising policy stops delivery to everyone. So: no casts of text a client wrote.

-- The caller's signed claims. Whatever else stands in the setting counts as no claims. So does text over 8 kB (Clerk's tokens stay
-- below 4): nested deeply enough it would exhaust the server's stack.
create or replace function app.claims() returns jsonb
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  setting text := current_setting('request.jwt.claims', true);
  claims jsonb;
begin
  if length(setting) > 8192 then
    return '{}';
  elsif current_setting('server_version_num')::integer >= 160000 then
    if pg_input_is_valid(setting, 'jsonb') then
      claims := setting::jsonb;
    end if;
  else
    begin
      claims := nullif(setting, '')::jsonb;
    exception when others then
      claims := null;
    end;
  end if;
  return case when jsonb_typeof(claims) = 'object' then claims else '{}' end;
end;
$$;
comment on function app.claims is 'The token''s claims, or an empty object.';

-- Clerk writes fva as [minutes since the first factor, minutes since the second], -1 for never.
create or replace function app.second_factor() returns boolean
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    case when jsonb_typeof(app.claims() -> 'fva' -> 1) = 'number' then (app.claims() -> 'fva' -> 1)::numeric >= 0 end,
    false
  );
$$;
comment on function app.second_factor is 'Whether this session was verified with a second factor.';

-- A pending session is a valid token of somebody who has not finished signing in: nobody, to us.
create or replace function app.user_id() returns uuid
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  claims jsonb := app.claims();
begin
  return (
    select p.id
    from public.profiles as p
    where p.clerk_user_id = claims ->> 'sub' and not p.banned and claims ->> 'sts' is distinct from 'pending'
  );
end;
$$;
comment on function app.user_id is 'The caller''s profile, or null. Definer: the policy on profiles needs it before it can read profiles.';

-- Where the caller belongs, as what. Owners and admins without the second factor their organization asks for act as viewers.
create or replace view app.caller_memberships with (security_barrier) as
select
  m.organization_id,
  m.role as granted_role,
  case
    when m.role in ('owner', 'admin') and o.mfa_required and not (select app.second_factor()) then 'viewer'
    else m.role
  end as role
from public.organization_memberships as m
join public.organizations as o on m.organization_id = o.id
where m.user_id = (select app.user_id()) and o.deleted_at is null;
comment on view app.caller_memberships is 'The caller''s memberships with the role that counts now. Only definer functions read it.';

create or replace function app.own_org_ids() returns uuid[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select m.organization_id from app.caller_memberships as m);
end;
$$;
comment on function app.own_org_ids is 'Organizations the caller belongs to. Definer: members cannot read memberships without it.';

create or replace function app.org_ids(permission text) returns uuid[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select m.organization_id
    from app.caller_memberships as m
    join public.role_permissions as rp on m.role = rp.role
    where rp.permission = org_ids.permission
  );
end;
$$;
comment on function app.org_ids is 'Organizations in which the caller holds the permission. Definer: members cannot read memberships without it.';

create or replace function app.visible_profile_ids() returns uuid[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select app.user_id()
    union
    select m.user_id
    from public.organization_memberships as m
    where m.organization_id = any(app.org_ids('members:read'))
  );
end;
$$;
comment on function app.visible_profile_ids is 'The caller and their co-members. Definer: it reads memberships for the policy on profiles.';

create or replace function app.my_permissions() returns table (organization_id uuid, role text, permissions text[])
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select m.organization_id, m.role, array(select rp.permission from public.role_permissions as rp where rp.role = m.role order by 1)
    from app.caller_memberships as m;
end;
$$;
comment on function app.my_permissions is 'The caller''s role and permissions per organization. Definer: it reads app.caller_memberships.';

-- The client asks before it shows a button; the policies decide whatever it shows.
create or replace function public.has_permission(organization_id uuid, permission text) returns boolean
language sql stable parallel safe security invoker set search_path = pg_catalog, pg_temp
as $$
  select has_permission.organization_id = any(app.org_ids(has_permission.permission));
$$;
comment on function public.has_permission is 'Whether the caller holds the permission in the organization.';

create or replace function public.my_permissions() returns table (organization_id uuid, role text, permissions text[])
language sql stable parallel safe security invoker set search_path = pg_catalog, pg_temp
as $$
  select p.organization_id, p.role, p.permissions from app.my_permissions() as p;
$$;
comment on function public.my_permissions is 'The caller''s role and permissions in each organization they belong to.';

grant execute on function app.claims(), app.second_factor(), app.user_id(), app.own_org_ids(), app.org_ids(text),
app.visible_profile_ids(), app.my_permissions() to authenticated, service_role;
grant execute on function public.has_permission(uuid, text), public.my_permissions() to authenticated;

-- PostgreSQL 15 has no pg_input_is_valid, and what takes its place there cannot run in a parallel plan.
do $$
declare
  helper regprocedure;
begin
  if current_setting('server_version_num')::integer < 160000 then
    foreach helper in array array[
      'app.claims()', 'app.second_factor()', 'app.user_id()', 'app.own_org_ids()', 'app.org_ids(text)', 'app.visible_profile_ids()',
      'app.my_permissions()', 'public.has_permission(uuid, text)', 'public.my_permissions()'
    ]::regprocedure[] loop
      execute format('alter function %s parallel unsafe', helper);
    end loop;
  end if;
end;
$$;
