-- How a person is taken out of the rows, by what app.personal_data says. erasures.sql says when, and remembers it.

-- Texts that contain an id or an address of the person, not those of somebody whose id merely begins or ends alike.
create or replace function app.person_pattern(person app.person) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select '(?<![\w.+%-])(' || string_agg(regexp_replace(i.value, '([^[:alnum:]_@-])', '\\\1', 'g'), '|') || ')(?![\w-]|\.\w)'
  from unnest(array[person.id::text, person.clerk_user_id] || person.emails) as i (value)
  where i.value <> '';
$$;
comment on function app.person_pattern is 'A regular expression for the person''s ids and addresses inside a text.';

-- Text by text, never in the JSON around them: there a line break is a letter.
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
comment on function app.redact_matches is 'The value with "erased" for whatever in its texts and names matches.';

-- Most values hold nothing of the person: that is quick to see.
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
comment on function app.redact_person is 'The value with "erased" for each id and address of the person.';

create or replace function app.mentions_person(event jsonb, person app.person) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    person.clerk_user_id in (event -> 'data' ->> 'id', event -> 'data' ->> 'user_id', event -> 'data' -> 'public_user_data' ->> 'user_id')
    or event ->> 'type' ~ '^(user|organizationInvitation|email|sms|waitlistEntry)\.' and app.clerk_mentions(event) && person.emails,
    false
  );
$$;
comment on function app.mentions_person is 'Whether a person, and not just their id, is in an event of Clerk''s.';

-- A message that was applied has done its work: nothing but its type is kept. One that failed may be needed for what else it tells,
-- unless it is about the person.
create or replace function app.erase_message(message app.webhook_events, person app.person) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  is_about boolean := app.mentions_person(message.event, person);
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
comment on function app.erase_message is 'Takes a person out of a message of Clerk''s.';

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
comment on function app.erase_messages is 'Takes a person out of up to `batch` messages of Clerk''s. Returns how many.';

-- Clerk goes on telling of whom it has deleted: memberships that end, organizations they founded, invitations from before.
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
comment on function app.redact_incoming_event is 'Takes those who were erased out of a message that has just come in.';

-- Found by hashes too: the addresses may be gone already. Those from after the erasure stay. A message that is just being applied again is
-- left to whoever applies it.
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
'Removes up to `batch` invitations to a person''s addresses from before their erasure, for good. Returns how many.';

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
comment on function app.erase_batch is 'Does what a rule of app.personal_data says to up to `batch` rows of a person. Returns how many.';

-- Half a second, and a batch more.
create or replace function app.erase_step(person app.person, inout counts jsonb, out erased integer, out finished boolean)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  batch constant integer := 500;
  enough constant timestamptz := clock_timestamp() + interval '500 milliseconds';
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
      if clock_timestamp() > enough then
        return;
      end if;
      exit when changed < batch;
    end loop;
  end loop;
  finished := true;
end;
$$;
comment on function app.erase_step is 'Erases for half a second, in the opposite order of app.personal_data: profiles come last. finished: it came to the end.';
