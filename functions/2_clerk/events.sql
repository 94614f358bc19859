-- Turns events into writes (app.merge_record, app.record_deletion). inbox.sql stores the events and calls app.apply_clerk_event.

-- Clerk's schema requires of a deleted membership neither its organization nor its person. What the event lacks comes from the record
-- or the tombstone. If there is none yet, the deletion waits as a tombstone; any other event fails, and is retried once the membership is
-- known.
create or replace function app.apply_clerk_membership(data jsonb, stamp app.clerk_stamp, deleted_at timestamptz) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  membership text := app.clerk_text(data -> 'id');
  organization text := app.clerk_text(data -> 'organization' -> 'id');
  person text := app.clerk_text(data -> 'public_user_data' -> 'user_id');
  organization_updated_at timestamptz := app.clerk_event_time(data -> 'organization' -> 'updated_at');
  is_whole boolean := organization_updated_at is not null and data -> 'organization' ?& array['created_by', 'max_allowed_memberships'];
  changed boolean := false;
begin
  -- The copy of the person is partial. So is that of the organization, unless it has its own updated_at and all fields that we use.
  if person is not null
    and app.merge_record('user', person, (false, stamp.source_updated_at, false, stamp.event_at, null), data -> 'public_user_data') then
    changed := true;
  end if;
  if organization is not null and app.merge_record(
    'organization', organization,
    (is_whole, coalesce(organization_updated_at, stamp.source_updated_at), false, stamp.event_at, null), data -> 'organization'
  ) then
    changed := true;
  end if;
  if organization is null or person is null then
    select coalesce(organization, r.organization_id, t.organization_id), coalesce(person, r.user_id, t.user_id) into organization, person
    from (select) as one
    left join app.clerk_records as r on r.kind = 'membership' and r.clerk_id = membership
    left join app.clerk_tombstones as t on t.kind = 'membership' and t.clerk_id = membership;
  end if;
  if deleted_at is not null then
    return app.record_deletion('membership', membership, deleted_at, organization, person, app.clerk_time(data -> 'created_at')) or changed;
  elsif organization is null or person is null then
    raise exception 'the membership has no organization id or no user id, and is not known yet';
  end if;
  return app.merge_record('membership', membership, stamp, data, organization, person) or changed;
end;
$$;
comment on function app.apply_clerk_membership is
'Applies a membership event (a deletion if deleted_at is given): first the copies of the person and the organization, then the membership.';

