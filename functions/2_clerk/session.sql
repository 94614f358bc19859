-- The start of a session: returns the caller's profile, organizations and permissions. A browser may arrive with a valid token before
-- Clerk's webhooks do. Then this creates provisional rows from the signed claims.

-- Tokens of version 2 have o: {id, rol, slg}; older ones have org_id, org_role and org_slug.
create or replace function app.claimed_organization(claims jsonb, out clerk_id text, out clerk_role text, out slug text)
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select
    coalesce(app.clerk_text(claims -> 'o' -> 'id'), app.clerk_text(claims -> 'org_id')),
    coalesce('org:' || app.clerk_text(claims -> 'o' -> 'rol'), app.clerk_text(claims -> 'org_role')),
    coalesce(app.clerk_text(claims -> 'o' -> 'slg'), app.clerk_text(claims -> 'org_slug'));
$$;
comment on function app.claimed_organization is 'The active organization of a session token, or nulls.';

-- These stubs have smaller stamps than any data from Clerk, which therefore replaces them. A tombstone newer than the token wins over the
-- membership (see app.project_membership). Accepts only Clerk user ids: a project may have other token issuers, such as Supabase Auth,
-- where anyone may sign up.
create or replace function app.provision(claims jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  person text := claims ->> 'sub';
  issued_at timestamptz := app.clerk_event_time(app.clerk_number(claims -> 'iat'));
  organization record := app.claimed_organization(claims);
begin
  if issued_at is null or person not like 'user\_%' or length(person) > 256 then
    return;
  end if;
  perform app.lock_clerk_objects(array[person, organization.clerk_id]);
  perform app.merge_record('user', person, (false, '-infinity', false, '-infinity', null), '{}');
  if organization.clerk_id is not null then
    perform app.merge_record(
      'organization', organization.clerk_id, (false, '-infinity', false, '-infinity', null),
      jsonb_build_object('id', organization.clerk_id, 'slug', organization.slug)
    );
    perform app.merge_record(
      'membership', format('session:%s:%s', organization.clerk_id, person), (false, issued_at, false, issued_at, null),
      jsonb_build_object('role', organization.clerk_role, 'created_at', claims -> 'iat'),
      organization.clerk_id, person
    );
  end if;
end;
$$;
comment on function app.provision is 'Creates the profile, organization and membership that a signed token proves and no webhook has delivered yet.';

create or replace function app.is_provisioned(claims jsonb) returns boolean
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select exists (select from public.profiles as p where p.clerk_user_id = claims ->> 'sub')
    and (o.clerk_id is null or exists (
      select
      from public.organization_memberships as m
      join public.organizations as g on g.id = m.organization_id
      join public.profiles as p on p.id = m.user_id
      where p.clerk_user_id = claims ->> 'sub' and g.clerk_org_id = o.clerk_id
        and (m.clerk_membership_id is not null or m.clerk_role is not distinct from o.clerk_role)
    ))
  from app.claimed_organization(claims) as o;
$$;
comment on function app.is_provisioned is 'Whether the rows exist that a token refers to.';

create or replace function app.start_session() returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  claims jsonb := app.claims();
  me uuid;
begin
  if claims = '{}' and starts_with(current_setting('request.jwt.claims', true), '{"') then
    raise sqlstate 'PT401' using message = 'The token''s claims exceed 8 kB or 64 levels, so they are not read.',
      hint = 'Put fewer custom claims into Clerk''s session token: see "The size of a token" in docs/limits.md.';
  elsif coalesce(claims ->> 'sub', '') = '' then
    raise sqlstate 'PT401' using message = 'The request has no signed-in user.', hint = 'Send a Clerk session token as the bearer token.';
  elsif coalesce(claims ->> 'sts', 'active') <> 'active' then
    raise sqlstate 'PT403' using message = 'The sign-in is not finished.', hint = 'Finish the tasks that Clerk shows, then try again.';
  end if;
  if not app.is_provisioned(claims) then
    perform app.provision(claims);
  end if;
  me := app.user_id();
  if me is null then
    raise sqlstate 'PT403' using message = 'This account is banned, deactivated or deleted.', hint = 'Ask an administrator.';
  end if;
  update public.profiles as p set last_seen_at = now()
  where p.id = me and (p.last_seen_at is null or p.last_seen_at < now() - interval '1 minute');

  return jsonb_build_object(
    'profile', (
      select jsonb_build_object(
        'id', p.id, 'clerk_user_id', p.clerk_user_id, 'email', p.email, 'full_name', p.full_name, 'avatar_url', p.avatar_url,
        'current_organization_id', p.current_organization_id, 'preferences', p.preferences
      )
      from public.profiles as p where p.id = me
    ),
    'second_factor', app.has_second_factor(),
    'organizations', (
      select coalesce(jsonb_agg(jsonb_build_object(
        'id', o.id, 'clerk_org_id', o.clerk_org_id, 'name', o.name, 'slug', o.slug, 'role', m.granted_role,
        'permissions', (
          select coalesce(jsonb_agg(rp.permission order by rp.permission), '[]') from public.role_permissions as rp where rp.role = m.role
        ),
        'mfa_required', o.mfa_required, 'limited_by', case when m.role <> m.granted_role then 'second_factor' end
      ) order by o.name, o.id), '[]')
      from app.caller_memberships as m
      join public.organizations as o on o.id = m.organization_id
    )
  );
end;
$$;
comment on function app.start_session is 'The caller''s session. Provisions the caller first if Clerk''s webhook is late. Definer: it writes profiles and the sync''s tables. The caller learns: their own profile, organizations and permissions.';

create or replace function public.start_session() returns jsonb
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.start_session();
$$;
comment on function public.start_session is
'Call it after sign-in. Returns the caller''s profile and, per organization, the role, the effective permissions and what limits them (second_factor).';

grant execute on function app.start_session(), public.start_session() to authenticated;

-- The service's readiness probe: a real query through the Data API.
create or replace function public.ready() returns boolean
language sql stable parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select true;
$$;
comment on function public.ready is 'True if the database answers through the Data API.';
grant execute on function public.ready() to service_role;
