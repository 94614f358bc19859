-- Erasures, from the request to the receipt. app.erasure_log records the state, so that any process can continue after a crash.
--
-- Example: Ada (profile 7c1…, Clerk's id user_ada, ada@example.com) asks to be erased at 10:00:00.
-- 1. Hide. request_erasure('user_ada') deletes her memberships, clears and bans her profile, and adds receipt r1 to app.erasure_log:
--    state = 'running', person = (7c1…, user_ada, {ada@example.com}). Other people cannot see her any more, her tokens are refused,
--    and no Clerk event can restore her.
-- 2. Erase. The service calls continue_erasure('r1') again and again. Each call is a transaction of about half a second, and applies the
--    rules of app.personal_data in batches. The first call erases 21 of 22 rows: counts = {"public.projects": 2, "public.audit_logs": 18,
--    "public.profiles": 1}. A trigger refuses to change one audit entry. Its batch fails, is halved until only this entry is left, and
--    the entry is recorded in app.erasure_failures. A call that times out is rolled back: the service reports it with
--    postpone_erasure('r1', …, in_step => true), and the next call continues with the next rule, and later with half the batch.
-- 3. Settle. The first pass over all rules ends at 10:00:02 and sets settled_at = 10:00:02. A transaction that began at 09:59:59, before
--    Ada was hidden, may still commit a row about her. A quiet pass begins after all transactions from before 10:00:02 have ended. One that
--    finds no rows sets state = 'erased' and reduces person to (null, user_ada, null). So does the third quiet pass in a row, because
--    others could write her address again and again: what they write after the erasure is like what they write next year. As long as the
--    audit entry is skipped, the state stays 'running', but step 4 is done. Once the trigger is gone, the next attempt erases the entry.
-- 4. Complete. The service writes the receipt with the hash of user_ada to the ledger next to the backups, deletes user_ada at Clerk, and
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

-- Step 1. Changes only rows that come from Clerk, so that rows written by other people cannot delay it: the person is hidden at once. All
-- other rows follow in step 2.
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
  on conflict (subject_hash) do update set person = excluded.person, state = 'running', settled_at = null, next_rule = null, quiet_passes = 0
  where l.state <> 'running' and (excluded.person).id is not null; -- a restored backup contained the person again
  insert into app.clerk_tombstones as t (kind, clerk_id, deleted_at) values ('user', hash, now())
  on conflict on constraint clerk_tombstones_pkey do update set deleted_at = excluded.deleted_at
  where requested_by in ('person', 'administrator') and t.deleted_at < excluded.deleted_at;

  perform app.record_addresses(clerk_user_id, addresses);
  delete from app.clerk_records as r where r.kind = 'user' and r.clerk_id = clerk_user_id;
  delete from app.clerk_records as r where r.user_id = clerk_user_id;
  -- Locks memberships before the profile, as the deletion of an organization does. In the opposite order the two could deadlock.
  delete from public.organization_memberships as m where m.user_id = person.id;
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
  -- If the person had requested the erasure earlier, invitations from between the request and the deletion at Clerk are still there. They
  -- are older than the deletion, so they are erased too.
  if exists (
    select from app.clerk_records as r
    where r.kind = 'invitation' and r.address_hash = any(app.address_hashes(clerk_user_id)) and app.invitation_predates_erasure(r.fields)
  ) then
    perform app.resume_erasure(clerk_user_id, '{}');
  end if;
end;
$$;
comment on function app.erase_deleted_user is
'Hides a person who was deleted at Clerk. The service and the job erase them with public.continue_erasure(), in transactions of their own.';

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
    -- Locks like an event: first the person, so that no ownership is transferred to them meanwhile, then rows. The row locks serialize the
    -- erasures of two owners of one organization: the second sees that no other owner is left.
    perform app.lock_clerk_objects(array[clerk_user_id]);
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
    'counts', l.counts,
    'skipped', (select count(*) from app.erasure_failures as f where f.receipt = l.receipt)
  )
  from app.erasure_log as l
  where l.receipt = erasure_receipt.receipt;
