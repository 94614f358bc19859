-- What the service asks, as the person, before it asks Clerk to invite or to remove somebody. Clerk then tells of it by a webhook.

create or replace function app.prepare_invitation(organization_id uuid, role text) returns jsonb
language plpgsql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  key text;
begin
  if organization_id is null or not organization_id = any(app.org_ids('members:invite')) then
    raise sqlstate 'PT403' using message = 'You may not invite people to this organization.', hint = 'It takes members:invite.';
  elsif role is null or role not in ('admin', 'member', 'viewer') then
    raise sqlstate 'PT400' using message = 'People are invited as admin, member or viewer.';
  end if;
  -- Clerk's default key, where it means this here, before a key of the customer's own.
  select r.key into key from app.clerk_roles as r where r.role = role
  order by r.key = 'org:' || role desc, starts_with(r.key, 'org:') desc, r.key
  limit 1;
  if key is null then
    raise sqlstate 'PT400' using message = 'No role of Clerk means this here.', hint = 'Add one to app.clerk_roles.';
  end if;
  return jsonb_build_object(
    'clerk_org_id', (select o.clerk_org_id from public.organizations as o where o.id = organization_id), 'clerk_role', key
  );
end;
$$;
comment on function app.prepare_invitation is 'Clerk''s ids of the invitation that the caller may send. Definer: app.clerk_roles is private.';

create or replace function app.prepare_removal(organization_id uuid, profile_id uuid) returns jsonb
language plpgsql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  found_role text;
  prepared jsonb;
begin
  if organization_id is null or not organization_id = any(app.org_ids('members:remove')) then
    raise sqlstate 'PT403' using message = 'You may not remove members of this organization.', hint = 'It takes members:remove.';
  end if;
  select m.role, jsonb_build_object('clerk_org_id', o.clerk_org_id, 'clerk_user_id', p.clerk_user_id) into found_role, prepared
  from public.organization_memberships as m
  join public.organizations as o on o.id = m.organization_id
  join public.profiles as p on p.id = m.user_id
  where m.organization_id = organization_id and m.user_id = profile_id;
  if found_role is null then
    raise sqlstate 'PT404' using message = 'There is no such member.';
  elsif found_role = 'owner' then
    if not exists (select from app.caller_memberships as m where m.organization_id = organization_id and m.role = 'owner') then
      raise sqlstate 'PT403' using message = 'Only an owner may remove an owner.';
    elsif not exists (
      select from public.organization_memberships as m
      where m.organization_id = organization_id and m.role = 'owner' and m.user_id <> profile_id
    ) then
      raise sqlstate 'PT409' using message = 'The organization would be without an owner.', hint = 'Make somebody else an owner first.';
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
'For the service, as the caller: {clerk_org_id, clerk_role} of the invitation they may send. Raises PT403 and PT400. Sends nothing.';

create or replace function public.prepare_removal(organization_id uuid, profile_id uuid) returns jsonb
language sql stable parallel restricted security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.prepare_removal(prepare_removal.organization_id, prepare_removal.profile_id);
$$;
comment on function public.prepare_removal is
'For the service, as the caller: {clerk_org_id, clerk_user_id} of the member they may remove. Raises PT403, PT404 and PT409. Removes nobody.';

grant execute on function app.prepare_invitation(uuid, text), app.prepare_removal(uuid, uuid),
public.prepare_invitation(uuid, text), public.prepare_removal(uuid, uuid)
to authenticated;
