-- The sync: any order and any repetition of the same events ends in the same rows.
--
-- Each event is a set of writes to objects of Clerk's, each with a stamp. app.clerk_records keeps the greatest write per object,
-- app.clerk_tombstones what was deleted. Both only move in one direction, whatever the order of arrival. The rows in public are
-- computed from the two (app.show_…), never from an event.

-- Objects are locked in one order, so that concurrent deliveries wait for each other and never deadlock.
create or replace function app.lock_clerk_objects(clerk_ids text []) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  key bigint;
begin
  for key in select distinct hashtextextended(clerk_id, 0) from unnest(clerk_ids) as clerk_id where clerk_id <> '' order by 1 loop
    perform pg_advisory_xact_lock(key);
  end loop;
end;
$$;
comment on function app.lock_clerk_objects is 'Holds the objects with these Clerk ids until the transaction ends.';

create or replace function app.clerk_role(key text, is_creator boolean) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case when r.role = 'admin' and is_creator then 'owner' else coalesce(r.role, 'viewer') end
  from (select) as one left join app.clerk_roles as r on r.key = clerk_role.key;
$$;
comment on function app.clerk_role is 'Our role for a role key of Clerk''s. Clerk has no owner: it is the creator, with an admin role.';

-- Show: rows in public from what is known ---------------------------------------------------------------------------------------

