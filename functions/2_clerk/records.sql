-- What we know of Clerk's objects: app.clerk_records and app.clerk_tombstones. Both functions expect the objects to be locked.

-- Objects are locked in one order, so that concurrent deliveries wait for each other and never deadlock. The meaning of roles and
-- plans is locked too, shared: whoever changes it waits for deliveries under way, and later ones see the change.
create or replace function app.lock_clerk_objects(clerk_ids text[]) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  key bigint;
begin
  perform pg_advisory_xact_lock_shared('app.clerk_roles'::regclass::oid::integer, 0);
  for key in select distinct hashtextextended(clerk_id, 0) from unnest(clerk_ids) as clerk_id where clerk_id <> '' order by 1 loop
    perform pg_advisory_xact_lock(key);
  end loop;
end;
$$;
comment on function app.lock_clerk_objects is 'Holds the objects with these Clerk ids until the transaction ends.';

create or replace function app.salted_hash(salt bytea, value text) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return encode(sha256(salt || convert_to(value, 'UTF8')), 'hex');
end;
$$;
comment on function app.salted_hash is 'What is kept of an erased person, or of an address, where the salt has been read.';

create or replace function app.person_hash(clerk_user_id text) returns text
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return (select app.salted_hash(s.erasure_salt, clerk_user_id) from app.settings as s);
end;
$$;
comment on function app.person_hash is
'What is kept of an erased person: a salted hash of Clerk''s id, or of an address. Definer: app.settings is private.';

-- Runs for every Clerk message and every person in it: one query.
create or replace function app.select_erased(clerk_user_ids text[]) returns text[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select u.id
    from app.settings as s
    cross join unnest(clerk_user_ids) as u (id)
    where u.id not like '%@%' and exists (
      select from app.clerk_tombstones as t
      where t.kind = 'user' and t.clerk_id = app.salted_hash(s.erasure_salt, u.id)
    )
  );
end;
$$;
comment on function app.select_erased is 'Who of these people was deleted at Clerk or erased here. They never come back: Clerk uses no id twice.';

create or replace function app.is_erased(clerk_user_id text) returns boolean
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return clerk_user_id is not null and app.select_erased(array[clerk_user_id]) <> '{}';
end;
$$;
comment on function app.is_erased is 'Whether the person was deleted at Clerk or erased here.';

-- An invitation to an address of somebody who was erased is not shown, unless it was made later: then it is for whoever has the address
-- now. Every address counts that a message ever gave the person, and the last moment at which they were deleted or asked to be erased.
-- Both sets only grow, so it does not matter what arrives first. A rule that lets an address go again (when the person has changed it,
-- when somebody else has it) would need the invitation back that it has removed.
create or replace function app.invitation_predates_erasure(invitation jsonb) returns boolean
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select from app.known_addresses as a
    join app.clerk_tombstones as t on t.kind = 'user' and t.clerk_id = a.subject_hash
    where a.address_hash = app.person_hash(lower(invitation ->> 'email'))
      and t.deleted_at >= coalesce(app.clerk_time(invitation -> 'created_at'), '-infinity')
  );
end;
$$;
comment on function app.invitation_predates_erasure is 'Whether an invitation, by its fields, is from before its address''s owner was erased.';

-- Invitations are applied one beside the other, but not beside an erasure: whichever of the two comes second sees the first. This is
-- taken after the objects are locked, and before anything is written but hashes of the same person's addresses.
create or replace function app.lock_addresses(is_erasure boolean) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  addresses constant integer := 'app.known_addresses'::regclass::oid::integer;
begin
  if is_erasure then
    perform pg_advisory_xact_lock(addresses, 0);
  else
    perform pg_advisory_xact_lock_shared(addresses, 0);
  end if;
end;
$$;
comment on function app.lock_addresses is 'Until the transaction ends no erasure begins. Whoever begins one keeps invitations waiting, too.';

create or replace function app.record_addresses(clerk_user_id text, addresses text[]) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  insert into app.known_addresses (subject_hash, address_hash)
  select
    app.salted_hash(s.erasure_salt, clerk_user_id), app.salted_hash(s.erasure_salt, a.address)
  from app.settings as s
  cross join unnest(addresses) as a (address)
  on conflict do nothing;
  -- What was known before, the erasure has seen.
  if found and app.is_erased(clerk_user_id) then
    perform app.lock_addresses(is_erasure => true);
    perform app.erase_invitations((null, clerk_user_id, addresses)::app.person, null);
  end if;
end;
$$;
comment on function app.record_addresses is
'Remembers for good, as hashes, that these addresses (in lower case) are or were a person''s. If they are erased, invitations to them go.';

create or replace function app.merge_record(
  kind text, clerk_id text, stamp app.clerk_stamp, data jsonb, organization text default null, person text default null
) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  known app.clerk_records;
  newest jsonb;
  address text; -- hashed
