-- Erases a person from the rows, by the rules in app.personal_data. erasures.sql decides when, and records the progress.

-- Others write the rows, so nothing here depends on how deep, large or many they are: redaction does not recurse, and a batch is limited in
-- rows and in bytes. A batch that fails is tried again with half its rows; a single row that fails is skipped and recorded.

-- Matches one of the ids or addresses inside a text, with the character before it. It does not match a longer id or address that merely
-- contains it: the pattern for ada@example.com does not match ada@example.com.au or nada@example.com. The time grows
-- with the length of the text, and not faster (measured with 8 kB and 350 kB).
create or replace function app.id_pattern(ids text[]) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select '(^|[^\w.+%-])(?:' || string_agg(regexp_replace(i.id, '([^[:alnum:]_@-])', '\\\1', 'g'), '|') || ')(?![\w-]|\.\w)'
  from unnest(ids) as i (id);
$$;
comment on function app.id_pattern is 'A regular expression that matches the ids or addresses inside a text; its first group is the character before.';

-- A plain substring search excludes most ids quickly. A person may have thousands of addresses, and a pattern of them all would take minutes
-- or more memory than there is, so a pattern has at most 50. The ids are in lower case.
create or replace function app.redact_text(value text, ids text[]) returns text
language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  content constant text := lower(value);
  found constant text[] := array(select i.id from unnest(ids) as i (id) where strpos(content, i.id) > 0);
begin
  for place in 1 .. cardinality(found) by 50 loop
    value := regexp_replace(value, app.id_pattern(found[place:place + 49]), '\1erased', 'gi');
  end loop;
  return value;
end;
$$;
comment on function app.redact_text is 'Replaces each of the ids and addresses in the text with "erased".';

-- Works on the text of the value, string by string. Example: {"a": "b\"c"} is written {"a": "b\u0022c"}, so that each quotation mark begins
-- or ends a string, and is split at them: every second part is a string. Each is decoded, redacted and encoded again. A value that is
-- nested too deeply to be read back becomes an object with its text. If two keys become equal, the last one stays.
create or replace function app.redact_matches(value jsonb, ids text[]) returns jsonb
language plpgsql immutable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  lowered constant text[] := array(select lower(i.id) from unnest(ids) as i (id));
  shortest constant integer := (select min(length(i.id)) from unnest(lowered) as i (id));
  redacted text;
begin
  with part as materialized (
    select
      p.place, p.text,
      case
        when p.place % 2 = 1 or length(p.text) < shortest then null
        when p.text like '%\\%' then ('"' || p.text || '"')::jsonb #>> '{}'
        else p.text
      end as decoded
    from string_to_table(replace(replace(value::text, '\\', '\u005c'), '\"', '\u0022'), '"') with ordinality as p (text, place)
  ), changed as materialized (
    select p.place, p.text, to_json(nullif(app.redact_text(p.decoded, lowered), p.decoded))::text as encoded from part as p
  )
  select string_agg(coalesce(substr(c.encoded, 2, length(c.encoded) - 2), c.text), '"' order by c.place) into redacted from changed as c;
  return redacted::jsonb;
exception when statement_too_complex then
  return jsonb_build_object('text', redacted);
end;
$$;
comment on function app.redact_matches is 'Replaces each of the ids and addresses in the strings and keys of the value with "erased".';

-- Most values do not mention the person. They are not taken apart.
create or replace function app.redact_person(value jsonb, person app.person) returns jsonb
language plpgsql immutable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  content constant text := lower(value::text);
  found constant text[] := array(
    select i.id from unnest(array[person.id::text, person.clerk_user_id] || person.emails) as i (id)
    where i.id <> '' and strpos(content, lower(btrim(to_json(i.id)::text, '"'))) > 0
  );
begin
  return case when found = '{}' then value else app.redact_matches(value, found) end;
end;
$$;
comment on function app.redact_person is 'Replaces each id and address of the person in the value with "erased".';

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

-- An event may mention any number of erased people: 740 of them in app.id_pattern took minutes. This splits the text of the value into
-- escaped characters, words and the rest, and compares the words. Example: the words of "see \nuser_ada, user_ben" are see, user_ada and
-- user_ben. An escaped character is a part of its own, so that the n before user_ada belongs to no word.
create or replace function app.redact_words(value jsonb, words text[]) returns jsonb
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select string_agg(case when w.word is null then p.match[1] else 'erased' end, '' order by p.place)::jsonb
  from regexp_matches(value::text, '(\\(?:u[0-9a-f]{4}|.)|[\w-]+|[^\w\\-]+)', 'g') with ordinality as p (match, place)
  left join (select distinct unnest(words) as word) as w on w.word = p.match[1];
