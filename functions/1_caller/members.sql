-- The service calls these as the caller before it asks Clerk to invite a person or to remove a member. Clerk then sends a webhook.

create or replace function app.prepare_invitation(organization_id uuid, role text) returns jsonb
language plpgsql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  key text;
begin
  if organization_id is null or not organization_id = any(app.org_ids('members:invite')) then
    raise sqlstate 'PT403' using
      message = 'You may not invite people to this organization.', hint = 'Your role needs the permission members:invite.';
  elsif role is null or role not in ('admin', 'member', 'viewer') then
    raise sqlstate 'PT400' using message = 'The role of an invitation must be admin, member or viewer.';
  end if;
  -- Several Clerk role keys may map to this role. Prefer Clerk's default key to custom ones.
  select r.key into key from app.clerk_roles as r where r.role = role
  order by r.key = 'org:' || role desc, starts_with(r.key, 'org:') desc, r.key
  limit 1;
  if key is null then
    raise sqlstate 'PT400' using message = 'No Clerk role maps to this role.', hint = 'Add a row to app.clerk_roles.';
  end if;
  return jsonb_build_object(
    'clerk_org_id', (select o.clerk_org_id from public.organizations as o where o.id = organization_id), 'clerk_role', key
  );
end;
$$;
comment on function app.prepare_invitation is 'The Clerk organization id and role key for an invitation that the caller may send. Definer: app.clerk_roles is private.';

create or replace function app.prepare_removal(organization_id uuid, profile_id uuid) returns jsonb
language plpgsql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  found_role text;
  prepared jsonb;
begin
  if organization_id is null or not organization_id = any(app.org_ids('members:remove')) then
    raise sqlstate 'PT403' using
      message = 'You may not remove members of this organization.', hint = 'Your role needs the permission members:remove.';
  end if;
  select m.role, jsonb_build_object('clerk_org_id', o.clerk_org_id, 'clerk_user_id', p.clerk_user_id) into found_role, prepared
  from public.organization_memberships as m
  join public.organizations as o on o.id = m.organization_id
  join public.profiles as p on p.id = m.user_id
  where m.organization_id = organization_id and m.user_id = profile_id;
  if found_role is null then
    raise sqlstate 'PT404' using message = 'This person is not a member of the organization.';
  elsif found_role = 'owner' then
    if not exists (select from app.caller_memberships as m where m.organization_id = organization_id and m.role = 'owner') then
      raise sqlstate 'PT403' using message = 'Only an owner may remove an owner.';
    elsif not exists (
      select from public.organization_memberships as m
      where m.organization_id = organization_id and m.role = 'owner' and m.user_id <> profile_id
    ) then
      raise sqlstate 'PT409' using message = 'The organization would have no owner.', hint = 'Make another member an owner first.';
    end if;
  end if;
  return prepared;
end;
$$;
comment on function app.prepare_removal is 'The Clerk ids of a member that the caller may remove. Definer: it reads memberships and Clerk''s ids.';

create or replace function public.prepare_invitation(organization_id uuid, role text) returns jsonb
language sql stable parallel restricted security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.prepare_invitation(prepare_invitation.organization_id, prepare_invitation.role);
$$;
comment on function public.prepare_invitation is
'For the service, as the caller: {clerk_org_id, clerk_role} of an invitation the caller may send. Raises PT403 and PT400. Sends nothing.';

create or replace function public.prepare_removal(organization_id uuid, profile_id uuid) returns jsonb
language sql stable parallel restricted security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.prepare_removal(prepare_removal.organization_id, prepare_removal.profile_id);
$$;
comment on function public.prepare_removal is
'For the service, as the caller: {clerk_org_id, clerk_user_id} of a member the caller may remove. Raises PT403, PT404 and PT409. Removes nothing.';

grant execute on function app.prepare_invitation(uuid, text), app.prepare_removal(uuid, uuid),
public.prepare_invitation(uuid, text), public.prepare_removal(uuid, uuid)
to authenticated;
