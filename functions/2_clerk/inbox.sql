-- The inbox: stores the signed text of each message in app.webhook_events, applies it and records the outcome.

-- Users may put any text into their metadata, and a signed event must not be lost because of it. \u0000 and unpaired surrogates become
-- U+FFFD. Values below level 64, and numbers outside the range of JSON parsers, become null. Example:
-- {"a": "\u0000", "b": 1e99999} becomes {"a": "\ufffd", "b": null}. Text that is not JSON is still not JSON afterwards.
create or replace function app.repair_json(document text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  with escaped as (
    -- First an escaped backslash (\\) becomes \u005c. After that, each \u begins an escaped character.
    select regexp_replace(
      regexp_replace(
        replace(replace(document, '\\', '\u005c'), '\u0000', '\ufffd'),
        '\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})', '\\ufffd', 'g'
      ),
      '(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}', '\\ufffd', 'g'
    ) as repaired
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

create or replace function app.clerk_scopes(event jsonb, out users text[], out organizations text[])
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  subject text := split_part(event ->> 'type', '.', 1);
  data jsonb := event -> 'data';
begin
  users := array_remove(array[
    case subject when 'user' then app.clerk_text(data -> 'id') end, app.clerk_text(data -> 'public_user_data' -> 'user_id')
  ], null);
  organizations := array_remove(array[
    case subject when 'organization' then app.clerk_text(data -> 'id') end, app.clerk_text(data -> 'organization' -> 'id'),
    app.clerk_text(data -> 'organization_id'), app.clerk_text(data -> 'payer' -> 'organization_id')
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
  -- Transient errors (deadlock, out of memory, shutdown) are re-raised: the event is not stored, and Clerk redelivers it.
  if app.is_transient(sqlstate) then
    raise;
  end if;
  outcome := 'failed';
  error := sqlstate || ': ' || sqlerrm;
end;
$$;
comment on function app.try_clerk_event is 'Applies one event. A failure is rolled back and becomes the outcome, unless it is transient.';

-- Stores and applies the event in one transaction. With the result, the service invalidates its cache of the users and organizations, and
-- measures the lag.
create or replace function public.receive_clerk_event(message_id text, event text) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  content jsonb;
  scopes record;
  known text;
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

  if known is null then
    mentions := app.clerk_mentions(content);
    perform app.lock_clerk_data(jsonb_build_array(content -> 'data'));
    select t.outcome, t.error into outcome, failure from app.try_clerk_event(content) as t;
    insert into app.webhook_events (message_id, type, event, mentions, outcome, error, next_attempt_at, applied_at)
    values (
      receive_clerk_event.message_id, content ->> 'type', content, mentions, outcome, failure,
      case when outcome = 'failed' then now() + interval '30 seconds' end, case when outcome <> 'failed' then now() end
    );
    perform app.redact_incoming_event(receive_clerk_event.message_id, mentions);
  elsif known = 'failed' then
    outcome := app.retry_clerk_event(message_id);
  else
    outcome := 'duplicate';
  end if;
  return jsonb_build_object(
    'message_id', message_id, 'type', content ->> 'type', 'outcome', outcome, 'users', scopes.users, 'organizations', scopes.organizations,
    'lag_seconds', extract(epoch from now() - app.clerk_time(content -> 'timestamp')),
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

-- If it fails again, the wait before the next attempt doubles, from 30 seconds to about four hours. Called by the job retry-events, by
-- `ballast inbox retry`, and when Clerk redelivers the message.
create or replace function app.retry_clerk_event(message_id text) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  stored app.webhook_events;
  outcome text;
  failure text;
begin
  select e.* into stored from app.webhook_events as e where e.message_id = retry_clerk_event.message_id;
  perform app.lock_clerk_data(jsonb_build_array(stored.event -> 'data'));
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
  perform app.redact_incoming_event(stored.message_id, stored.mentions);
  return outcome;
end;
$$;
comment on function app.retry_clerk_event is 'Applies a failed message again and returns its outcome; null if there is no such message.';
