-- The sync's state of Clerk's objects: app.clerk_records and app.clerk_tombstones. app.merge_record and app.record_deletion write them, and
-- expect that the caller has locked the objects.
--
-- Worked example: two events about Ada arrive in the wrong order. She signed up as "Ada" and added her last name 4 seconds later.
-- (tests/db/test_clerk_sync.py runs this example.)
--
--   arrives | event        | (is_real, source_updated_at, is_own, event_at) | full_name
--   --------+--------------+------------------------------------------------+--------------
--   first   | user.updated | (true,    10:00:04,          true,   10:00:05) | Ada Lovelace
--   second  | user.created | (true,    10:00:00,          true,   10:00:01) | Ada
--
-- First:  there is no record of user_ada yet. app.merge_record inserts one and writes "Ada Lovelace" to public.profiles: processed.
-- Second: stamps compare from left to right. 10:00:00 < 10:00:04, so app.merge_record keeps the record and changes no row: stale.
-- In the other order the first write would insert "Ada" and the second would replace it. Both orders end with the same record, stamp
-- and row: user_ada, Ada Lovelace.
--
-- A later membership event contains the first name again, in a partial copy of the user: (false, 10:00:08, false, 10:00:09). This stamp is
-- smaller although it is later, because false < true: a partial copy never replaces a whole object. If two stamps are equal in all four
-- values, the fifth decides: a hash of the fields.

create or replace function app.add_owners(clerk_ids text[]) returns text[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select i.id from unnest(clerk_ids) as i (id) where i.id <> ''
    union
    select o.id
    from app.clerk_records as r
    cross join lateral (values (r.organization_id), (r.user_id)) as o (id)
    where r.kind in ('membership', 'subscription', 'subscription_item') and r.clerk_id = any(clerk_ids) and o.id is not null
  );
end;
$$;
comment on function app.add_owners is 'The ids, and the ids of the organizations and people that, as far as known, own the memberships and subscriptions among them.';

-- All callers lock objects in the same order, so that concurrent deliveries wait for each other and never deadlock. They also share a lock
-- on the mappings of roles and plans. A change of a mapping waits for running deliveries, and later ones see the change.
-- An event may name a membership by its id alone. Then its organization and its person are locked, too. If another transaction makes them
-- known while this one waits, the error below gives the locks back, and all are taken in order.
create or replace function app.lock_clerk_objects(clerk_ids text[]) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  wanted text[];
  key bigint;
begin
  perform pg_advisory_xact_lock_shared('app.clerk_roles'::regclass::oid::integer, 0);
  loop
    wanted := app.add_owners(clerk_ids);
    begin
      for key in select distinct hashtextextended(w.id, 0) from unnest(wanted) as w (id) order by 1 loop
        perform pg_advisory_xact_lock(key);
      end loop;
      if app.add_owners(clerk_ids) <@ wanted then
        return;
      end if;
      raise sqlstate 'BA001';
    exception when sqlstate 'BA001' then
      null;
    end;
  end loop;
end;
$$;
comment on function app.lock_clerk_objects is
'Locks the objects with these Clerk ids, and the organizations and people they are known to belong to, until the transaction ends.';

-- Only ids in the fields that we use: metadata may contain any number of others, and all sessions share the space for locks. Up to seven
-- locks per object. An erasure of one of these people therefore runs before the object is applied or after it. For people who are mentioned
-- elsewhere nothing is applied. If their erasure began after the event was searched for erased people, the erasure finds the event later:
-- it ends only after all transactions that began before it (app.has_older_transactions).
create or replace function app.lock_clerk_data(objects jsonb) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.lock_clerk_objects(array(
    select app.clerk_text(i.id)
    from jsonb_array_elements(objects) as o (object)
    cross join lateral (
      values (o.object -> 'id'), (o.object -> 'created_by'), (o.object -> 'organization_id'), (o.object -> 'organization' -> 'id'),
        (o.object -> 'organization' -> 'created_by'), (o.object -> 'public_user_data' -> 'user_id'), (o.object -> 'payer' -> 'organization_id')
    ) as i (id)
  ));
