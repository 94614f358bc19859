-- The service calls these as the caller before it asks Clerk to invite a person or to remove a member. Clerk then sends a webhook. Its
-- audit entry names only Clerk, so the request has an entry of its own, even if Clerk then refuses it.

create or replace function app.record_member_request(
  organization_id uuid, action text, resource_type text, resource_id uuid, metadata jsonb, subject uuid
) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  entry public.audit_logs := app.start_audit_entry();
begin
  perform app.limit_audit_events(organization_id);
  entry.id := gen_random_uuid();
  entry.created_at := now();
  entry.organization_id := organization_id;
  entry.action := action;
  entry.resource_type := resource_type;
  entry.resource_id := resource_id;
  entry.metadata := metadata;
  entry.subject_ids := case when subject <> entry.user_id then array[subject] end;
  insert into public.audit_logs select (entry).*;
end;
$$;
comment on function app.record_member_request is 'Records in the audit trail that the caller asked for an invitation or a removal.';

-- Support may look at what a person sees, but not change who belongs.
create or replace function app.refuse_impersonator() returns void
language plpgsql stable parallel restricted set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(app.claims() -> 'act', 'null') <> 'null' then
    raise sqlstate 'PT403' using
      message = 'An impersonator may neither invite nor remove people.', hint = 'Ask the person to sign in themselves.';
  end if;
end;
$$;
comment on function app.refuse_impersonator is 'Raises PT403 in the session of an impersonator (the token''s act claim).';

create or replace function app.prepare_invitation(organization_id uuid, role text) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  invitable text[] := array(
    select r.key from public.roles as r where r.may_be_invited and r.rank <= app.caller_rank(organization_id) order by r.rank desc
  );
  key text;
begin
  perform app.refuse_impersonator();
  if organization_id is null or not organization_id = any(app.org_ids('members:invite')) then
    raise sqlstate 'PT403' using
      message = 'You may not invite people to this organization.', hint = 'Your role needs the permission members:invite.';
  elsif role is null or role <> all(invitable) then
    raise sqlstate 'PT400' using
      message = format('The role of an invitation must be one of these: %s.', array_to_string(invitable, ', ')),
      hint = 'Members invite people in roles of their own rank or lower.';
  end if;
  key := app.clerk_role_key(role);
  if key is null then
    raise sqlstate 'PT400' using message = 'No Clerk role maps to this role.', hint = 'Add a row to app.clerk_roles.';
  end if;
  -- Without the address: it may belong to a person without an account, and invitation.created omits it too.
  perform app.record_member_request(
    organization_id, 'invitation.requested', 'invitation', null, jsonb_build_object('role', role), null
  );
  return jsonb_build_object(
    'clerk_org_id', (select o.clerk_org_id from public.organizations as o where o.id = organization_id), 'clerk_role', key
  );
end;
$$;
comment on function app.prepare_invitation is 'The Clerk organization id and role key for an invitation that the caller may send. Definer: app.clerk_roles is private, and no API role may write the audit trail. The caller learns: an organization''s Clerk id, if they may invite there; the role key for it.';

create or replace function app.prepare_removal(organization_id uuid, profile_id uuid) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  membership uuid;
  found_role text;
  prepared jsonb;
begin
  perform app.refuse_impersonator();
  if organization_id is null or not organization_id = any(app.org_ids('members:remove')) then
    raise sqlstate 'PT403' using
      message = 'You may not remove members of this organization.', hint = 'Your role needs the permission members:remove.';
  end if;
  select m.id, m.role, jsonb_build_object('clerk_org_id', o.clerk_org_id, 'clerk_user_id', p.clerk_user_id)
  into membership, found_role, prepared
  from public.organization_memberships as m
  join public.organizations as o on o.id = m.organization_id
  join public.profiles as p on p.id = m.user_id
  where m.organization_id = organization_id and m.user_id = profile_id;
  if found_role is null then
    raise sqlstate 'PT404' using message = 'This person is not a member of the organization.';
  elsif (app.caller_rank(organization_id) >= (select r.rank from public.roles as r where r.key = found_role)) is not true then
    -- Also if the caller left the organization meanwhile, so that they have no rank.
    raise sqlstate 'PT403' using
      message = format('Your role ranks below the role %s of this person.', found_role),
      hint = 'Ask a member of that role or a higher one to remove them.';
  elsif found_role = 'owner' and not exists (
    select from public.organization_memberships as m
    where m.organization_id = organization_id and m.role = 'owner' and m.user_id <> profile_id
  ) then
    raise sqlstate 'PT409' using message = 'The organization would have no owner.', hint = 'Ask an administrator to transfer the ownership first.';
  end if;
  perform app.record_member_request(
    organization_id, 'member.removal_requested', 'member', membership,
    jsonb_build_object('user_id', profile_id, 'role', found_role), profile_id
  );
  return prepared;
end;
$$;
comment on function app.prepare_removal is 'The Clerk ids of a member that the caller may remove. Definer: it reads memberships and Clerk''s ids, and writes the audit trail. The caller learns: Clerk''s ids of a member, if they may remove members of the organization.';

create or replace function public.prepare_invitation(organization_id uuid, role text) returns jsonb
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.prepare_invitation(prepare_invitation.organization_id, prepare_invitation.role);
$$;
comment on function public.prepare_invitation is
'For the service, as the caller: {clerk_org_id, clerk_role} of an invitation the caller may send. Raises PT403, PT400 and PT429. Records the request, sends nothing.';

create or replace function public.prepare_removal(organization_id uuid, profile_id uuid) returns jsonb
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.prepare_removal(prepare_removal.organization_id, prepare_removal.profile_id);
$$;
comment on function public.prepare_removal is
'For the service, as the caller: {clerk_org_id, clerk_user_id} of a member the caller may remove. Raises PT403, PT404, PT409 and PT429. Records the request, removes nothing.';

grant execute on function app.prepare_invitation(uuid, text), app.prepare_removal(uuid, uuid),
public.prepare_invitation(uuid, text), public.prepare_removal(uuid, uuid)
to authenticated;
