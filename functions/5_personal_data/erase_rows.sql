-- Erases a person from the rows, by the rules in app.personal_data. erasures.sql decides when, and records the progress.

-- Matches an id or address of the person inside a text. It does not match a longer id or address that merely contains it: the pattern for
-- ada@example.com does not match ada@example.com.au or nada@example.com.
create or replace function app.person_pattern(person app.person) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select '(?<![\w.+%-])(' || string_agg(regexp_replace(i.value, '([^[:alnum:]_@-])', '\\\1', 'g'), '|') || ')(?![\w-]|\.\w)'
  from unnest(array[person.id::text, person.clerk_user_id] || person.emails) as i (value)
  where i.value <> '';
$$;
comment on function app.person_pattern is 'A regular expression that matches the person''s ids and addresses inside a text.';

-- Works on each string, never on the JSON text: there a line break is written \n, and its letter n would count as a part of the next word.
create or replace function app.redact_matches(value jsonb, pattern text) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return case jsonb_typeof(value)
    when 'string' then to_jsonb(regexp_replace(value #>> '{}', pattern, 'erased', 'gi'))
    when 'array' then (
      select coalesce(jsonb_agg(app.redact_matches(e.value, pattern) order by e.place), '[]')
      from jsonb_array_elements(redact_matches.value) with ordinality as e (value, place)
    )
    when 'object' then (
      select coalesce(jsonb_object_agg(regexp_replace(e.key, pattern, 'erased', 'gi'), app.redact_matches(e.value, pattern)), '{}')
      from jsonb_each(redact_matches.value) as e
    )
    else value
  end;
end;
$$;
comment on function app.redact_matches is 'Replaces each match in the strings and keys of the value with "erased".';

-- Most values do not mention the person. A plain substring search excludes them quickly.
create or replace function app.redact_person(value jsonb, person app.person) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  text text := lower(value::text);
begin
  if exists (
    select from unnest(array[person.id::text, person.clerk_user_id] || person.emails) as i (id)
    where i.id <> '' and strpos(text, lower(btrim(to_json(i.id)::text, '"'))) > 0
  ) then
    return app.redact_matches(value, app.person_pattern(person));
  end if;
  return value;
end;
$$;
comment on function app.redact_person is 'Replaces each id and address of the person in the value with "erased".';

create or replace function app.describes_person(event jsonb, person app.person) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    person.clerk_user_id in (event -> 'data' ->> 'id', event -> 'data' ->> 'user_id', event -> 'data' -> 'public_user_data' ->> 'user_id')
    or event ->> 'type' ~ '^(user|organizationInvitation|email|sms|waitlistEntry)\.' and app.clerk_mentions(event) && person.emails,
    false
  );
$$;
comment on function app.describes_person is 'Whether a Clerk event contains data about the person, and not only their id.';

-- An applied event is not needed any more: only its type is kept. A failed event keeps the rest of its content, because it may be retried,
-- unless it is about the person.
create or replace function app.erase_message(message app.webhook_events, person app.person) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  is_about boolean := app.describes_person(message.event, person);
  remaining jsonb;
begin
  remaining := case
    when message.outcome = 'failed' and not is_about then app.redact_person(message.event, person)
    else jsonb_build_object('type', message.type, 'data', jsonb_build_object(), 'erased', true)
  end;
  update app.webhook_events as e
  set
    event = remaining, mentions = app.clerk_mentions(remaining),
    outcome = case when is_about and e.outcome = 'failed' then 'ignored' else e.outcome end,
    applied_at = case when is_about then coalesce(e.applied_at, now()) else e.applied_at end,
    next_attempt_at = case when not is_about then e.next_attempt_at end,
    error = case when is_about and e.outcome = 'failed' then 'the person it is about was erased' when e.outcome = 'failed' then e.error end
  where e.message_id = message.message_id;
end;
$$;
comment on function app.erase_message is 'Erases a person from a Clerk event.';

create or replace function app.erase_messages(person app.person, batch integer) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  message app.webhook_events;
  erased integer := 0;
begin
  for message in
    select e.* from app.webhook_events as e where e.mentions && (person.emails || person.clerk_user_id) limit batch for update
  loop
    perform app.erase_message(message, person);
    erased := erased + 1;
  end loop;
  return erased;
end;
$$;
comment on function app.erase_messages is 'Erases a person from up to `batch` Clerk events. Returns how many.';

-- Clerk keeps sending events that mention a deleted user: memberships that end, organizations that the user founded, older invitations.
create or replace function app.redact_incoming_event(message_id text, mentions text[]) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  clerk_user_id text;
begin
  foreach clerk_user_id in array app.select_erased(mentions) loop
    perform app.erase_message(e, (null, clerk_user_id, '{}')::app.person)
    from app.webhook_events as e where e.message_id = redact_incoming_event.message_id;
  end loop;
  perform app.erase_message(e, (null, null, e.mentions)::app.person)
  from app.webhook_events as e
  where e.message_id = redact_incoming_event.message_id and e.type like 'organizationInvitation.%'
    and app.invitation_predates_erasure(app.clerk_fields('invitation', e.event -> 'data'));
end;
$$;
comment on function app.redact_incoming_event is 'Erases people who were erased earlier from an event that has just arrived.';

-- Also finds invitations by the hashes of the person's addresses, because the addresses themselves may be erased already. Invitations from
-- after the erasure stay. Events that another session is retrying are skipped: that session redacts them.
create or replace function app.erase_invitations(person app.person, batch integer) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  addresses text[] := array(select a.address_hash from app.known_addresses as a where a.subject_hash = app.person_hash(person.clerk_user_id));
  emails text[] := person.emails;
  erased integer := 0;
  invitation app.clerk_records;
  message app.webhook_events;
begin
  for invitation in
    select r.*
    from app.clerk_records as r
    where r.kind = 'invitation' and (r.address_hash = any(addresses) or lower(r.fields ->> 'email') = any(person.emails))
      and app.invitation_predates_erasure(r.fields)
    limit batch
  loop
    perform app.record_deletion('invitation', invitation.clerk_id, now());
    emails := emails || lower(invitation.fields ->> 'email');
    erased := erased + 1;
  end loop;
  for message in
    select e.*
    from app.webhook_events as e
    where e.mentions && emails and e.type like 'organizationInvitation.%'
      and app.invitation_predates_erasure(app.clerk_fields('invitation', e.event -> 'data'))
    for update skip locked
  loop
    perform app.erase_message(message, (null, null, message.mentions)::app.person);
  end loop;
  return erased;
end;
$$;
comment on function app.erase_invitations is
'Permanently removes up to `batch` invitations to a person''s addresses that predate the erasure. Returns how many.';

create or replace function app.erase_batch(rule app.personal_data, person app.person, batch integer) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  changed integer;
begin
  if rule.erased_by is not null then
    execute format('select %s($1, $2)', rule.erased_by) into changed using person, batch;
    return changed;
  end if;
  perform set_config('app.unaudited', case rule.erasure when 'set null' then 'on' else '' end, true);
  execute format(
    'with batch as materialized (select t.tableoid as part, t.ctid as place from %1$s as t cross join (select ($1).*) as person where %2$s limit $2) '
    || case rule.erasure
      when 'delete' then 'delete from %1$s as t using batch where t.tableoid = batch.part and t.ctid = batch.place'
      when 'set null' then 'update %1$s as t set %3$I = null from batch where t.tableoid = batch.part and t.ctid = batch.place'
      else 'update %1$s as t set %4$s from batch cross join (select ($1).*) as person where t.tableoid = batch.part and t.ctid = batch.place'
    end,
    rule.relation, rule.subject, rule.path, rule.replacements
  ) using person, batch;
  get diagnostics changed = row_count;
  perform set_config('app.unaudited', '', true);
  return changed;
end;
$$;
comment on function app.erase_batch is 'Applies a rule of app.personal_data to up to `batch` rows of a person. Returns how many.';

-- Stops after the batch during which half a second has passed.
create or replace function app.erase_step(person app.person, inout counts jsonb, out erased integer, out finished boolean)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  batch constant integer := 500;
  deadline constant timestamptz := clock_timestamp() + interval '500 milliseconds';
  rule app.personal_data;
  changed integer;
begin
  erased := 0;
  finished := false;
  for rule in select d.* from app.personal_data as d where d.erasure not in ('keep', 'none') order by d.position desc loop
    loop
      changed := app.erase_batch(rule, person, batch);
      erased := erased + changed;
      if changed > 0 then
        counts := counts || jsonb_build_object(rule.relation, coalesce((counts ->> rule.relation)::bigint, 0) + changed);
      end if;
      if clock_timestamp() > deadline then
        return;
      end if;
      exit when changed < batch;
    end loop;
  end loop;
  finished := true;
end;
$$;
comment on function app.erase_step is 'Erases for half a second, in the reverse order of app.personal_data, so that profiles come last. finished: all rules were applied.';
