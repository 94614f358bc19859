-- Erases people from the stored Clerk events, also from those that arrive after the erasure.

-- Whom an event is about, and whose data it therefore contains. Of other people it contains only the ids.
create or replace function app.event_subjects(event jsonb) returns text[]
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select array_remove(
    array[event -> 'data' ->> 'id', event -> 'data' ->> 'user_id', event -> 'data' -> 'public_user_data' ->> 'user_id'], null
  );
$$;
comment on function app.event_subjects is 'The Clerk ids of the objects that a Clerk event contains data about.';

create or replace function app.describes_person(event jsonb, person app.person) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    person.clerk_user_id = any(app.event_subjects(event))
    or event ->> 'type' ~ '^(user|organizationInvitation|email|sms|waitlistEntry)\.' and app.clerk_mentions(event) && person.emails,
    false
  );
$$;
comment on function app.describes_person is 'Whether a Clerk event contains data about the person, and not only their id.';

-- An applied event is not needed any more: only its type is kept. A failed event keeps the rest of its content, because it may be retried,
-- unless it is about the person.
-- Letters such as the Kelvin sign are a k in lower case, but not for a regular expression. So the text may keep what mentions had found,
-- and mentions lose it in any case: the message must not be found again.
create or replace function app.erase_message(message app.webhook_events, person app.person, is_about boolean) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  remaining jsonb := case
    when message.outcome = 'failed' and not is_about then app.redact_person(message.event, person)
    else jsonb_build_object('type', message.type, 'data', jsonb_build_object(), 'erased', true)
  end;
begin
  update app.webhook_events as e
  set
    event = remaining,
    mentions = array(
      select m.id from unnest(app.clerk_mentions(remaining)) as m (id)
      where m.id <> all(array_remove(person.emails || person.clerk_user_id, null))
    ),
    outcome = case when is_about and e.outcome = 'failed' then 'ignored' else e.outcome end,
    dismissal_reason = left(app.redact_person(to_jsonb(e.dismissal_reason), person) #>> '{}', 500),
    applied_at = case when is_about then coalesce(e.applied_at, now()) else e.applied_at end,
    next_attempt_at = case when not is_about then e.next_attempt_at end,
    error = case when is_about and e.outcome = 'failed' then 'the person it is about was erased' when e.outcome = 'failed' then e.error end
  where e.message_id = message.message_id;
end;
$$;
comment on function app.erase_message is 'Erases a person from a Clerk event. is_about: the event contains data about the person, and not only their id.';

create or replace function app.erase_messages(person app.person, keys jsonb) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  message app.webhook_events;
  erased integer := 0;
begin
  for message in
    select e.* from app.webhook_events as e where e.message_id in (select k.key ->> 0 from jsonb_array_elements(keys) as k (key)) for update
  loop
    perform app.erase_message(message, person, app.describes_person(message.event, person));
    erased := erased + 1;
  end loop;
  return erased;
end;
$$;
comment on function app.erase_messages is 'Erases a person from the Clerk events with these keys. Returns how many.';

-- Clerk keeps sending events that mention a deleted user: memberships that end, organizations that the user founded, older invitations.
-- One update erases all of them, however many an event mentions.
create or replace function app.redact_incoming_event(message_id text, mentions text[]) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  erased constant text[] := app.select_erased(mentions);
begin
  if erased <> '{}' then
    update app.webhook_events as e set event = r.event, mentions = app.clerk_mentions(r.event)
    from app.webhook_events as m
    cross join lateral (select app.redact_words(m.event, erased) as event offset 0) as r
    where m.message_id = redact_incoming_event.message_id and e.message_id = m.message_id
      and m.outcome = 'failed' and not app.event_subjects(m.event) && erased;
    if not found then
      perform app.erase_message(e, (null, null, erased)::app.person, app.event_subjects(e.event) && erased)
      from app.webhook_events as e where e.message_id = redact_incoming_event.message_id;
    end if;
  end if;
  perform app.erase_message(e, (null, null, e.mentions)::app.person, true)
  from app.webhook_events as e
  where e.message_id = redact_incoming_event.message_id and e.type like 'organizationInvitation.%'
    and app.invitation_predates_erasure(app.clerk_fields('invitation', e.event -> 'data'));
end;
$$;
comment on function app.redact_incoming_event is 'Erases people who were erased earlier from an event that has just arrived.';

-- The events with an invitation come first, because its address is the only way to find them. Events that another session is retrying are
-- skipped: that session redacts them.
create or replace function app.erase_invitations(person app.person, keys jsonb) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  batch constant integer := jsonb_array_length(keys);
  invitations constant text[] := array(select k.key ->> 1 from jsonb_array_elements(keys) as k (key));
  emails constant text[] := array(
    select distinct lower(r.fields ->> 'email') from app.clerk_records as r where r.kind = 'invitation' and r.clerk_id = any(invitations)
  );
  message app.webhook_events;
  erased integer := 0;
begin
  for message in
    select e.*
    from app.webhook_events as e
    where e.mentions && emails and e.type like 'organizationInvitation.%'
      and app.invitation_predates_erasure(app.clerk_fields('invitation', e.event -> 'data'))
    limit batch for update skip locked
  loop
    perform app.erase_message(message, (null, null, message.mentions)::app.person, true);
    erased := erased + 1;
  end loop;
  if erased < batch then
    perform app.record_deletion('invitation', i.id, now()) from unnest(invitations) as i (id);
    erased := erased + batch;
  end if;
  return erased;
end;
$$;
comment on function app.erase_invitations is
'Erases as many events with these invitations, and, when no event is left, the invitations. The keys are those of app.clerk_records. Returns how many rows it erased.';