begin
  if kind = 'user' and data ? 'email_addresses' then
    perform app.record_addresses(clerk_id, app.clerk_addresses(data)); -- even of a write that comes too late for anything else
  end if;
  select r.* into known from app.clerk_records as r where r.kind = merge_record.kind and r.clerk_id = merge_record.clerk_id;
  -- Without a fingerprint a stamp is greater than with one: most copies and sketches lose here, before their fields are read.
  if known.stamp > stamp then
    return false;
  end if;
  newest := app.clerk_fields(kind, data);
  stamp.fingerprint := sha256(convert_to(newest::text, 'UTF8'));
  if known.stamp >= stamp then
    return false;
  end if;
  -- Clerk goes on naming an organization's creator after they are gone.
  if kind = 'organization' and (newest ->> 'created_by' = 'erased' or app.is_erased(newest ->> 'created_by')) then
    newest := newest || '{"created_by": null}';
  end if;

  if kind = 'invitation' then
    if app.invitation_predates_erasure(newest) then
      return app.record_deletion(kind, clerk_id, stamp.event_at);
    end if;
    address := app.person_hash(lower(newest ->> 'email'));
  end if;

  if known.clerk_id is null then
    -- A deleted organization goes on learning, hidden, so that it ends the same whenever its deletion arrives.
    if kind <> 'organization' and (
      app.is_erased(case kind when 'user' then clerk_id else person end)
      or exists (select from app.clerk_tombstones as t where t.kind = merge_record.kind and t.clerk_id = merge_record.clerk_id)
    ) then
      return false;
    end if;
    insert into app.clerk_records (kind, clerk_id, organization_id, user_id, stamp, fields, address_hash)
    values (merge_record.kind, merge_record.clerk_id, organization, person, merge_record.stamp, newest, address);
  else
    update app.clerk_records as r set stamp = merge_record.stamp, fields = newest, address_hash = address
    where r.kind = merge_record.kind and r.clerk_id = merge_record.clerk_id;
  end if;

  -- Of memberships and subscriptions the newest counts, so a new stamp alone may change what shows.
  if merge_record.kind = 'membership' then
    perform app.project_membership(organization, person);
  elsif merge_record.kind in ('subscription', 'subscription_item') then
    perform app.project_billing(organization);
  elsif known.fields is distinct from newest then
    case merge_record.kind
      when 'user' then perform app.project_profile(merge_record.clerk_id, newest, known.fields);
      when 'organization' then perform app.project_organization(merge_record.clerk_id, newest, known.fields);
      when 'invitation' then perform app.project_invitation(merge_record.clerk_id, organization, newest);
      else null; -- roles and permissions are only remembered
    end case;
  end if;
  return true;
end;
$$;
comment on function app.merge_record is 'Keeps a write if it is greater than the one known, and shows what it changed. False: something greater was known.';

create or replace function app.record_deletion(
  kind text, clerk_id text, deleted_at timestamptz, organization text default null, person text default null,
  began_at timestamptz default null
) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  is_new boolean;
begin
  if app.is_erased(person) then
    return false; -- nothing of theirs can come back: a membership's tombstone would only say that they were here
  end if;
  insert into app.clerk_tombstones as t (kind, clerk_id, organization_id, user_id, began_at, deleted_at)
  values (
    record_deletion.kind, case record_deletion.kind when 'user' then app.person_hash(record_deletion.clerk_id) else record_deletion.clerk_id end,
    organization, person, record_deletion.began_at, record_deletion.deleted_at
  )
  on conflict on constraint clerk_tombstones_pkey do update
  set began_at = greatest(t.began_at, excluded.began_at), deleted_at = greatest(t.deleted_at, excluded.deleted_at)
  where (t.began_at, t.deleted_at)
    is distinct from (greatest(t.began_at, excluded.began_at), greatest(t.deleted_at, excluded.deleted_at))
  returning true into is_new;
  if is_new is null then
    return false;
  end if;

  if record_deletion.kind not in ('organization', 'user') then
    delete from app.clerk_records as r where r.kind = record_deletion.kind and r.clerk_id = record_deletion.clerk_id;
  end if;
  case record_deletion.kind
    when 'user' then
      perform app.erase_deleted_user(record_deletion.clerk_id);
    when 'organization' then
      update public.organizations as o set deleted_at = record_deletion.deleted_at where o.clerk_org_id = record_deletion.clerk_id;
      delete from public.organization_memberships as m using public.organizations as o
      where o.clerk_org_id = record_deletion.clerk_id and m.organization_id = o.id;
      delete from public.organization_invitations as i using public.organizations as o
      where o.clerk_org_id = record_deletion.clerk_id and i.organization_id = o.id;
    when 'membership' then
      perform app.project_membership(organization, person);
    when 'invitation' then
      delete from public.organization_invitations as i where i.clerk_invitation_id = record_deletion.clerk_id;
    else null; -- roles and permissions show nowhere
  end case;
  return true;
end;
$$;
comment on function app.record_deletion is 'Remembers a deletion for good and removes what it removes. False: it was known.';