$$;
comment on function public.erasure_receipt is
'Returns what the holder of a receipt may see: {receipt, state, requested_at, erased_at, clerk_deleted_at, counts, skipped}; null for an unknown receipt. Definer: the service has no privilege on tables.';

-- Only one session at a time works on an erasure; a concurrent call only returns the state. If another transaction holds a row for longer
-- than a second, its batch fails and is tried again. If only skipped rows are left, the erasure is blocked: everything outside the database
-- is done, and the state stays 'running'. settled_at is a time after the request was committed; now() may be one before. The caller goes on
-- at once. If it does not, another one does after 10 seconds, or half a minute if the erasure waits for older transactions.
create or replace function public.continue_erasure(receipt uuid, has_store boolean default false) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
as $$
#variable_conflict use_variable
declare
  job app.erasure_log;
  is_blocked boolean := false;
begin
  perform app.refuse_clerk_tokens();
  select l.* into job from app.erasure_log as l where l.receipt = receipt for update skip locked;
  if job.state = 'running' then
    if job.next_rule is null then
      job.found := 0;
      job.was_quiet := job.settled_at is not null and not app.has_older_transactions(job.settled_at);
    end if;
    job := app.erase_step(job, has_store);
    job.next_attempt_at := now() + case when job.next_rule is null and not job.was_quiet then interval '30 seconds' else interval '10 seconds' end;
    if job.next_rule is null then
      job.settled_at := coalesce(job.settled_at, clock_timestamp());
      job.quiet_passes := case when job.was_quiet then job.quiet_passes + 1 else 0 end;
    end if;
    if job.next_rule is null and (job.quiet_passes > 0 and job.found = 0 or job.quiet_passes > 2) then
      select f.next_attempt_at into job.next_attempt_at from app.erasure_failures as f
      where f.receipt = receipt and f.next_attempt_at > now()
      order by f.next_attempt_at limit 1;
      is_blocked := found;
      if is_blocked then
        job.quiet_passes := 0;
      else
        job.next_attempt_at := now() + interval '10 seconds';
        -- Other sessions have deleted the skipped rows, or the rows became due after this pass had left them out. Another pass shows which.
        delete from app.erasure_failures as f where f.receipt = receipt;
        if not found then
          job.state := 'erased';
          job.erased_at := coalesce(job.erased_at, now());
          job.person := (null, (job.person).clerk_user_id, null)::app.person;
        end if;
      end if;
    end if;
    update app.erasure_log as l
    set
      state = job.state, person = job.person, counts = job.counts, settled_at = job.settled_at, erased_at = job.erased_at,
      next_rule = job.next_rule, found = job.found, was_quiet = job.was_quiet, quiet_passes = job.quiet_passes,
      batches = job.batches, next_attempt_at = job.next_attempt_at
    where l.receipt = receipt;
  end if;
  return public.erasure_receipt(receipt) || (
    select jsonb_build_object(
      'subject_hash', l.subject_hash, 'salt', encode(s.erasure_salt, 'hex'), 'next_rule', l.next_rule, 'is_blocked', is_blocked,
      'receipt_to_store', case when has_store then app.pending_receipt(receipt) end,
      'to_delete_at_clerk', case when (l.state = 'erased' or is_blocked) and l.clerk_deleted_at is null then (l.person).clerk_user_id end
    )
    from app.erasure_log as l cross join app.settings as s
    where l.receipt = receipt
  );
end;
$$;
comment on function public.continue_erasure is
'Runs one step of an erasure. With a store, the changes to the audit trail wait until receipt_to_store is stored: call confirm_receipt() then. Call it in separate transactions while state is running and is_blocked false. Report a failure with postpone_erasure(). Then write the ledger, delete the user at Clerk, and call end_erasure(). Definer: the service has no privilege on tables.';