end;
$$;
comment on function app.lock_clerk_data is 'Locks Clerk objects, and the people and organizations in the fields that we use, until the transaction ends.';

create or replace function app.salted_hash(salt bytea, value text) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return encode(sha256(salt || convert_to(value, 'UTF8')), 'hex');
end;
$$;
comment on function app.salted_hash is 'Salted SHA-256, in hexadecimal, of a Clerk user id or an address. For queries that have read the salt already.';

create or replace function app.person_hash(clerk_user_id text) returns text
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return (select app.salted_hash(s.erasure_salt, clerk_user_id) from app.settings as s);
end;
$$;
comment on function app.person_hash is
'Salted hash of a Clerk user id or an address: all that remains of an erased person. Definer: app.settings is private.';

-- Runs for each Clerk message and all people in it, so it is one query.
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
comment on function app.select_erased is 'The ids whose person was deleted in Clerk or erased here. They never return: Clerk never reuses an id.';

create or replace function app.is_erased(clerk_user_id text) returns boolean
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return clerk_user_id is not null and app.select_erased(array[clerk_user_id]) <> '{}';
end;
$$;
comment on function app.is_erased is 'Whether the person was deleted in Clerk or erased here.';

-- An invitation to an erased person's address is not stored if it is older than the erasure. A later one is: the address may have a new
-- owner by then. All addresses count that a message ever contained for the person, and the latest time of their deletion or erasure.
-- Both only grow, so the order of arrival does not matter. A rule that released an address (because the person changed it, or another
-- person has it) would have to restore an invitation that is already deleted. An invitation without a time counts as older: the address of
-- an erased person must not remain, and the invitation is still valid at Clerk.
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
comment on function app.invitation_predates_erasure is 'Whether an invitation, given by its fields, is older than the erasure of a person who had its address.';

-- Invitations may be applied concurrently, but not during an erasure: the second of the two must see the first. This lock is taken after
-- the objects' locks and before any write, except that hashes of the same person's addresses may have been written.
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
comment on function app.lock_addresses is 'Shared for invitations, exclusive for an erasure, until the transaction ends: neither runs during the other.';

create or replace function app.address_hashes(clerk_user_id text) returns text[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select a.address_hash from app.known_addresses as a where a.subject_hash = app.person_hash(address_hashes.clerk_user_id)
  );
end;
$$;
comment on function app.address_hashes is 'The hashes of all addresses that the person has or had.';

create or replace function app.resume_erasure(clerk_user_id text, addresses text[]) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  update app.erasure_log as l
  set
    state = 'running', settled_at = null, next_rule = null, quiet_passes = 0, next_attempt_at = now(),
    person = ((l.person).id, resume_erasure.clerk_user_id, coalesce((l.person).emails, '{}') || addresses)::app.person
  where l.subject_hash = app.person_hash(resume_erasure.clerk_user_id);
end;
$$;
comment on function app.resume_erasure is 'Continues the erasure of an erased person, with addresses that a late event revealed.';

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
  -- Addresses that were already recorded were handled by the erasure.
  if found and app.is_erased(clerk_user_id) then
    perform app.lock_addresses(is_erasure => true);
    perform app.resume_erasure(clerk_user_id, addresses);
  end if;
end;
$$;
comment on function app.record_addresses is
'Records permanently, as hashes, that the person has or had these addresses (in lower case). If the person is erased, resumes the erasure: it deletes older invitations to them.';

