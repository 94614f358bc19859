-- Erasures, from the request to the receipt: a person is hidden at once, then taken out of everything in short steps, then out of Clerk.
-- app.erasure_log remembers where it stands, so that whoever continues, after whatever crash, ends in the same rows.
--
-- The last steps look once more: what a transaction wrote that began before the person was hidden can be seen only when it has ended.

create or replace function app.has_older_transactions(moment timestamptz) returns boolean
language sql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from pg_stat_activity as s
    where s.datname = current_database() and s.backend_type not in ('autovacuum worker', 'walsender') and s.pid <> pg_backend_pid()
      and s.xact_start < moment
  );
$$;
comment on function app.has_older_transactions is 'Whether a transaction runs that began before. Definer: others'' transactions are not for everybody to see.';

-- Hidden at once: nobody sees them any more, no token of theirs counts, no event brings them back. What is many rows comes in steps.
create or replace function app.begin_erasure(clerk_user_id text, requested_by text, receipt uuid default gen_random_uuid()) returns uuid
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  hash text := app.person_hash(clerk_user_id);
  person app.person;
  addresses text[];
begin
  perform app.lock_clerk_objects(array[clerk_user_id]);
  perform app.lock_addresses(is_erasure => true);
  person := app.find_person(clerk_user_id);
  addresses := app.find_addresses(clerk_user_id);
  insert into app.erasure_log as l (receipt, subject_hash, person, requested_by) values (receipt, hash, person, requested_by)
  on conflict (subject_hash) do update set person = excluded.person, state = 'running', settled_at = null
  where l.state <> 'running' and (excluded.person).id is not null; -- a backup brought them back
  insert into app.clerk_tombstones as t (kind, clerk_id, deleted_at) values ('user', hash, now())
  on conflict on constraint clerk_tombstones_pkey do update set deleted_at = excluded.deleted_at
  where requested_by in ('person', 'administrator') and t.deleted_at < excluded.deleted_at;

  delete from app.clerk_records as r where r.kind = 'user' and r.clerk_id = clerk_user_id;
  delete from app.clerk_records as r where r.user_id = clerk_user_id;
  -- Memberships before the person, as an organization's deletion does: the other way round the two could deadlock.
  delete from public.organization_memberships as m where m.user_id = person.id;
  perform app.record_addresses(clerk_user_id, addresses);
  perform set_config('app.unaudited', 'on', true);
  update public.profiles as p set banned = true, email = null, full_name = null, avatar_url = null, preferences = '{}', last_seen_at = null
  where p.id = person.id;
  perform set_config('app.unaudited', '', true);
  return (select l.receipt from app.erasure_log as l where l.subject_hash = hash);
end;
$$;
comment on function app.begin_erasure is 'Hides a person and begins to erase them; returns the receipt, the same each time. Does not check permission.';

create or replace function app.erase_deleted_user(clerk_user_id text) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  receipt uuid := app.begin_erasure(clerk_user_id, 'clerk');
begin
  update app.erasure_log as l set clerk_deleted_at = coalesce(l.clerk_deleted_at, now()) where l.receipt = receipt;
  begin
    perform public.continue_erasure(receipt);
  exception when others then
    null; -- they are hidden, and Clerk need not wait: the service and the job take it up
  end;
end;
$$;
comment on function app.erase_deleted_user is 'Erases a person deleted at Clerk. If many rows are left, public.continue_erasure() erases the rest.';

create or replace function public.request_erasure(clerk_user_id text, requested_by text default 'person') returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  receipt uuid;
  person_id uuid;
  owned jsonb;
