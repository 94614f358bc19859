-- Erases a person from the rows, by the rules in app.personal_data. erasures.sql decides when, and records the progress.

-- Others write the rows, so nothing here depends on how large or many they are: a batch is limited in rows and in bytes. A batch that fails
-- is tried again with half its rows; a single row that fails is skipped and recorded.

-- An erasure calls this for every rule, so it is in plpgsql, which keeps the plan. Example: for app.clerk_records it returns
--   key        jsonb_build_array(t.kind, t.clerk_id)
--   matched_by t.kind = (k.key ->> 0)::text and t.clerk_id = (k.key ->> 1)::text
--   size       coalesce(pg_column_size(t.kind), 0) + coalesce(pg_column_size(t.clerk_id), 0) + …
create or replace function app.describe_rows(relation text, out key text, out matched_by text, out size text)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  select
    format('jsonb_build_array(%s)', string_agg(format('t.%I', a.attname), ', ' order by k.place)),
    string_agg(format('t.%I = (k.key ->> %s)::%s', a.attname, k.place - 1, format_type(a.atttypid, a.atttypmod)), ' and ' order by k.place),
    (
      select string_agg(format('coalesce(pg_column_size(t.%I), 0)', c.attname), ' + ' order by c.attnum)
      from pg_attribute as c where c.attrelid = relation::regclass and c.attnum > 0 and not c.attisdropped
    )
  into key, matched_by, size
  from pg_index as i
  cross join unnest(i.indkey::smallint[]) with ordinality as k (attnum, place)
  join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
  where i.indrelid = relation::regclass and i.indisprimary;
end;
$$;
comment on function app.describe_rows is
'SQL expressions for the rows t of a table: the primary key as a JSON array, the condition that a row has the key k.key, and the stored size in bytes.';

-- The order is the same for all queries of a statement, so that two of them find the same row.
create or replace function app.build_order(key text, is_shuffled boolean) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case
    when is_shuffled
    then format('order by hashtextextended((%s)::text, (extract(epoch from statement_timestamp()) * 1000000)::bigint)', key)
    else ''
  end;
$$;
comment on function app.build_order is 'Builds the clause for an order by key that seems random and changes with each statement; empty unless is_shuffled.';

-- Selects up to $2 rows, and up to the row that makes the batch exceed 8 kB a row on average. The sizes are the stored, perhaps compressed
-- ones: reading them costs nothing. $1 is the parameter of the condition, $3 are the keys of rows to leave out.
create or replace function app.build_selection(relation text, joined text, condition text, is_shuffled boolean) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select format(
    $query$
      with found as materialized (select %1$s as key, %2$s as size from %3$s as t %4$s where (%5$s) and %1$s::text <> all($3) %6$s limit $2)
      select coalesce(jsonb_agg(m.key), '[]')
      from (select f.key, sum(f.size) over (rows unbounded preceding) - f.size as before from found as f) as m
      where m.before < $2 * 8192
    $query$,
    d.key, d.size, relation, joined, condition, app.build_order(d.key, is_shuffled)
  )
  from app.describe_rows(relation) as d;
$$;
comment on function app.build_selection is 'Builds the query for the keys, as a JSON array, of a batch of a table''s rows t that fulfill a condition.';

create or replace function app.select_rows(rule app.personal_data, person app.person, batch integer, skipped text[]) returns jsonb
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  keys jsonb;
begin
  execute app.build_selection(rule.relation, 'cross join (select ($1).*) as person', coalesce(rule.erasure_subject, rule.subject), false)
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
'Records a row that could not be erased. The erasure leaves it out until its next attempt, which comes after 30 seconds, then after pauses that double, up to about four hours.';

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
  if erased > 0 and rule.relation <> 'public.audit_logs' then -- those are only planned: app.apply_erasure() counts them
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
  planned record;
begin
  person.emails := app.select_own_addresses(person.emails, person.clerk_user_id); -- a new account may use the same address by now
  planned := app.apply_erasure(job, person, has_store);
  job := planned.job;
  if planned.is_waiting then
    job.found := job.found + 1; -- the planned audit entries still name the person
    job.was_quiet := false;
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
      planned := app.apply_erasure(batch.job, person, has_store);
      job := planned.job;
      job.found := job.found + batch.done;
      if planned.is_waiting or is_careful or clock_timestamp() > deadline then
        return;
      end if;
    end loop;
  end loop;
  job.next_rule := null;
end;
$$;
comment on function app.erase_step is 'Erases for half a second, or until a receipt must be stored. next_rule is null afterwards if all rules were applied; found counts the rows that they found.';