-- The deletion of a membership may have only its id. A later event about the membership names its owner. Then older
-- memberships of the two, and tokens from before the deletion, end as if the deletion had arrived whole.
create or replace function app.complete_tombstone(membership text, organization text, person text, began_at timestamptz) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
begin
  if app.is_erased(person) then
    return false; -- a tombstone would only reveal the membership
  end if;
  update app.clerk_tombstones as t
  set organization_id = organization, user_id = person, began_at = least(t.began_at, complete_tombstone.began_at)
  where t.kind = 'membership' and t.clerk_id = membership
    and (t.organization_id, t.user_id, t.began_at) is distinct from (organization, person, least(t.began_at, complete_tombstone.began_at));
  if found then
    perform app.project_membership(organization, person);
  end if;
  return found;
end;
$$;
comment on function app.complete_tombstone is 'Adds the organization, the person and the start of a deleted membership to its tombstone. False if the tombstone has them already.';

-- An object's created_at never changes at Clerk, but an event may lack it. So the record keeps the earliest that any write has, a stale one
-- included: the newest write, or the first to arrive, would depend on the order.
create or replace function app.keep_created_at(fields jsonb, other jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  if fields -> 'created_at' is not distinct from other -> 'created_at' or not fields ? 'created_at' then
    return fields;
  end if;
  return fields || jsonb_build_object('created_at', least((fields ->> 'created_at')::numeric, (other ->> 'created_at')::numeric));
end;
$$;
comment on function app.keep_created_at is 'The fields, with the earlier created_at of the two writes. For kinds without this field, the fields as they are.';

create or replace function app.merge_record(
  kind text, clerk_id text, stamp app.clerk_stamp, data jsonb, organization text default null, person text default null
) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  known app.clerk_records;
  newest jsonb;
  address text; -- hashed
  is_assigned boolean := false;
begin
  if kind = 'user' and data ? 'email_addresses' then
    perform app.record_addresses(clerk_id, app.clerk_addresses(data)); -- even if the write is otherwise stale
  end if;
  select r.* into known from app.clerk_records as r where r.kind = merge_record.kind and r.clerk_id = merge_record.clerk_id;
  -- Until an event names the payer of a subscription item, its record belongs to no organization.
  if known.organization_id is null and known.clerk_id is not null and organization is not null then
    update app.clerk_records as r set organization_id = organization where r.kind = merge_record.kind and r.clerk_id = merge_record.clerk_id;
    perform app.project_billing(organization);
    is_assigned := true;
  end if;
  -- A null fingerprint compares as greater than any hash, so this is certain before the fields are read. Most copies return here.
  if known.stamp > stamp and (data ->> 'created_at' is null and kind <> 'invitation' or data -> 'created_at' = known.fields -> 'created_at') then
    return is_assigned;
  end if;
  newest := app.clerk_fields(kind, data);
  stamp.fingerprint := sha256(convert_to(newest::text, 'UTF8'));
  if known.stamp >= stamp then
    newest := app.keep_created_at(known.fields, newest);
    if newest = known.fields then
      return is_assigned;
    end if;
    stamp := known.stamp;
  else
    newest := app.keep_created_at(newest, known.fields);
  end if;
  -- Clerk still names an organization's creator after that person's deletion.
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
    -- A deleted organization stays hidden but still merges writes, so that its row does not depend on when the deletion arrives.
    if kind <> 'organization' and (
      app.is_erased(case kind when 'user' then clerk_id else person end)
      or exists (select from app.clerk_tombstones as t where t.kind = merge_record.kind and t.clerk_id = merge_record.clerk_id)
    ) then
      return kind = 'membership' and app.complete_tombstone(clerk_id, organization, person, app.clerk_time(newest -> 'created_at'));
    end if;
    insert into app.clerk_records (kind, clerk_id, organization_id, user_id, stamp, fields, address_hash)
    values (merge_record.kind, merge_record.clerk_id, organization, person, merge_record.stamp, newest, address);
  else
    update app.clerk_records as r set stamp = merge_record.stamp, fields = newest, address_hash = address
    where r.kind = merge_record.kind and r.clerk_id = merge_record.clerk_id;
  end if;

  -- The row of a membership or a subscription comes from the newest record, so a new stamp alone may change it.
  if merge_record.kind = 'membership' then
    perform app.project_membership(organization, person);
  elsif merge_record.kind in ('subscription', 'subscription_item') then
    perform app.project_billing(coalesce(organization, known.organization_id));
  elsif known.fields is distinct from newest then
    case merge_record.kind
      when 'user' then perform app.project_profile(merge_record.clerk_id, newest, known.fields);
      when 'organization' then perform app.project_organization(merge_record.clerk_id, newest, known.fields);
      when 'invitation' then perform app.project_invitation(merge_record.clerk_id, organization, newest);
      else null; -- roles and permissions have no row in public
    end case;
  end if;
  return true;
end;
$$;
comment on function app.merge_record is 'Keeps a write if its stamp is greater than the record''s, and updates the rows in public. False if the record is as new or newer, and lacks nothing.';

-- A deletion is final, whenever it happened, because Clerk never reuses an id. Its time only shows which tokens and invitations are older.
-- If that time is unknown, it is 'infinity': all of them are.
create or replace function app.record_deletion(
  kind text, clerk_id text, deleted_at timestamptz, organization text default null, person text default null,
  began_at timestamptz default null
) returns boolean
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  is_new boolean;
  known app.clerk_records;
begin
  select r.* into known from app.clerk_records as r where r.kind = record_deletion.kind and r.clerk_id = record_deletion.clerk_id;
  if record_deletion.kind = 'membership' then
    organization := coalesce(organization, known.organization_id);
    person := coalesce(person, known.user_id);
    began_at := least(began_at, app.clerk_time(known.fields -> 'created_at'));
  end if;
  if app.is_erased(person) then
    return false; -- an erased person's objects cannot return, and a tombstone would only reveal the membership
  end if;
  insert into app.clerk_tombstones as t (kind, clerk_id, organization_id, user_id, began_at, deleted_at)
  values (
    record_deletion.kind, case record_deletion.kind when 'user' then app.person_hash(record_deletion.clerk_id) else record_deletion.clerk_id end,
    organization, person, record_deletion.began_at, record_deletion.deleted_at
  )
  on conflict on constraint clerk_tombstones_pkey do update
  set
    organization_id = coalesce(t.organization_id, excluded.organization_id), user_id = coalesce(t.user_id, excluded.user_id),
    began_at = least(t.began_at, excluded.began_at), deleted_at = greatest(t.deleted_at, excluded.deleted_at)
  where (t.organization_id, t.user_id, t.began_at, t.deleted_at) is distinct from (
    coalesce(t.organization_id, excluded.organization_id), coalesce(t.user_id, excluded.user_id),
    least(t.began_at, excluded.began_at), greatest(t.deleted_at, excluded.deleted_at)
  )
  returning true, t.organization_id, t.user_id into is_new, organization, person;
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
      -- The grace period begins now: Clerk may report a deletion late, or without a time.
      update public.organizations as o set deleted_at = now() where o.clerk_org_id = record_deletion.clerk_id and o.deleted_at is null;
      delete from public.organization_memberships as m using public.organizations as o
      where o.clerk_org_id = record_deletion.clerk_id and m.organization_id = o.id;
      delete from public.organization_invitations as i using public.organizations as o
      where o.clerk_org_id = record_deletion.clerk_id and i.organization_id = o.id;
    when 'membership' then
      if organization is not null and person is not null then
        perform app.project_membership(organization, person);
      end if;
    when 'invitation' then
      delete from public.organization_invitations as i where i.clerk_invitation_id = record_deletion.clerk_id;
    when 'subscription_item' then
      perform app.project_billing(known.organization_id);
    else null; -- roles and permissions have no row in public
  end case;
  return true;
end;
$$;
comment on function app.record_deletion is
'Records a deletion permanently and deletes the rows that depend on the object. deleted_at is infinity if unknown. False if it was already recorded.';