begin
  perform app.refuse_clerk_tokens();
  receipt := (select l.receipt from app.erasure_log as l where l.subject_hash = app.person_hash(clerk_user_id));
  person_id := (select p.id from public.profiles as p where p.clerk_user_id = clerk_user_id);
  if person_id is null and receipt is null
    and not exists (select from app.webhook_events as e where e.mentions @> array[clerk_user_id])
    and not exists (select from app.clerk_records as r where r.kind = 'user' and r.clerk_id = clerk_user_id) then
    raise sqlstate 'PT404' using message = 'Nothing is held of this person.', hint = 'Check the id: user_…, as Clerk shows it.';
  end if;
  if receipt is null then
    -- Of two owners who leave at once, the second is the only one.
    perform from public.organizations as o
    where o.id in (select m.organization_id from public.organization_memberships as m where m.user_id = person_id)
    order by o.id for no key update;
    select jsonb_agg(jsonb_build_object('id', o.id, 'clerk_org_id', o.clerk_org_id, 'name', o.name) order by o.name, o.id) into owned
    from public.organization_memberships as m
    join public.organizations as o on o.id = m.organization_id
    where m.user_id = person_id and m.role = 'owner' and o.deleted_at is null and not exists (
      select from public.organization_memberships as other
      where other.organization_id = o.id and other.role = 'owner' and other.user_id <> person_id
    );
    if owned is not null then
      return jsonb_build_object('sole_owner_of', owned);
    end if;
    perform app.record_request(person_id, requested_by = 'person', 'personal_data.erasure_requested', '{}');
  end if;
  receipt := app.begin_erasure(clerk_user_id, requested_by); -- again, of somebody who is gone: an invitation may have come since
  return public.erasure_receipt(receipt);
end;
$$;
comment on function public.request_erasure is
'For the service, which knows that it is the person who asks: {receipt, state, …}, or {sole_owner_of: [{id, clerk_org_id, name}]} and nothing is done. Definer: the service has no privilege on tables.';

create or replace function public.erasure_receipt(receipt uuid) returns jsonb
language sql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select jsonb_build_object(
    'receipt', l.receipt, 'state', l.state, 'requested_at', l.requested_at, 'erased_at', l.erased_at, 'clerk_deleted_at', l.clerk_deleted_at,
    'counts', l.counts
  )
  from app.erasure_log as l
  where l.receipt = erasure_receipt.receipt;
$$;
comment on function public.erasure_receipt is
'What the holder of a receipt may see: {receipt, state, requested_at, erased_at, clerk_deleted_at, counts}; null for none. Definer: the service has no privilege on tables.';

-- One at a time per erasure: who comes second does nothing. A row that somebody else holds is waited for, for a while: the step fails
-- then, and is taken again.
create or replace function public.continue_erasure(receipt uuid) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
as $$
#variable_conflict use_variable
declare
  job app.erasure_log;
  whom app.person;
  step record;
  is_quiet boolean;
begin
  perform app.refuse_clerk_tokens();
  select l.* into job from app.erasure_log as l where l.receipt = receipt for update skip locked;
  if job.state = 'running' then
    is_quiet := job.settled_at is not null and not app.has_older_transactions(job.settled_at);
    whom := job.person;
    whom.emails := app.select_own_addresses(whom.emails, whom.clerk_user_id); -- they may have come back with another account
    select * into step from app.erase_step(whom, job.counts);
    if step.erased = 0 and step.finished and is_quiet then
      job.state := 'erased';
    end if;
    update app.erasure_log as l
    set
      state = job.state, counts = step.counts,
      settled_at = case when step.finished and step.erased = 0 then coalesce(job.settled_at, now()) end,
      erased_at = case when job.state = 'erased' then coalesce(l.erased_at, now()) end,
      person = case job.state when 'erased' then (null, (l.person).clerk_user_id, null)::app.person else l.person end
    where l.receipt = receipt;
  end if;
  return public.erasure_receipt(receipt) || (
    select jsonb_build_object(
      'subject_hash', l.subject_hash, 'salt', encode(s.erasure_salt, 'hex'),
      'to_delete_at_clerk', case when l.state = 'erased' and l.clerk_deleted_at is null then (l.person).clerk_user_id end
    )
    from app.erasure_log as l cross join app.settings as s
    where l.receipt = receipt
  );