create or replace function public.end_erasure(receipt uuid, is_stored boolean) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform app.refuse_clerk_tokens();
  update app.erasure_log as l
  set
    state = case l.state when 'erased' then 'complete' else l.state end,
    person = case when l.state = 'running' then l.person end,
    clerk_deleted_at = coalesce(l.clerk_deleted_at, now()), attempts = 0, error = null,
    stored_at = case when is_stored then coalesce(l.stored_at, now()) else l.stored_at end
  where l.receipt = receipt
    and (l.state = 'erased' or l.state = 'running' and exists (select from app.erasure_failures as f where f.receipt = receipt));
  return public.erasure_receipt(receipt);
end;
$$;
comment on function public.end_erasure is
'Completes an erasure: the user is deleted at Clerk, and the ledger has the entry (or there is no store). Removes Clerk''s id from the log. While rows are skipped, it only records both. Definer: the service has no privilege on tables.';

-- After the first failure of a step, each call applies only one batch. So from the second failure on it is known which rule failed:
-- next_rule. Its batch is halved, and the next call continues with the rule after it, so that one rule never stops the others. A call first
-- carries out the planned changes to the audit trail, so these may be what failed: the plan is deleted, and the next one has half its
-- entries. If its receipt was stored already, it stays outside and proves nothing.
create or replace function public.postpone_erasure(receipt uuid, error text, in_step boolean default false) returns void
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  job app.erasure_log;
  failed record;
  planned bigint;
begin
  perform app.refuse_clerk_tokens();
  select l.* into job from app.erasure_log as l where l.receipt = receipt and l.state <> 'complete' for update;
  if in_step and job.state = 'running' and job.attempts > 0 then
    select format('%s.%s', d.relation, d.path) as name, d.next into failed
    from (
      select r.relation, r.path, r.position, lead(r.position) over (order by r.position desc) as next
      from app.personal_data as r
      where r.erasure not in ('keep', 'none')
    ) as d
    where d.position <= coalesce(job.next_rule, d.position)
    order by d.position desc limit 1;
    delete from app.audit_interventions as i where i.erasure = receipt and i.happened_at is null returning i.entries into planned;
    job.batches := job.batches || jsonb_build_object(
      failed.name, coalesce(planned, (job.batches ->> failed.name)::integer, 50) / 2
    );
    job.next_rule := failed.next;
    job.found := job.found + 1;
    job.was_quiet := false; -- this pass leaves rows out
  end if;
  update app.erasure_log as l
  set
    attempts = l.attempts + 1, next_attempt_at = now() + interval '30 seconds' * power(2, least(l.attempts, 9)), error = left(error, 200),
    batches = job.batches, next_rule = job.next_rule, found = job.found, was_quiet = job.was_quiet
  where l.receipt = job.receipt;
end;
$$;
comment on function public.postpone_erasure is
'Records a failure of Clerk, of the store, or of continue_erasure() (in_step), and schedules a retry with exponential backoff up to about four hours. Definer: the service has no privilege on tables.';

-- The one that has waited longest comes first. Each step moves next_attempt_at, so a large erasure takes turns with the others.
create or replace function public.claim_due_erasure() returns uuid
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  update app.erasure_log as l set next_attempt_at = now() + interval '10 seconds'
  where l.receipt = (
    select d.receipt from app.erasure_log as d
    where d.state <> 'complete' and d.next_attempt_at <= now()
    order by d.next_attempt_at limit 1 for update skip locked
  )
  returning l.receipt;
$$;
comment on function public.claim_due_erasure is
'For the service: the erasure to continue next; null if none is due. Others do not claim it for 10 seconds after its last step. Definer: the service has no privilege on tables.';

-- A backup from before an erasure still contains the person. The ledger next to the backups lists the erased people by hash only. So this
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
public.request_erasure(text, text), public.continue_erasure(uuid, boolean), public.end_erasure(uuid, boolean),
public.postpone_erasure(uuid, text, boolean), public.claim_due_erasure(), public.erasure_receipt(uuid)
to service_role;