-- Writes with the smallest stamp, so that any other data about the organization replaces it.
create or replace function app.ensure_organization(clerk_id text, name text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.merge_record(
    'organization', clerk_id, (false, '-infinity', false, '-infinity', null),
    jsonb_build_object('id', clerk_id, 'name', name)
  );
end;
$$;
comment on function app.ensure_organization is 'Ensures that there is a row for an organization that another object refers to.';

-- The items in a subscription are copies. Each item also has its own events.
create or replace function app.apply_clerk_subscription(data jsonb, stamp app.clerk_stamp, organization text) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  item jsonb;
  item_id text;
  changed boolean := app.merge_record('subscription', app.clerk_text(data -> 'id'), stamp, data, organization);
begin
  for item in select jsonb_path_query(data, '$.items[*]') loop
    item_id := app.clerk_text(item -> 'id');
    if item_id is not null and app.merge_record(
      'subscription_item', item_id,
      (true, coalesce(app.clerk_event_time(item -> 'updated_at'), stamp.source_updated_at), false, stamp.event_at, null),
      item, organization
    ) then
      changed := true;
    end if;
  end loop;
  return changed;
end;
$$;
comment on function app.apply_clerk_subscription is 'Applies a subscription event and the items in it.';

-- Writes are ordered by the object's updated_at, else by the event's time, else by the object's created_at. Without any of them, a write
-- yields to every other one. If that loses data, the event fails, so that it shows until the object is read from Clerk again.
--
-- Returns 'ignored' for an event type that we do not handle, and 'stale' if the event changed no record. Raises if the payload lacks an id.
create or replace function app.apply_clerk_event(event jsonb) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  subject text := split_part(event ->> 'type', '.', 1);
  action text := split_part(event ->> 'type', '.', 2);
  kind text := case subject
    when 'organizationMembership' then 'membership' when 'organizationInvitation' then 'invitation' when 'subscriptionItem' then 'subscription_item'
    else subject
  end;
  data jsonb := event -> 'data';
  id text := app.clerk_text(data -> 'id');
  payer jsonb := data -> 'payer';
  organization text := coalesce(app.clerk_text(data -> 'organization_id'), app.clerk_text(payer -> 'organization_id'));
  sent_at timestamptz := app.clerk_event_time(event -> 'timestamp');
  deleted_at timestamptz := coalesce(sent_at, 'infinity');
  created_at timestamptz := app.clerk_event_time(data -> 'created_at');
  updated_at timestamptz := coalesce(app.clerk_event_time(data -> 'updated_at'), sent_at, case when action = 'created' then created_at end);
  assumed_at timestamptz := coalesce(updated_at, created_at, '-infinity');
  stamp app.clerk_stamp := (true, assumed_at, true, coalesce(sent_at, assumed_at), null);
  changed boolean;
begin
  if not (
    kind in ('user', 'organization', 'membership', 'role', 'permission') and action in ('created', 'updated', 'deleted')
    or kind = 'invitation' and action <> 'deleted' -- Clerk never deletes these: their status ends them
    or kind in ('subscription', 'subscription_item') and action <> 'deleted'
    and (organization is not null or app.clerk_text(payer -> 'user_id') is null) -- else a person subscribed
  ) then
    return 'ignored';
  end if;
  if id is null then
    raise exception 'the event has no object id: data.id is missing';
  end if;
  if kind = 'membership' then
    changed := app.apply_clerk_membership(data, stamp, case when action = 'deleted' then deleted_at end);
  elsif action = 'deleted' then
    changed := app.record_deletion(kind, id, deleted_at);
  elsif kind = 'invitation' and (action in ('accepted', 'revoked') or data ->> 'status' <> 'pending') then
    changed := app.record_deletion(kind, id, deleted_at); -- an answer is final, and the address is no longer needed
  elsif kind = 'subscription_item' and action in ('ended', 'abandoned') and updated_at is null then
    changed := app.record_deletion(kind, id, deleted_at); -- without a time to compare, the end is final
  elsif kind = 'invitation' and organization is null then
    raise exception 'the invitation has no organization id';
  else
    if kind = 'invitation' then
      perform app.lock_addresses(is_erasure => false);
    end if;
    if kind in ('invitation', 'subscription', 'subscription_item') and organization is not null then
      perform app.ensure_organization(organization, payer ->> 'organization_name');
    end if;
    changed := case kind
      when 'subscription' then app.apply_clerk_subscription(data, stamp, organization)
      else app.merge_record(kind, id, stamp, data, case when kind in ('invitation', 'subscription_item') then organization end)
    end;
  end if;
  if not changed and action <> 'deleted' and updated_at is null and exists (
    select from app.clerk_records as r
    where r.kind = kind and r.clerk_id = id and r.fields <> app.keep_created_at(app.read_fields(r.kind, data), r.fields)
  ) then
    raise exception 'the event has no usable time, so it cannot replace what is recorded: `ballast clerk reconcile --fix` reads the object again';
  end if;
  return case when changed then 'processed' else 'stale' end;
end;
$$;
comment on function app.apply_clerk_event is 'Applies one event. Returns processed, stale or ignored.';

-- Before the statement locks a row of public.roles. An event holds this lock, too, and then its foreign key waits for that row: a deadlock.
-- Writers also wait for each other here, so that each sees the roles that the others committed.
create or replace function app.lock_roles() returns trigger
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock('app.clerk_roles'::regclass::oid::integer, 0);
  return null;
end;
$$;
comment on function app.lock_roles is 'Waits for running events, and makes later ones wait, until the transaction that changes roles ends.';

create or replace trigger lock_roles before insert or update or delete on app.clerk_roles
for each statement execute function app.lock_roles();

create or replace trigger lock_roles before insert or update or delete on public.roles
for each statement execute function app.lock_roles();

-- A changed mapping of a role key applies at once to existing memberships and invitations. So does a changed role: its rank may make it
-- the lowest one, and its may_own an owner. The role is computed once for each key, because there may be a million memberships.
create or replace function app.apply_clerk_roles() returns trigger
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from public.roles as r join public.roles as f on f.key = r.fallback where f.rank >= r.rank) then
    raise check_violation using
      message = 'The fallback of a role must have a lower rank than the role.', hint = 'Read key, rank and fallback in public.roles.';
  end if;
  with meanings as materialized (
    select k.key, i.is_owner, app.clerk_role(k.key, i.is_owner) as role
    from (select distinct coalesce(m.clerk_role, '') as key from public.organization_memberships as m) as k
    cross join (values (false), (true)) as i (is_owner)
  )
  update public.organization_memberships as m
  set role = n.role
  from app.organization_owners as w
  cross join public.profiles as p
  cross join meanings as n
  where w.organization_id = m.organization_id and p.id = m.user_id and m.role <> n.role
    and n.key = coalesce(m.clerk_role, '') and n.is_owner = (p.clerk_user_id is not distinct from w.clerk_user_id);
  update public.organization_invitations as i set role = app.clerk_role(i.clerk_role, false)
  where i.role <> app.clerk_role(i.clerk_role, false);
  return null;
end;
$$;
comment on function app.apply_clerk_roles is 'Recomputes the role of each membership and invitation from app.clerk_roles and public.roles. Raises if a fallback has no lower rank than its role.';

create or replace trigger apply_clerk_roles after insert or update or delete on app.clerk_roles
for each statement execute function app.apply_clerk_roles();

create or replace trigger apply_clerk_roles
after insert or update of rank, needs_second_factor, fallback, may_own or delete on public.roles
for each statement execute function app.apply_clerk_roles();

-- A changed mapping of a plan applies at once, too.
create or replace function app.apply_clerk_plans() returns trigger
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock('app.clerk_roles'::regclass::oid::integer, 0);
  perform app.project_billing(r.organization_id)
  from (select distinct organization_id from app.clerk_records where kind = 'subscription_item') as r;
  return null;
end;
$$;
comment on function app.apply_clerk_plans is 'Recomputes the tier of each organization from app.clerk_plans.';

create or replace trigger apply_clerk_plans after insert or update or delete on app.clerk_plans
for each statement execute function app.apply_clerk_plans();