$$;
comment on function app.redact_words is 'Replaces each of the words, such as Clerk ids, in the strings and keys of the value with "erased".';

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

-- Example: for app.clerk_records it returns
--   key        jsonb_build_array(t.kind, t.clerk_id)
--   matched_by t.kind = (k.key ->> 0)::text and t.clerk_id = (k.key ->> 1)::text
--   size       coalesce(pg_column_size(t.kind), 0) + coalesce(pg_column_size(t.clerk_id), 0) + …
create or replace function app.describe_rows(relation text, out key text, out matched_by text, out size text)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select
    format('jsonb_build_array(%s)', string_agg(format('t.%I', a.attname), ', ' order by k.place)),
    string_agg(format('t.%I = (k.key ->> %s)::%s', a.attname, k.place - 1, format_type(a.atttypid, a.atttypmod)), ' and ' order by k.place),
    (
      select string_agg(format('coalesce(pg_column_size(t.%I), 0)', c.attname), ' + ' order by c.attnum)
      from pg_attribute as c where c.attrelid = relation::regclass and c.attnum > 0 and not c.attisdropped
    )
  from pg_index as i
  cross join unnest(i.indkey::smallint[]) with ordinality as k (attnum, place)
  join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
  where i.indrelid = relation::regclass and i.indisprimary;
$$;
comment on function app.describe_rows is
'SQL expressions for the rows t of a table: the primary key as a JSON array, the condition that a row has the key k.key, and the stored size in bytes.';

-- Selects up to $2 rows, and up to the row that makes the batch exceed 8 kB a row on average. The sizes are the stored, perhaps compressed
-- ones: reading them costs nothing. $1 is the parameter of the condition, $3 are the keys of rows to leave out.
create or replace function app.selection(relation text, joined text, condition text) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select format(
    $query$
      with found as materialized (select %1$s as key, %2$s as size from %3$s as t %4$s where (%5$s) and %1$s::text <> all($3) limit $2)
      select coalesce(jsonb_agg(m.key), '[]')
      from (select f.key, sum(f.size) over (rows unbounded preceding) - f.size as before from found as f) as m
      where m.before < $2 * 8192
    $query$,
    d.key, d.size, relation, joined, condition
  )
  from app.describe_rows(relation) as d;
$$;
comment on function app.selection is 'Builds the query for the keys, as a JSON array, of a batch of a table''s rows t that fulfill a condition.';

create or replace function app.select_rows(rule app.personal_data, person app.person, batch integer, skipped text[]) returns jsonb
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  keys jsonb;
begin
  execute app.selection(rule.relation, 'cross join (select ($1).*) as person', coalesce(rule.erasure_subject, rule.subject))
  into keys using person, batch, skipped;
  return keys;
end;
$$;
comment on function app.select_rows is 'The keys of a batch of rows that a rule of app.personal_data finds for a person.';

create or replace function app.erase_rows(rule app.personal_data, person app.person, keys jsonb) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  erased integer;
begin
  if rule.erased_by is not null then
    execute format('select %s($1, $2)', rule.erased_by) into erased using person, keys;
    return erased;
  end if;
  perform set_config('app.unaudited', case rule.erasure when 'set null' then 'on' else '' end, true);
  execute format(
    case rule.erasure
      when 'delete' then 'delete from %1$s as t using jsonb_array_elements($2) as k (key) where %2$s'
      when 'set null' then 'update %1$s as t set %3$I = null from jsonb_array_elements($2) as k (key) where %2$s'
      else 'update %1$s as t set %4$s from jsonb_array_elements($2) as k (key) cross join (select ($1).*) as person where %2$s'
    end,
    rule.relation, (select d.matched_by from app.describe_rows(rule.relation) as d), rule.path, rule.replacements
  ) using person, keys;
  get diagnostics erased = row_count;
  perform set_config('app.unaudited', '', true);
  return erased;
end;
$$;
comment on function app.erase_rows is 'Applies a rule of app.personal_data to the rows with these keys. Returns how many it erased or changed.';

create or replace function app.skip_row(receipt uuid, relation text, key jsonb, error text) returns void
language sql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
  insert into app.erasure_failures as f (receipt, relation, key, error) values (receipt, relation, key::text, error)
  on conflict on constraint erasure_failures_pkey do update
  set error = excluded.error, attempts = f.attempts + 1, failed_at = now(),
    next_attempt_at = now() + interval '30 seconds' * power(2, least(f.attempts, 9));