-- A value that a person may change here is written only when it changed in Clerk, so that their change lasts.
create or replace function app.show_user(clerk_id text, fields jsonb, before jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  insert into public.profiles as p (clerk_user_id, email, full_name, avatar_url, banned, created_at)
  values (
    clerk_id, fields ->> 'email', fields ->> 'full_name', fields ->> 'avatar_url', (fields -> 'banned')::boolean,
    coalesce(app.clerk_time(fields -> 'created_at'), now())
  )
  on conflict (clerk_user_id) do update set
    email = excluded.email,
    full_name = case when fields -> 'full_name' = before -> 'full_name' then p.full_name else excluded.full_name end,
    avatar_url = case when fields -> 'avatar_url' = before -> 'avatar_url' then p.avatar_url else excluded.avatar_url end,
    banned = excluded.banned,
    created_at = coalesce(app.clerk_time(fields -> 'created_at'), p.created_at);
end;
$$;
comment on function app.show_user is 'Writes a person''s profile from the fields that count now and those that counted before (null for none).';

create or replace function app.show_organization(clerk_id text, fields jsonb, before jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  seats numeric := (fields ->> 'max_seats')::numeric; -- none sent: the default; 0: no limit
  seat_limit integer := case when seats is null then 5 when seats between 1 and 1e9 then floor(seats)::integer end;
  organization uuid;
begin
  insert into public.organizations as o (clerk_org_id, name, slug, max_seats, created_at, deleted_at)
  values (
    clerk_id, fields ->> 'name', fields ->> 'slug', seat_limit, coalesce(app.clerk_time(fields -> 'created_at'), now()),
    (select t.deleted_at from app.clerk_tombstones as t where t.kind = 'organization' and t.clerk_id = show_organization.clerk_id)
  )
  on conflict (clerk_org_id) do update set
    name = case when fields -> 'name' = before -> 'name' then o.name else excluded.name end,
    slug = excluded.slug,
    max_seats = excluded.max_seats,
    created_at = coalesce(app.clerk_time(fields -> 'created_at'), o.created_at)
  returning o.id into organization;

  if before is null then
    perform app.show_billing(clerk_id);
  elsif fields -> 'created_by' is distinct from before -> 'created_by' then
    update public.organization_memberships as m
    set role = app.clerk_role(m.clerk_role, p.clerk_user_id = fields ->> 'created_by')
    from public.profiles as p
    where m.organization_id = organization and p.id = m.user_id and p.clerk_user_id in (fields ->> 'created_by', before ->> 'created_by');
  end if;
end;
$$;
comment on function app.show_organization is 'Writes an organization from the fields that count now and those that counted before (null for none).';

-- Who leaves and rejoins has a new membership id, so a pair may have several memberships. One that only a session token told of
-- counts while Clerk's own have not arrived, and unless the pair was parted after the token was issued.
create or replace function app.show_membership(organization text, person text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  membership app.clerk_records;
  creator boolean;
begin
  select r.* into membership
  from app.clerk_records as r
  where r.organization_id = organization and r.kind = 'membership' and r.user_id = person
    and not exists (select from app.clerk_tombstones as t where t.kind = 'organization' and t.clerk_id = organization)
    and ((r.stamp).is_real or not exists (
      select from app.clerk_tombstones as t
      where t.organization_id = organization and t.user_id = person and t.deleted_at >= (r.stamp).source_updated_at
    ))
  order by r.stamp desc
  limit 1;

  if membership.clerk_id is null then
    delete from public.organization_memberships as m
    using public.organizations as o, public.profiles as p
    where o.clerk_org_id = organization and p.clerk_user_id = person and m.organization_id = o.id and m.user_id = p.id;
    return;
  end if;

  creator := coalesce((
    select r.fields ->> 'created_by' = person from app.clerk_records as r where r.kind = 'organization' and r.clerk_id = organization
  ), false);
  insert into public.organization_memberships as m (organization_id, user_id, role, clerk_role, clerk_membership_id, joined_at)
  select
    o.id, p.id, app.clerk_role(membership.fields ->> 'role', creator), membership.fields ->> 'role',
    case when (membership.stamp).is_real then membership.clerk_id end, coalesce(app.clerk_time(membership.fields -> 'created_at'), now())
  from public.organizations as o, public.profiles as p
  where o.clerk_org_id = organization and p.clerk_user_id = person
  on conflict (user_id, organization_id) do update set
    role = excluded.role, clerk_role = excluded.clerk_role, clerk_membership_id = excluded.clerk_membership_id, joined_at = excluded.joined_at
  where (m.role, m.clerk_role, m.clerk_membership_id, m.joined_at)
    is distinct from (excluded.role, excluded.clerk_role, excluded.clerk_membership_id, excluded.joined_at);
end;
$$;
comment on function app.show_membership is 'Writes or removes the membership of a pair, given by Clerk''s ids.';

create or replace function app.show_invitation(clerk_id text, organization text, fields jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  if fields ->> 'status' is distinct from 'pending' or fields ->> 'email' is null then
    delete from public.organization_invitations as i where i.clerk_invitation_id = clerk_id;
    return;
  end if;
  insert into public.organization_invitations as i
  (organization_id, clerk_invitation_id, email, role, clerk_role, expires_at, created_at)
  select
    o.id, clerk_id, fields ->> 'email', app.clerk_role(fields ->> 'role', false), fields ->> 'role',
    app.clerk_time(fields -> 'expires_at'), coalesce(app.clerk_time(fields -> 'created_at'), now())
  from public.organizations as o
  where o.clerk_org_id = organization and o.deleted_at is null
  on conflict (clerk_invitation_id) do update set
    email = excluded.email, role = excluded.role, clerk_role = excluded.clerk_role,
    expires_at = excluded.expires_at, created_at = excluded.created_at;
end;
$$;
comment on function app.show_invitation is 'Writes an invitation while it is pending and removes it afterwards.';

-- The newest item that is in force gives the tier, the newest subscription the state.
create or replace function app.show_billing(organization text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  tier text;
  status text;
begin
  select p.tier into tier
  from app.clerk_records as r
  join app.clerk_plans as p on p.slug = r.fields ->> 'plan'
  where r.organization_id = organization and r.kind = 'subscription_item' and r.fields ->> 'status' in ('active', 'past_due', 'canceled')
  order by r.stamp desc
  limit 1;

  select case r.fields ->> 'status' when 'active' then 'active' when 'past_due' then 'past_due' else 'cancelled' end into status
  from app.clerk_records as r
  where r.organization_id = organization and r.kind = 'subscription' and r.fields ->> 'status' is not null
  order by r.stamp desc
  limit 1;

  update public.organizations as o
  set subscription_tier = coalesce(tier, 'free'), subscription_status = coalesce(status, 'active')
  where o.clerk_org_id = organization
    and (o.subscription_tier, o.subscription_status) is distinct from (coalesce(tier, 'free'), coalesce(status, 'active'));
end;
$$;
comment on function app.show_billing is 'Writes an organization''s tier and status from its subscription.';

-- Learn: one write to one object ------------------------------------------------------------------------------------------------

create or replace function app.learn(
  kind text, clerk_id text, stamp app.clerk_stamp, fields jsonb, organization text default null, person text default null
) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  known app.clerk_records;
begin
  stamp.fingerprint := sha256(convert_to(fields::text, 'UTF8'));
  select r.* into known from app.clerk_records as r where r.kind = learn.kind and r.clerk_id = learn.clerk_id;
  if known.stamp >= stamp then
    return false;
  end if;
  -- A deleted organization goes on learning, hidden, so that it ends the same whenever its deletion arrives.
  if learn.kind <> 'organization' and exists (
    select from app.clerk_tombstones as t where t.kind = learn.kind and t.clerk_id = learn.clerk_id
  ) then
    return false;
  end if;

  if known.clerk_id is null then
    insert into app.clerk_records (kind, clerk_id, organization_id, user_id, stamp, fields)
    values (learn.kind, learn.clerk_id, organization, person, learn.stamp, learn.fields);
  else
    update app.clerk_records as r set stamp = learn.stamp, fields = learn.fields
    where r.kind = learn.kind and r.clerk_id = learn.clerk_id;
  end if;

  -- Of memberships and subscriptions the newest counts, so a new stamp alone may change what shows.
  if learn.kind = 'membership' then
    perform app.show_membership(organization, person);
  elsif learn.kind in ('subscription', 'subscription_item') then
    perform app.show_billing(organization);
  elsif known.fields is distinct from learn.fields then
    case learn.kind
      when 'user' then perform app.show_user(learn.clerk_id, learn.fields, known.fields);
      when 'organization' then perform app.show_organization(learn.clerk_id, learn.fields, known.fields);
      when 'invitation' then perform app.show_invitation(learn.clerk_id, organization, learn.fields);
      else null; -- roles and permissions are only remembered
    end case;
  end if;
  return true;
end;
$$;
comment on function app.learn is 'Keeps a write if it is greater than the one known, and shows what it changed. False: something greater was known.';

create or replace function app.bury(
  kind text, clerk_id text, deleted_at timestamptz, organization text default null, person text default null
) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  buried boolean;
begin
  insert into app.clerk_tombstones as t (kind, clerk_id, organization_id, user_id, deleted_at)
  values (bury.kind, bury.clerk_id, organization, person, bury.deleted_at)
  on conflict on constraint clerk_tombstones_pkey do update set deleted_at = excluded.deleted_at where excluded.deleted_at > t.deleted_at
  returning true into buried;
  if buried is null then
    return false;
  end if;

  if bury.kind <> 'organization' then
    delete from app.clerk_records as r where r.kind = bury.kind and r.clerk_id = bury.clerk_id;
  end if;
  case bury.kind
    when 'user' then
      delete from public.profiles as p where p.clerk_user_id = bury.clerk_id;
    when 'organization' then
      update public.organizations as o set deleted_at = bury.deleted_at where o.clerk_org_id = bury.clerk_id;
      delete from public.organization_memberships as m using public.organizations as o
      where o.clerk_org_id = bury.clerk_id and m.organization_id = o.id;
      delete from public.organization_invitations as i using public.organizations as o
      where o.clerk_org_id = bury.clerk_id and i.organization_id = o.id;
    when 'membership' then
      perform app.show_membership(organization, person);
    else null; -- roles and permissions show nowhere
  end case;
  return true;
end;
$$;
comment on function app.bury is 'Remembers a deletion for good and removes what it removes. False: it was known.';

-- Events ------------------------------------------------------------------------------------------------------------------------

create or replace function app.apply_clerk_membership(data jsonb, stamp app.clerk_stamp, deleted boolean) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  membership text := app.clerk_text(data -> 'id');
  organization text := app.clerk_text(data -> 'organization' -> 'id');
  person text := app.clerk_text(data -> 'public_user_data' -> 'user_id');
  organization_updated_at timestamptz := app.clerk_time(data -> 'organization' -> 'updated_at');
  news boolean := false;
begin
  if organization is null or person is null then
    raise exception 'the membership names no organization or no user';
  end if;
  -- The person inside is a sketch; the organization inside is whole where it carries its own updated_at.
  if app.learn(
    'user', person, (false, stamp.source_updated_at, false, stamp.event_at, null), app.clerk_user_fields(data -> 'public_user_data')
  ) then
    news := true;
  end if;
  if app.learn(
    'organization', organization,
    (organization_updated_at is not null, coalesce(organization_updated_at, stamp.source_updated_at), false, stamp.event_at, null),
    app.clerk_organization_fields(data -> 'organization')
  ) then
    news := true;
  end if;
  if deleted then
    return app.bury('membership', membership, stamp.event_at, organization, person) or news;
  end if;
  return app.learn('membership', membership, stamp, app.clerk_membership_fields(data), organization, person) or news;
end;
$$;
comment on function app.apply_clerk_membership is 'Applies a membership event, the copies of the person and the organization inside it first.';

-- An organization known by its id only; anything else that is ever said of it counts more.
create or replace function app.mention_organization(clerk_id text, name text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.learn(
    'organization', clerk_id, (false, '-infinity', false, '-infinity', null),
    app.clerk_organization_fields(jsonb_build_object('id', clerk_id, 'name', name))
  );
end;
$$;
comment on function app.mention_organization is 'Makes sure that there is a row for an organization that another object refers to.';

-- The items inside a subscription are copies of objects with events of their own.
create or replace function app.apply_clerk_subscription(data jsonb, stamp app.clerk_stamp, organization text) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  item jsonb;
  item_id text;
  news boolean := app.learn('subscription', app.clerk_text(data -> 'id'), stamp, app.clerk_subscription_fields(data), organization);
begin
  for item in select jsonb_path_query(data, '$.items[*]') loop
    item_id := app.clerk_text(item -> 'id');
    if item_id is not null and app.learn(
      'subscription_item', item_id,
      (true, coalesce(app.clerk_time(item -> 'updated_at'), stamp.source_updated_at), false, stamp.event_at, null),
      app.clerk_subscription_fields(item), organization
    ) then
      news := true;
    end if;
  end loop;
  return news;
end;
$$;
comment on function app.apply_clerk_subscription is 'Applies a subscription event and the items inside it.';

-- Says 'ignored' for what we do not handle, 'stale' when all of it was known or older than what is known. Raises on a broken payload.
create or replace function app.apply_clerk_event(event jsonb) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  subject text := split_part(event ->> 'type', '.', 1);
  action text := split_part(event ->> 'type', '.', 2);
  data jsonb := event -> 'data';
  id text := app.clerk_text(data -> 'id');
  payer jsonb := data -> 'payer';
  organization text := coalesce(app.clerk_text(data -> 'organization_id'), app.clerk_text(payer -> 'organization_id'));
  event_at timestamptz := coalesce(app.clerk_time(event -> 'timestamp'), app.clerk_time(data -> 'updated_at'), '-infinity');
  stamp app.clerk_stamp := (true, coalesce(app.clerk_time(data -> 'updated_at'), event_at), true, event_at, null);
  news boolean;
begin
  if not (
    subject in ('user', 'organization', 'organizationMembership', 'role', 'permission') and action in ('created', 'updated', 'deleted')
    or subject = 'organizationInvitation'
    or subject in ('subscription', 'subscriptionItem') and organization is not null -- people may subscribe too
  ) then
    return 'ignored';
  end if;
  if id is null then
    raise exception 'the event names no object: data.id is missing';
  end if;
  perform app.lock_clerk_objects(array[
    id, organization, data -> 'organization' ->> 'id', data -> 'public_user_data' ->> 'user_id'
  ]);

  if subject = 'organizationMembership' then
    news := app.apply_clerk_membership(data, stamp, action = 'deleted');
  elsif action = 'deleted' then
    news := app.bury(subject, id, event_at);
  elsif subject = 'user' then
    news := app.learn('user', id, stamp, app.clerk_user_fields(data));
  elsif subject = 'organization' then
    news := app.learn('organization', id, stamp, app.clerk_organization_fields(data));
  elsif subject in ('role', 'permission') then
    news := app.learn(subject, id, stamp, app.clerk_role_fields(data));
  elsif organization is null then
    raise exception 'the invitation names no organization';
  else
    perform app.mention_organization(organization, payer ->> 'organization_name');
    news := case subject
      when 'organizationInvitation' then app.learn('invitation', id, stamp, app.clerk_invitation_fields(data), organization)
      when 'subscription' then app.apply_clerk_subscription(data, stamp, organization)
      else app.learn('subscription_item', id, stamp, app.clerk_subscription_fields(data), organization)
    end;
  end if;
  return case when news then 'processed' else 'stale' end;
end;
$$;
comment on function app.apply_clerk_event is 'Applies one event: processed, stale or ignored.';

-- A broken event must not lose the message, nor a development instance write into production.
create or replace function app.try_clerk_event(event jsonb, out outcome text, out error text)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  pinned_instance text := (select s.clerk_instance_id from app.settings as s);
begin
  if event ->> 'instance_id' <> pinned_instance then
    outcome := 'ignored';
    error := 'instance_id is not the one in app.settings';
    return;
  end if;
  outcome := app.apply_clerk_event(event);
exception when others then
  outcome := 'failed';
  error := sqlstate || ': ' || sqlerrm;
end;
$$;
comment on function app.try_clerk_event is 'Applies one event; a failure becomes the outcome and leaves nothing half done.';

create or replace function app.receive_clerk_event(message_id text, event jsonb) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  known text;
  outcome text;
  failure text;
begin
  if message_id is null or jsonb_typeof(event) <> 'object' or jsonb_typeof(event -> 'type') is distinct from 'string' then
    raise sqlstate 'PT400' using message = 'A message needs an id, and an event that is an object with a type.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended(message_id, 0));
  select e.outcome into known from app.webhook_events as e where e.message_id = receive_clerk_event.message_id;

  if known is null then
    select t.outcome, t.error into outcome, failure from app.try_clerk_event(event) as t;
    insert into app.webhook_events (message_id, type, event, outcome, error, next_attempt_at, applied_at)
    values (
      receive_clerk_event.message_id, event ->> 'type', event, outcome, failure,
      case when outcome = 'failed' then now() + interval '30 seconds' end, case when outcome <> 'failed' then now() end
    );
  elsif known = 'failed' then
    outcome := app.retry_clerk_event(message_id);
  else
    outcome := 'duplicate';
  end if;
  return jsonb_build_object('message_id', message_id, 'type', event ->> 'type', 'outcome', outcome);
end;
$$;
comment on function app.receive_clerk_event is 'Stores a message and applies it, once. Definer: service_role has no access to the tables.';

-- The wait doubles from half a minute to about four hours.
create or replace function app.retry_clerk_event(message_id text) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  stored app.webhook_events;
  outcome text;
  failure text;
begin
  select e.* into stored from app.webhook_events as e where e.message_id = retry_clerk_event.message_id for update;
  if stored.message_id is null or stored.outcome <> 'failed' then
    return stored.outcome;
  end if;
  select t.outcome, t.error into outcome, failure from app.try_clerk_event(stored.event) as t;
  update app.webhook_events as e
  set
    outcome = retry.outcome, error = retry.failure, attempts = e.attempts + 1,
    next_attempt_at = case when retry.outcome = 'failed' then now() + interval '30 seconds' * power(2, least(e.attempts, 9)) end,
    applied_at = case when retry.outcome <> 'failed' then now() end
  from (select outcome, failure) as retry
  where e.message_id = stored.message_id;
  return outcome;
end;
$$;
comment on function app.retry_clerk_event is 'Applies a failed message again and says its outcome; null when there is no such message.';

create or replace function public.receive_clerk_event(message_id text, event jsonb) returns jsonb
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.receive_clerk_event(receive_clerk_event.message_id, receive_clerk_event.event);
$$;
comment on function public.receive_clerk_event is 'For the service: stores a webhook of Clerk''s and applies it, both or neither, once.';

grant execute on function app.receive_clerk_event(text, jsonb) to service_role;
grant execute on function public.receive_clerk_event(text, jsonb) to service_role;

-- A new meaning of a role key holds at once for those who have it.
create or replace function app.apply_clerk_roles() returns trigger
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  update public.organization_memberships as m
  set role = app.clerk_role(m.clerk_role, coalesce(r.fields ->> 'created_by' = p.clerk_user_id, false))
  from public.organizations as o
  cross join public.profiles as p
  left join app.clerk_records as r on r.kind = 'organization' and r.clerk_id = o.clerk_org_id
  where o.id = m.organization_id and p.id = m.user_id
    and m.role <> app.clerk_role(m.clerk_role, coalesce(r.fields ->> 'created_by' = p.clerk_user_id, false));
  return null;
end;
$$;
comment on function app.apply_clerk_roles is 'Gives every membership the role that app.clerk_roles now says.';

create or replace trigger apply_clerk_roles after insert or update or delete on app.clerk_roles
for each statement execute function app.apply_clerk_roles();
