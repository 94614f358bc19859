-- Erasures, from the request to the receipt. app.erasure_log records the state, so that any process can continue after a crash.
--
-- Example: Ada (profile 7c1…, Clerk's id user_ada, ada@example.com) asks to be erased at 10:00:00.
-- 1. Hide. request_erasure('user_ada') deletes her memberships, clears and bans her profile, and adds receipt r1 to app.erasure_log:
--    state = 'running', person = (7c1…, user_ada, {ada@example.com}). Other people cannot see her any more, her tokens are refused,
--    and no Clerk event can restore her.
-- 2. Erase. The service calls continue_erasure('r1') again and again. Each call is a transaction of about half a second. The first
--    erases 22 rows: counts = {"public.projects": 2, "public.audit_logs": 19, "public.profiles": 1}.
-- 3. Settle. The call at 10:00:02 finds no rows and sets settled_at = 10:00:02. A transaction that began at 09:59:59, before Ada was
--    hidden, may still commit a row about her. A later call that finds rows resets settled_at to null. A call that finds none, after all
--    transactions from before 10:00:02 have ended, sets state = 'erased' and reduces person to (null, user_ada, null).
-- 4. Complete. The service writes the receipt with the hash of user_ada to the ledger beside the backups, deletes user_ada at Clerk, and
--    calls end_erasure('r1', true): state = 'complete', person = null. The receipt still shows the counts and the times.
-- If an older backup is restored, replay_erasures() finds Ada by the hash in the ledger, and the erasure runs again from step 1 as r1.

create or replace function app.has_older_transactions(moment timestamptz) returns boolean
language sql stable parallel restricted security definer set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from pg_stat_activity as s
    where s.datname = current_database() and s.backend_type not in ('autovacuum worker', 'walsender') and s.pid <> pg_backend_pid()
      and s.xact_start < moment
  );
$$;
comment on function app.has_older_transactions is 'Whether another transaction that began before the moment is still running. Definer: most roles cannot see other sessions'' transactions.';

-- Step 1. Touches few rows, so that the person is hidden at once. Tables with many rows follow in steps.
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
  where l.state <> 'running' and (excluded.person).id is not null; -- a restored backup contained the person again
  insert into app.clerk_tombstones as t (kind, clerk_id, deleted_at) values ('user', hash, now())
  on conflict on constraint clerk_tombstones_pkey do update set deleted_at = excluded.deleted_at
  where requested_by in ('person', 'administrator') and t.deleted_at < excluded.deleted_at;

  delete from app.clerk_records as r where r.kind = 'user' and r.clerk_id = clerk_user_id;
  delete from app.clerk_records as r where r.user_id = clerk_user_id;
  -- Locks memberships before the profile, as the deletion of an organization does. In the opposite order the two could deadlock.
  delete from public.organization_memberships as m where m.user_id = person.id;
  perform app.record_addresses(clerk_user_id, addresses);
  perform set_config('app.unaudited', 'on', true);
  update public.profiles as p set banned = true, email = null, full_name = null, avatar_url = null, preferences = '{}', last_seen_at = null
  where p.id = person.id;
  perform set_config('app.unaudited', '', true);
  return (select l.receipt from app.erasure_log as l where l.subject_hash = hash);
end;
$$;
comment on function app.begin_erasure is 'Hides a person and begins the erasure. Returns the receipt, the same on every call. Does not check permission.';

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
    null; -- the person is hidden; the service and the job continue, so Clerk's webhook need not fail
  end;
end;
$$;
comment on function app.erase_deleted_user is 'Erases a person who was deleted at Clerk. If many rows are left, public.continue_erasure() erases the rest.';

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
    raise sqlstate 'PT404' using message = 'No data about this person is stored.', hint = 'Check the id: user_…, as Clerk shows it.';
  end if;
  if receipt is null then
    -- Serializes the erasures of two owners of one organization. The second sees that no other owner is left.
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
  receipt := app.begin_erasure(clerk_user_id, requested_by); -- also for an erased person: an invitation may have arrived since
  return public.erasure_receipt(receipt);