$$;
comment on function app.skip_row is
'Records a row that could not be erased. The erasure leaves it out until its next attempt, which comes after 30 seconds, then ever later.';

-- So no batch takes much longer than its predecessor, whatever the rows contain: sizes are compressed, and triggers may take any time.
create or replace function app.next_batch(batch integer, began_at timestamptz) returns integer
language sql volatile parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case
    when clock_timestamp() > began_at + interval '200 milliseconds' then greatest(batch / 2, 1)
    when clock_timestamp() < began_at + interval '50 milliseconds' then least(batch * 2, 500)
    else batch
  end;
$$;
comment on function app.next_batch is 'Rows of the next batch: twice as many after a quick one, at most 500, and half as many after a slow one.';

-- A batch begins with 50 rows, and halves after a failure. The size 0 means that a single row timed out, so that its failure could not be
-- recorded: postpone_erasure() has halved the batch of 1 row. Then that row is skipped.
-- Returns the number of rows that were erased or skipped: 0 if the rule finds no more rows.
create or replace function app.erase_batch(inout job app.erasure_log, rule app.personal_data, person app.person, out done integer)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  name constant text := format('%s.%s', rule.relation, rule.path);
  batch integer := coalesce((job.batches ->> name)::integer, 50);
  skipped constant text[] := array(
    select f.key from app.erasure_failures as f
    where f.receipt = job.receipt and f.relation = rule.relation and f.next_attempt_at > now()
  );
  keys constant jsonb := app.select_rows(rule, person, greatest(batch, 1), skipped);
  began_at constant timestamptz := clock_timestamp();
  erased integer := 0;
begin
  done := jsonb_array_length(keys);
  if done = 0 then
    return;
  elsif batch = 0 then
    perform app.skip_row(job.receipt, rule.relation, keys -> 0, job.error);
    batch := 1;
  else
    begin
      erased := app.erase_rows(rule, person, keys);
      if erased = 0 then
        raise exception 'the rule finds rows that it does not change';
      end if;
      delete from app.erasure_failures as f
      using jsonb_array_elements(keys) as k (key)
      where f.receipt = job.receipt and f.relation = rule.relation and f.key = k.key::text;
      batch := app.next_batch(batch, began_at);
    exception when others then
      if batch = 1 then
        perform app.skip_row(job.receipt, rule.relation, keys -> 0, sqlstate);
      end if;
      batch := greatest(batch / 2, 1);
    end;
  end if;
  job.batches := job.batches || jsonb_build_object(name, batch);
  if erased > 0 then
    job.counts := job.counts || jsonb_build_object(rule.relation, coalesce((job.counts ->> rule.relation)::bigint, 0) + erased);
  end if;
end;
$$;
comment on function app.erase_batch is 'Erases a person from a batch of rows by a rule of app.personal_data. done: the rows that it found; 0 at the end.';

-- Continues with the rule in job.next_rule, in the reverse order of app.personal_data, so that profiles come last. Stops after the batch
-- during which half a second has passed. A call that times out is rolled back, and nothing says at which batch. So once a call has failed,
-- each call applies only one batch: if that fails too, postpone_erasure() knows its rule, next_rule.
create or replace function app.erase_step(inout job app.erasure_log, has_store boolean)
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  deadline constant timestamptz := clock_timestamp() + interval '500 milliseconds';
  is_careful constant boolean := job.attempts > 0;
  person app.person := job.person;
  rule app.personal_data;
  batch record;
begin
  person.emails := app.select_own_addresses(person.emails, person.clerk_user_id); -- a new account may use the same address by now
  if not app.apply_erasure(job.receipt, person, has_store) then
    job.found := job.found + 1; -- the planned audit entries still name the person
    return;
  end if;
  for rule in
    select d.* from app.personal_data as d
    where d.erasure not in ('keep', 'none') and d.position <= coalesce(job.next_rule, d.position)
    order by d.position desc
  loop
    if is_careful and rule.position < job.next_rule then
      job.next_rule := rule.position;
      return;
    end if;
    job.next_rule := rule.position;
    loop
      batch := app.erase_batch(job, rule, person);
      exit when batch.done = 0;
      job := batch.job;
      job.found := job.found + batch.done;
      if not app.apply_erasure(job.receipt, person, has_store) or is_careful or clock_timestamp() > deadline then
        return;
      end if;
    end loop;
  end loop;
  job.next_rule := null;
end;
$$;
comment on function app.erase_step is 'Erases for half a second, or until a receipt must be stored. next_rule is null afterwards if all rules were applied; found counts the rows that they found.';
