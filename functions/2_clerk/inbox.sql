-- The inbox: stores the signed text of each message in app.webhook_events, applies it and records the outcome.

-- Users may put any text into their metadata, and a signed event must not be lost because of it. \u0000 and unpaired surrogates become
-- U+FFFD. Values below level 64, and numbers outside the range of JSON parsers, become null. Example:
-- {"a": "\u0000", "b": 1e99999} becomes {"a": "\ufffd", "b": null}. Text that is not JSON is still not JSON afterwards.
create or replace function app.repair_json(document text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  with escaped as (
    -- First an escaped backslash (\\) becomes \u005c. After that, each \u begins an escaped character. The text is split at the unpaired
    -- surrogates. A lookbehind would find them too, but start from the beginning of the text for each.
    select string_agg(coalesce(m.match[1], '\ufffd'), '' order by m.place) as repaired
    from regexp_matches(
      replace(replace(document, '\\', '\u005c'), '\u0000', '\ufffd'),
      '((?:[^\\]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?!u[dD][89a-fA-F][0-9a-fA-F]{2}))+)|\\u[0-9a-fA-F]{4}', 'g'
    ) with ordinality as m (match, place)
  ), token as (
    select m.place, m.match[1] as text, case when m.match[1] in ('[', '{') then 1 when m.match[1] in (']', '}') then -1 else 0 end as step
    from
      escaped as e,
      regexp_matches(e.repaired, '"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[][{}]|[-0-9][-+.0-9eE]*|[^]["{}0-9-]+', 'g') with ordinality as m (match, place)
  ), leveled as (
    select t.*, sum(t.step) over (order by t.place) as level from token as t
  )
  select string_agg(
    case
      when l.step = 1 and l.level = 64 or l.text ~ '^[-0-9]' and (length(l.text) > 300 or l.text ~ '[eE][-+]?[0-9]{4}') then 'null'
      else l.text
    end, '' order by l.place
  )
  from leveled as l
  where l.level < 64 and not (l.step = -1 and l.level = 63) or l.step = 1 and l.level = 64;
$$;
comment on function app.repair_json is 'The JSON, with U+FFFD or null in place of what jsonb or a later parser cannot represent.';

create or replace function app.read_clerk_event(event text) returns jsonb
language plpgsql immutable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  found jsonb;
begin
  begin
    found := event::jsonb;
  exception when others then
    null; -- it is repaired below and read again
  end;
  if found is null or jsonb_path_exists(found, 'strict $.**{64}') or event ~ '[0-9]{255}|[eE][-+]?[0-9]{4}' then
    found := app.repair_json(event)::jsonb;
  end if;
  if jsonb_typeof(found) is distinct from 'object' or jsonb_typeof(found -> 'data') is distinct from 'object'
    or jsonb_typeof(found -> 'type') is distinct from 'string' or found ->> 'type' = '' then
    raise sqlstate 'PT400' using message = 'The event must be a JSON object with a string as its type and an object as its data.';
  end if;
  return found;
exception when invalid_text_representation then
  raise sqlstate 'PT400' using message = 'The body is not JSON.';
end;
$$;
comment on function app.read_clerk_event is 'The event in the text of a message. Raises PT400 if the text is not an event.';

-- For an event that names only the id of a membership or a subscription, they come from its record. So this is called before the event is
-- applied: afterwards the record may be deleted.
create or replace function app.clerk_scopes(event jsonb, out users text[], out organizations text[])
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  subject text := split_part(event ->> 'type', '.', 1);
  data jsonb := event -> 'data';
  known app.clerk_records;
begin
  select r.* into known from app.clerk_records as r
  where r.clerk_id = app.clerk_text(data -> 'id') and r.kind = case subject
    when 'organizationMembership' then 'membership' when 'subscriptionItem' then 'subscription_item' when 'subscription' then subject
  end;
  users := array_remove(array[
    case subject when 'user' then app.clerk_text(data -> 'id') end,
    coalesce(app.clerk_text(data -> 'public_user_data' -> 'user_id'), known.user_id)
  ], null);
  organizations := array_remove(array[
    case subject when 'organization' then app.clerk_text(data -> 'id') end,
    coalesce(
      app.clerk_text(data -> 'organization' -> 'id'), app.clerk_text(data -> 'organization_id'),
      app.clerk_text(data -> 'payer' -> 'organization_id'), known.organization_id
    )
  ], null);
end;
$$;
comment on function app.clerk_scopes is 'The Clerk ids of the users and organizations that an event is about.';

-- The caller has locked the objects (app.lock_clerk_data), because a failed attempt would release its locks.
-- An event that fails must not lose the message. In a pinned instance, events of other instances must not change rows. Clerk's dashboard
-- can send examples: their instance_id is a made-up one, or missing.
create or replace function app.try_clerk_event(event jsonb, out outcome text, out error text)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  pinned_instance text := (select s.clerk_instance_id from app.settings as s);
begin
  if pinned_instance is not null and event ->> 'instance_id' is distinct from pinned_instance then
    outcome := 'ignored';
    error := 'instance_id is not the one in app.settings.clerk_instance_id';
    return;
  end if;
  perform set_config('app.actor', 'clerk', true); -- the audit trail names Clerk, not the caller
  outcome := app.apply_clerk_event(event);
exception when others then
  -- Transient errors (deadlock, out of memory, shutdown) are re-raised: the event is not stored, and Clerk redelivers it. A timeout is not
  -- caught at all. public.record_event_failure counts both.
  if app.is_transient(sqlstate) then
    raise;
  end if;
  outcome := 'failed';
  error := sqlstate || ': ' || sqlerrm;
end;
$$;
comment on function app.try_clerk_event is 'Applies one event. A failure is rolled back and becomes the outcome, unless it is transient.';

-- Stores and applies the event in one transaction. An event whose attempts ended twice with the same SQLSTATE is stored without being
-- applied: it waits as `failed` for the job retry-events. Otherwise Clerk would give up after about 28 hours, or disable the endpoint. It
-- is due at once: until user.deleted is applied, others see the person. With the result, the service invalidates its cache of the users and
-- organizations, and measures the lag. The service waits for 8 seconds: a shorter wait for locks ends with an error that it can record, and
-- does not go on after the service has gone.
create or replace function public.receive_clerk_event(message_id text, event text) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp set lock_timeout = '6s'
as $$
declare
  content jsonb;
  scopes record;
  known text;
  unapplied text;
  outcome text;
  failure text;
  mentions text[];
begin
  perform app.refuse_clerk_tokens();
  content := app.read_clerk_event(event);
  scopes := app.clerk_scopes(content);
  if message_id is null then
    raise sqlstate 'PT400' using message = 'message_id is missing.', hint = 'Pass the svix-id header.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended(message_id, 1)); -- objects have the seed 0
  select e.outcome into known from app.webhook_events as e where e.message_id = receive_clerk_event.message_id;

  select f.error || ': the attempts to apply it ended with this error' into unapplied
  from app.event_failures as f
  where f.message_id = receive_clerk_event.message_id and f.failures >= 2;

  if known is null then
    mentions := app.clerk_mentions(content);
    if unapplied is null then
      perform app.lock_clerk_data(jsonb_build_array(content -> 'data'));
      select t.outcome, t.error into outcome, failure from app.try_clerk_event(content) as t;
    else
      outcome := 'failed';
      failure := unapplied;
    end if;
    insert into app.webhook_events (message_id, type, event, mentions, outcome, error, next_attempt_at, applied_at)
    values (
      receive_clerk_event.message_id, content ->> 'type', content, mentions, outcome, failure,
      case when unapplied is not null then now() when outcome = 'failed' then now() + interval '30 seconds' end, case when outcome <> 'failed' then now() end
    );
    perform app.redact_incoming_event(receive_clerk_event.message_id, mentions);
    if outcome <> 'failed' then
      delete from app.event_failures as f where f.message_id = receive_clerk_event.message_id;
    end if;
  elsif known = 'failed' then
    outcome := case when unapplied is null then app.retry_clerk_event(message_id) else 'failed' end;
  else
    outcome := 'duplicate';
  end if;
  return jsonb_build_object(
    'message_id', message_id, 'type', content ->> 'type', 'outcome', outcome, 'users', scopes.users, 'organizations', scopes.organizations,
    'lag_seconds', extract(epoch from now() - app.clerk_event_time(content -> 'timestamp')),
    'erasure', (
      select l.receipt from app.erasure_log as l
      where content ->> 'type' = 'user.deleted' and l.state <> 'complete' and l.subject_hash = app.person_hash(content -> 'data' ->> 'id')
    )
  );
end;
$$;
comment on function public.receive_clerk_event is
'For the service: stores the signed text of a message and applies it once. Returns message_id, type, outcome, users, organizations, lag_seconds, and the receipt of the erasure that user.deleted began. Definer: service_role has no access to the tables.';

grant execute on function public.receive_clerk_event(text, text) to service_role;

-- Called after an attempt failed with its transaction, in a transaction of its own. During an outage this call fails too, so nothing is
-- counted: Clerk sends the event again. The end of a connection (class 08) and of the server (57P) says nothing about an event either.
-- Other trouble of the server, such as a full memory or a lock, may affect many events. They are stored unapplied: the retries apply them.
create or replace function public.record_event_failure(message_id text, error text) returns void
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform app.refuse_clerk_tokens();
  if error ~ '^(08|57P)' then
    return;
  end if;
  insert into app.event_failures as f (message_id, error, failures) values (message_id, error, 1)
  on conflict on constraint event_failures_pkey do update
  set failures = case when f.error = excluded.error then f.failures + 1 else 1 end, error = excluded.error, failed_at = now();
  update app.webhook_events as e set error = error || ': the attempt to apply it ended with this error'
  where e.message_id = message_id and e.outcome = 'failed';
end;
$$;
comment on function public.record_event_failure is
'For the service: records that an attempt to apply a message failed with this SQLSTATE and stored nothing. Definer: service_role has no access to the tables.';

grant execute on function public.record_event_failure(text, text) to service_role;

-- If it fails again, the wait before the next attempt doubles, from 30 seconds to about four hours. Called by the job retry-events, by
-- `ballast inbox retry`, and when Clerk redelivers the message. The event is stored, so any error that can be caught becomes the outcome.
-- An attempt that app.claim_due_event has announced is counted already.
create or replace function app.retry_clerk_event(message_id text, is_claimed boolean default false) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  stored app.webhook_events;
  tries integer;
  outcome text;
  failure text;
begin
  select e.* into stored from app.webhook_events as e where e.message_id = retry_clerk_event.message_id;
  perform app.lock_clerk_data(jsonb_build_array(stored.event -> 'data'));
  select e.* into stored from app.webhook_events as e where e.message_id = retry_clerk_event.message_id for update;
  if stored.message_id is null or stored.outcome <> 'failed' then
    return stored.outcome;
  end if;
  tries := stored.attempts + case when is_claimed then 0 else 1 end;
  begin
    select t.outcome, t.error into outcome, failure from app.try_clerk_event(stored.event) as t;
  exception when others then
    outcome := 'failed';
    failure := sqlstate || ': ' || sqlerrm;
  end;
  update app.webhook_events as e
  set
    outcome = retry.outcome, error = retry.failure, attempts = tries,
    next_attempt_at = case when retry.outcome = 'failed' then now() + app.retry_pause(tries) end,
    applied_at = case when retry.outcome <> 'failed' then now() end
  from (select outcome, failure) as retry
  where e.message_id = stored.message_id;
  perform app.redact_incoming_event(stored.message_id, stored.mentions);
  if outcome <> 'failed' then
    delete from app.event_failures as f where f.message_id = stored.message_id;
  end if;
  return outcome;
end;
$$;
comment on function app.retry_clerk_event is 'Applies a failed message again and returns its outcome; null if there is no such message.';

create or replace function app.retry_pause(attempts integer) returns interval
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select interval '30 seconds' * power(2, least(attempts - 1, 9));
$$;
comment on function app.retry_pause is 'How long to wait after that many failed attempts: from 30 seconds to about four hours.';

-- In a transaction of its own, so that the attempt counts even if it ends with an error that cannot be caught, or with a crash. The events
-- with the fewest attempts come first, so that those that always fail stop no others.
create or replace function public.claim_due_event() returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  due app.webhook_events;
  scopes record;
begin
  perform app.refuse_clerk_tokens();
  update app.webhook_events as e set attempts = e.attempts + 1, next_attempt_at = now() + app.retry_pause(e.attempts + 1)
  where e.message_id = (
    select d.message_id from app.webhook_events as d
    where d.outcome = 'failed' and d.next_attempt_at <= now()
    order by d.attempts, d.next_attempt_at limit 1 for update skip locked
  )
  returning e.* into due;
  scopes := app.clerk_scopes(due.event);
  return case when due.message_id is not null then
    jsonb_build_object('message_id', due.message_id, 'users', scopes.users, 'organizations', scopes.organizations)
  end;
end;
$$;
comment on function public.claim_due_event is
'For the service: announces the next attempt to apply a failed event that is due. Returns {message_id, users, organizations}, or null if no event is due. Definer: service_role has no access to the tables.';

create or replace function public.retry_claimed_event(message_id text) returns text
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp set lock_timeout = '6s'
as $$
  select app.refuse_clerk_tokens();

  select app.retry_clerk_event(message_id, is_claimed => true);
$$;
comment on function public.retry_claimed_event is
'For the service: applies the event that claim_due_event() returned, and returns its outcome. Definer: service_role has no access to the tables.';

grant execute on function public.claim_due_event(), public.retry_claimed_event(text) to service_role;
