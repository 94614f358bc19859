-- Replaces a person's ids and addresses inside values. Others write the values, so redaction does not recurse: it does not depend on how
-- deep or large they are.

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

-- A plain substring search excludes most ids quickly. A person may have thousands of addresses, and a pattern of them all would take
-- minutes or more memory than there is, so a pattern has at most 50. The ids are in lower case.
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