end;
$$;
comment on function public.continue_erasure is
'A step of an erasure: call it while state is running, each time a transaction of its own. Then write the ledger, delete at Clerk, and end_erasure(). Definer: the service has no privilege on tables.';

create or replace function public.end_erasure(receipt uuid, is_stored boolean) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform app.refuse_clerk_tokens();
  update app.erasure_log as l
  set
    state = 'complete', person = null, clerk_deleted_at = coalesce(l.clerk_deleted_at, now()), attempts = 0, error = null,
    stored_at = case when is_stored then coalesce(l.stored_at, now()) else l.stored_at end
  where l.receipt = receipt and l.state = 'erased';
  return public.erasure_receipt(receipt);
end;
$$;
comment on function public.end_erasure is
'The person is gone at Clerk too, and the ledger has the entry (or there is no store): forgets Clerk''s id. Definer: the service has no privilege on tables.';

create or replace function public.postpone_erasure(receipt uuid, error text) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  update app.erasure_log as l
  set attempts = l.attempts + 1, next_attempt_at = now() + interval '30 seconds' * power(2, least(l.attempts, 9)), error = left(postpone_erasure.error, 200)
  where l.receipt = postpone_erasure.receipt and l.state <> 'complete';
$$;
comment on function public.postpone_erasure is
'Clerk or the store failed: it is due again after a while, which doubles up to four hours. Definer: the service has no privilege on tables.';

create or replace function public.pending_erasures() returns setof uuid
language sql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select l.receipt from app.erasure_log as l where l.state <> 'complete' and l.next_attempt_at <= now() order by l.requested_at limit 100;
$$;
comment on function public.pending_erasures is
'Receipts of what is due to be continued, oldest first. Definer: the service has no privilege on tables.';

-- A backup from before an erasure brings the person back. The ledger beside the backups says who must go again: by hashes, so each
-- person that the database knows is hashed with the salt of the entry.
create or replace function app.replay_erasures(ledger jsonb) returns setof uuid
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  returned record;
begin
  insert into app.clerk_tombstones (kind, clerk_id, deleted_at)
  select 'user', e.entry ->> 'subject_hash', (e.entry ->> 'requested_at')::timestamptz
  from jsonb_array_elements(ledger) as e (entry)
  join app.settings as s on encode(s.erasure_salt, 'hex') = e.entry ->> 'salt'
  on conflict do nothing;

  for returned in
    with known as materialized (
      select p.clerk_user_id from public.profiles as p
      union select r.clerk_id from app.clerk_records as r where r.kind = 'user'
      union select r.user_id from app.clerk_records as r where r.user_id is not null
      union select t.user_id from app.clerk_tombstones as t where t.user_id is not null
      union select m.clerk_user_id from app.webhook_events as w, unnest(w.mentions) as m (clerk_user_id) where m.clerk_user_id like 'user\_%'
    ), salts as (
      select distinct e.entry ->> 'salt' as salt from jsonb_array_elements(ledger) as e (entry)
    ), hashed as (
      select k.clerk_user_id, app.salted_hash(decode(s.salt, 'hex'), k.clerk_user_id) as hash
      from known as k cross join salts as s
    )
    select h.clerk_user_id, (e.entry ->> 'receipt')::uuid as receipt
    from jsonb_array_elements(ledger) as e (entry)
    join hashed as h on h.hash = e.entry ->> 'subject_hash'
  loop
    return next app.begin_erasure(returned.clerk_user_id, 'restore', returned.receipt);
  end loop;
end;
$$;
comment on function app.replay_erasures is
'Hides and begins to erase whoever of the ledger (an array of what continue_erasure() returned) is in this database. Returns receipts: continue each.';

grant execute on function
public.request_erasure(text, text), public.continue_erasure(uuid), public.end_erasure(uuid, boolean), public.postpone_erasure(uuid, text),
public.pending_erasures(), public.erasure_receipt(uuid)
to service_role;
