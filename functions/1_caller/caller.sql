-- The caller's identity and permissions. Policies call these functions once per statement. They must never raise: on Supabase Realtime
-- one policy that raises stops delivery to all subscribers. Therefore they never cast text that a client wrote.

-- The caller's signed claims, in one row. Null if the setting is not a JSON object, exceeds 8 kB or has more than 64 levels: larger JSON
-- could be nested so deeply that parsing it exhausts the server's stack. Clerk's tokens stay below 4 kB.
-- This and app.caller are views, so that each function below is one query that reads the claims once. Speed matters: these functions run in
-- each statement of a browser (`./scripts/bench rls`).
do $$
begin
  if current_setting('server_version_num')::integer >= 160000 then
    -- "offset 0" stops the planner from parsing the claims again for each use of a column.
    create or replace view app.token as
    select case when not jsonb_path_exists(p.claims, 'strict $.**{64}') then p.claims end as claims
    from (
      select case
        when starts_with(ltrim(s.claims, e' \t\r\n'), '{') and octet_length(s.claims) <= 8192 and pg_input_is_valid(s.claims, 'jsonb')
          then s.claims::jsonb
      end as claims
      from (select current_setting('request.jwt.claims', true) as claims) as s
      offset 0
    ) as p
    offset 0;
  else
    -- PostgreSQL 15 has no pg_input_is_valid(), so the cast is tried.
    create or replace function app.try_claims() returns jsonb
    language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
    as $try$
    declare
      setting text := current_setting('request.jwt.claims', true);
      claims jsonb;
    begin
      if starts_with(ltrim(setting, e' \t\r\n'), '{') and octet_length(setting) <= 8192 then
        claims := setting::jsonb;
      end if;
      return case when not jsonb_path_exists(claims, 'strict $.**{64}') then claims end;
    exception when data_exception or program_limit_exceeded then
      return null;
    end;
    $try$;
    comment on function app.try_claims is 'The claims setting as JSON, or null if it is not valid. PostgreSQL 15 only.';
    create or replace view app.token as select app.try_claims() as claims offset 0;
  end if;
end;
$$;
comment on view app.token is 'The token''s claims, or null. Only definer functions read it.';

create or replace function app.claims() returns jsonb
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((select t.claims from app.token as t), '{}');
end;
$$;
comment on function app.claims is 'The token''s claims, or an empty object. Definer: it reads app.token.';

-- PostgREST takes the role from any valid token, so a customised role claim at Clerk turns a person into service_role. A grant cannot
-- distinguish that person from the service. Therefore each function for the service begins with this check. It must accept the project's
-- own keys, whose issuer is "supabase". It accepts an issuer URL only if Supabase issues tokens there, unlike https://clerk.example.com.
create or replace function app.refuse_clerk_tokens() returns void
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  claims jsonb;
begin
  if coalesce(current_setting('request.jwt.claims', true), '') = '' then
    return; -- not through the API, for example a cron job or an administrator
  end if;
  claims := (select t.claims from app.token as t);
  if claims is null or claims ->> 'sub' like 'user\_%'
    or (claims ->> 'iss' like 'http%' and claims ->> 'iss' !~ '^https://[a-z0-9]+\.supabase\.(co|com|in)(/|$)|/auth/v1$') then
    raise insufficient_privilege using
      message = 'Only the secret key may call this function, not a Clerk token.',
      hint = 'Clerk''s session tokens must have the role "authenticated": see "The role claim" in docs/deploy.md.';
  end if;
end;
$$;
comment on function app.refuse_clerk_tokens is
'Raises 42501 if the request''s token is Clerk''s, whatever its role, or cannot be read. Definer: it reads app.token.';

-- The caller's profile. A pending session has a valid token although the person has not finished signing in, so it does not count.
-- Clerk writes fva as [minutes since the first factor, minutes since the second factor], -1 for never.
create or replace view app.caller as
select p.id, coalesce(t.claims @? 'strict $.fva[1] ? (@ >= 0)', false) as second_factor, t.claims
from app.token as t
join public.profiles as p on t.claims ->> 'sub' = p.clerk_user_id
where not p.banned and coalesce(t.claims ->> 'sts', 'active') = 'active';
comment on view app.caller is 'The caller''s profile, whether the session has a second factor, and the claims. Empty without a known, active caller. Only definer functions read it.';