end;
$$;
comment on function public.request_erasure is
'Requests the erasure of a person. The service has authenticated the caller. Returns {receipt, state, …}. For a sole owner it changes nothing and returns {sole_owner_of: [{id, clerk_org_id, name}]}. Definer: the service has no privilege on tables.';

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
'Returns what the holder of a receipt may see: {receipt, state, requested_at, erased_at, clerk_deleted_at, counts}; null for an unknown receipt. Definer: the service has no privilege on tables.';

-- Only one session at a time works on an erasure; a concurrent call only returns the state. If another transaction holds a row for longer
-- than a second, the step fails and is retried. settled_at is a time after the request was committed; now() may be one before.
create or replace function public.continue_erasure(receipt uuid) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
as $$
#variable_conflict use_variable
declare
  job app.erasure_log;
  person app.person;
  step record;
  is_quiet boolean;
begin
  perform app.refuse_clerk_tokens();
  select l.* into job from app.erasure_log as l where l.receipt = receipt for update skip locked;
  if job.state = 'running' then
    is_quiet := job.settled_at is not null and not app.has_older_transactions(job.settled_at);
    person := job.person;
    person.emails := app.select_own_addresses(person.emails, person.clerk_user_id); -- a new account may use the same address by now
    select * into step from app.erase_step(person, job.counts);
    if step.erased = 0 and step.finished and is_quiet then
      job.state := 'erased';
    end if;
    update app.erasure_log as l
    set
      state = job.state, counts = step.counts,
      settled_at = case when step.finished and step.erased = 0 then coalesce(job.settled_at, clock_timestamp()) end,
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
'Runs one step of an erasure. Call it in separate transactions while state is running. Then write the ledger, delete the user at Clerk, and call end_erasure(). Definer: the service has no privilege on tables.';

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
'Completes an erasure: the user is deleted at Clerk, and the ledger has the entry (or there is no store). Removes Clerk''s id from the log. Definer: the service has no privilege on tables.';

create or replace function public.postpone_erasure(receipt uuid, error text) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  update app.erasure_log as l
  set attempts = l.attempts + 1, next_attempt_at = now() + interval '30 seconds' * power(2, least(l.attempts, 9)), error = left(postpone_erasure.error, 200)
  where l.receipt = postpone_erasure.receipt and l.state <> 'complete';
$$;
comment on function public.postpone_erasure is
'Records a failure of Clerk or of the store, and schedules a retry with exponential backoff up to about four hours. Definer: the service has no privilege on tables.';

create or replace function public.pending_erasures() returns setof uuid
language sql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  select l.receipt from app.erasure_log as l where l.state <> 'complete' and l.next_attempt_at <= now() order by l.requested_at limit 100;
$$;
comment on function public.pending_erasures is
'Receipts of the erasures that are due to be continued, oldest first. Definer: the service has no privilege on tables.';

-- A backup from before an erasure still contains the person. The ledger beside the backups lists the erased people by hash only. So this
-- hashes every person in the database with each salt of the ledger, and erases the matches.
create or replace function app.replay_erasures(ledger jsonb) returns setof uuid
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  restored record;
begin
  insert into app.clerk_tombstones (kind, clerk_id, deleted_at)
  select 'user', e.entry ->> 'subject_hash', (e.entry ->> 'requested_at')::timestamptz
  from jsonb_array_elements(ledger) as e (entry)
  join app.settings as s on encode(s.erasure_salt, 'hex') = e.entry ->> 'salt'
  on conflict do nothing;

  for restored in
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
    return next app.begin_erasure(restored.clerk_user_id, 'restore', restored.receipt);
  end loop;
end;
$$;
comment on function app.replay_erasures is
'Hides the people of the ledger who are in this database, and begins to erase them. The ledger is an array of entries as continue_erasure() returned them. Returns their receipts: continue each with continue_erasure().';

grant execute on function
public.request_erasure(text, text), public.continue_erasure(uuid), public.end_erasure(uuid, boolean), public.postpone_erasure(uuid, text),
public.pending_erasures(), public.erasure_receipt(uuid)
to service_role;