create or replace function app.has_second_factor() returns boolean
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from app.caller as c where c.second_factor);
end;
$$;
comment on function app.has_second_factor is 'Whether this session was verified with a second factor. Definer: it reads app.caller.';

create or replace function app.user_id() returns uuid
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return (select c.id from app.caller as c);
end;
$$;
comment on function app.user_id is 'The id of the caller''s profile, or null. Definer: the policy on profiles needs it before it can read profiles. The caller learns: their own profile id.';

-- The caller's memberships. Without the second factor that the organization and the role require, the role is its fallback. The join to
-- public.roles is an outer one, so that the planner leaves it out where only the organization is asked for.
create or replace view app.caller_memberships as
select
  m.organization_id,
  m.role as granted_role,
  case when o.mfa_required and not c.second_factor then coalesce(r.fallback, m.role) else m.role end as role
from app.caller as c
join public.organization_memberships as m on c.id = m.user_id
join public.organizations as o on m.organization_id = o.id
left join public.roles as r on m.role = r.key
where o.deleted_at is null and o.suspended_at is null;
comment on view app.caller_memberships is 'The caller''s memberships, each with the granted and the effective role. Only definer functions read it.';

create or replace function app.caller_rank(organization_id uuid) returns integer
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select r.rank from app.caller_memberships as m
    join public.roles as r on r.key = m.role
    where m.organization_id = caller_rank.organization_id
  );
end;
$$;
comment on function app.caller_rank is 'The rank of the caller''s effective role in the organization, or null. Definer: it reads app.caller_memberships.';

create or replace function app.own_org_ids() returns uuid[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select m.organization_id from app.caller_memberships as m);
end;
$$;
comment on function app.own_org_ids is 'Organizations the caller belongs to. Definer: members cannot read memberships without it. The caller learns: their own organizations.';

create or replace function app.org_ids(permission text) returns uuid[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select m.organization_id
    from app.caller_memberships as m
    where m.role = any(array(select rp.role from public.role_permissions as rp where rp.permission = org_ids.permission))
  );
end;
$$;
comment on function app.org_ids is 'Organizations in which the caller holds the permission. Definer: members cannot read memberships without it. The caller learns: their own organizations.';

create or replace function app.visible_profile_ids() returns uuid[]
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select c.id from app.caller as c
    union
    select m.user_id
    from public.organization_memberships as m
    where m.organization_id = any((select app.org_ids('members:read'))::uuid[])
  );
end;
$$;
comment on function app.visible_profile_ids is 'The caller and their co-members. Definer: it reads memberships for the policy on profiles. The caller learns: themselves, and co-members where they have members:read.';

create or replace function app.my_permissions() returns table (organization_id uuid, role text, permissions text[])
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select m.organization_id, m.role, array(select rp.permission from public.role_permissions as rp where rp.role = m.role order by 1)
    from app.caller_memberships as m;
end;
$$;
comment on function app.my_permissions is 'The caller''s role and permissions per organization. Definer: it reads app.caller_memberships. The caller learns: their own organizations, roles and permissions.';

-- Clients call this to decide which buttons to show. It protects nothing: the policies do.
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

grant execute on function app.user_id(), app.own_org_ids(), app.org_ids(text), app.visible_profile_ids(), app.my_permissions()
to authenticated;
grant execute on function public.has_permission(uuid, text), public.my_permissions() to authenticated;
-- user_id() is the default of columns such as created_by. For the service it is null.
grant execute on function app.refuse_clerk_tokens(), app.user_id() to service_role;

-- On PostgreSQL 15 all of these call app.try_claims(), which cannot run in a parallel plan.
do $$
declare
  helper regprocedure;
begin
  if current_setting('server_version_num')::integer < 160000 then
    foreach helper in array array[
      'app.claims()', 'app.refuse_clerk_tokens()', 'app.has_second_factor()', 'app.user_id()', 'app.caller_rank(uuid)', 'app.own_org_ids()', 'app.org_ids(text)',
      'app.visible_profile_ids()', 'app.my_permissions()', 'public.has_permission(uuid, text)', 'public.my_permissions()'
    ]::regprocedure[] loop
      execute format('alter function %s parallel unsafe', helper);
    end loop;
  end if;
end;
$$;
