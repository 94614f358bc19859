-- Recording of the audit trail: triggers record each write to an audited table, and callers add their own events. The tables in
-- functions/9_tables/*.sql turn it on with app.audit().

-- A new entry with only the actor and the origin. A person's identity comes from the token. A client with the secret key may name itself
-- in the header x-actor, and our own functions do so in the setting app.actor. The service names the browser of the person that it acts
-- for in x-user-agent. Clients can forge the browser, and the address in x-forwarded-for unless a proxy replaces it.
create or replace function app.start_audit_entry() returns public.audit_logs
language plpgsql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  entry public.audit_logs;
  claims jsonb;
  headers jsonb;
  address text;
begin
  select c.id, c.claims into entry.user_id, claims from app.caller as c;
  -- Casts are tried, because PostgreSQL 15 has no pg_input_is_valid(). The address comes last, so that a malformed one loses nothing else.
  begin
    headers := nullif(current_setting('request.headers', true), '')::jsonb;
    entry.user_agent := left(coalesce(headers ->> 'x-user-agent', headers ->> 'user-agent'), 512);
    entry.request_id := left(headers ->> 'x-request-id', 200);
    address := trim(split_part(headers ->> 'x-forwarded-for', ',', 1));
    entry.ip_address := case when address ~ '^[0-9a-fA-F.:]{2,45}$' then address::inet end;
  exception when data_exception or program_limit_exceeded then
    null; -- other errors are trouble of the server, which fails the write
  end;
  if entry.user_id is null then
    claims := (select t.claims from app.token as t);
    entry.actor := coalesce(
      nullif(left(current_setting('app.actor', true), 100), ''),
      case when claims ->> 'role' = 'service_role' then coalesce(nullif(left(headers ->> 'x-actor', 100), ''), 'service') end,
      'system'
    );
  end if;
  if claims ? 'act' and not app.is_erased(claims -> 'act' ->> 'sub') then
    entry.impersonator := left(claims -> 'act' ->> 'sub', 256);
  end if;
  return entry;
end;
$$;
comment on function app.start_audit_entry is 'An entry with actor, impersonator and origin, to be completed. No header or token makes it fail. Definer: it reads app.token and app.caller.';

-- For tables whose JSON columns lack the check of functions/1_caller/depth.sql: the entry keeps all other values, and a hash shows whether
-- this one changed.
create or replace function app.omit_deep_values(content jsonb) returns jsonb
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(
    c.name,
    case
      when jsonb_path_exists(c.value, 'strict $.**{64}')
        then to_jsonb('more than 64 levels, SHA-256 ' || encode(sha256(convert_to(c.value::text, 'UTF8')), 'hex'))
      else c.value
    end
  )
  from jsonb_each(content) as c (name, value);
$$;
comment on function app.omit_deep_values is 'The columns of a row, without values of more than 64 levels.';

-- One insert per statement, however many rows the statement wrote. The trigger's arguments are those of app.audit(), and the columns that
-- refer to people. Nested loops are off, because a session plans this for its first statement, perhaps of one row, and reuses the plan for
-- thousands of rows. That plan's estimated cost is high, so JIT compilation is off. "offset 0" stops the planner from building a row's JSON
-- again for each use.
create or replace function app.record_changes() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp set enable_nestloop = off set jit = off
as $$
#variable_conflict use_variable
declare
  resource text := tg_argv[0];
  verbs text[] := tg_argv[1];
  tenant text := tg_argv[2];
  named text[] := tg_argv[3];
  redacted text[] := tg_argv[4];
  ignored text[] := tg_argv[5];
  people text[] := tg_argv[6];
  who public.audit_logs;
  lost bigint;
begin
  -- Erasure and retention record their work once, not per row.
  if current_setting('app.unaudited', true) = 'on' then
    return null;
  end if;
  who := app.start_audit_entry(); -- not in the declaration: the exception block does not catch errors there
  if tg_op <> 'UPDATE' then
    insert into public.audit_logs (
      user_id, actor, impersonator, ip_address, user_agent, request_id,
      organization_id, action, resource_type, resource_id, metadata, subject_ids, changes
    )
    select
      who.user_id, who.actor, who.impersonator, who.ip_address, who.user_agent, who.request_id,
      (r.content ->> tenant)::uuid, concat(resource, '.', verbs[case tg_op when 'INSERT' then 1 else 3 end]), resource,
      r.content ->> 'id', (select coalesce(jsonb_object_agg(u.name, r.content -> u.name), '{}') from unnest(named) as u (name)),
      (
        select array_agg(distinct u.id)
        from unnest(people) as p (name), lateral (select (r.content ->> p.name)::uuid as id) as u
        where u.id is not null and u.id is distinct from who.user_id
      ),
      jsonb_build_object(
        case tg_op when 'INSERT' then 'after' else 'before' end, r.content - ignored - redacted, 'redacted', redacted
      )
    from (select to_jsonb(w.*) as content from written_rows as w offset 0) as w
    cross join lateral (
      select case when jsonb_path_exists(w.content, 'strict $.**{65}') then app.omit_deep_values(w.content) else w.content end as content offset 0
    ) as r;
  else
    insert into public.audit_logs (
      user_id, actor, impersonator, ip_address, user_agent, request_id,
      organization_id, action, resource_type, resource_id, metadata, subject_ids, changes
    )
    select
      who.user_id, who.actor, who.impersonator, who.ip_address, who.user_agent, who.request_id,
      -- Setting deleted_at hides the row, and it is purged later. For people, that is the deletion.
      (r.new ->> tenant)::uuid, concat(resource, '.', verbs[case when c.after ->> 'deleted_at' is null then 2 else 3 end]), resource,
      r.new ->> 'id', (select coalesce(jsonb_object_agg(u.name, r.new -> u.name), '{}') from unnest(named) as u (name)),
      (
        select array_agg(distinct u.id)
        from unnest(people) as p (name), lateral (values ((r.new ->> p.name)::uuid), ((r.old ->> p.name)::uuid)) as u (id)
        where (c.after ? p.name or p.name = 'id' or p.name = any(named)) and u.id is not null and u.id is distinct from who.user_id
      ),
      jsonb_build_object(
        'before', c.before - redacted, 'after', c.after - redacted,
        'redacted', array(select u.name from unnest(redacted) as u (name) where c.after ? u.name)
      )
    from (select to_jsonb(n.*) as new, to_jsonb(o.*) as old from new_rows as n join old_rows as o on n.id = o.id offset 0) as w
    cross join lateral (
      select
        case when jsonb_path_exists(w.new, 'strict $.**{65}') then app.omit_deep_values(w.new) else w.new end as new,
        case when jsonb_path_exists(w.old, 'strict $.**{65}') then app.omit_deep_values(w.old) else w.old end as old
      offset 0
    ) as r
    cross join lateral (
      select jsonb_object_agg(e.key, r.old -> e.key) as before, jsonb_object_agg(e.key, e.value) as after
      from jsonb_each(r.new - ignored) as e
      where e.value <> r.old -> e.key
    ) as c
    where c.after is not null;
  end if;
  return null;
exception when others then
  -- Trouble of the server fails the write: the client repeats it, and then it has its entry. A property of the row never fails a write:
  -- repeating would not help. The lost entries are counted instead, and ops.audit_health reports them.
  if app.is_transient(sqlstate) then
    raise;
  elsif tg_op = 'UPDATE' then
    select count(*) into lost from new_rows;
  else
    select count(*) into lost from written_rows;
  end if;
  perform app.record_loss('audit', tg_relid, sqlstate, lost);
  raise warning 'A change of % is not in the audit trail (%).', tg_relid::regclass, sqlstate;
  return null;
end;
$$;
comment on function app.record_changes is 'Records what a statement wrote. Definer: no API role may write the audit trail. The caller learns: nothing.';

-- Turns the audit trail on for a table with a primary key `id`. Another call changes the options.
create or replace function app.audit(
  relation regclass,
  resource text default null, -- projects are recorded as project.created and so on
  verbs text[] default '{created,updated,deleted}',
  tenant text default 'organization_id', -- the column with the organization
  named text[] default '{}', -- columns that each entry repeats in its metadata, so that a reader recognizes the row
  redacted text[] default '{}', -- columns for which only the fact of a change is recorded, not the values
  ignored text[] default '{updated_at}' -- columns whose changes are not recorded
) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  singular text := coalesce(resource, (select rtrim(c.relname, 's') from pg_class as c where c.oid = relation));
  -- The columns that refer to people: their values go into subject_ids, by which exports and erasures find the entries.
  people text[] := array(
    select a.attname::text
    from pg_constraint as k
    join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    where k.conrelid = relation and k.contype = 'f' and k.confrelid = 'public.profiles'::regclass
    union all
    select 'id' where relation = 'public.profiles'::regclass
    order by 1 -- else the triggers would differ from run to run, which is reported as drift
  );
  event record;
begin
  if not exists (
    select from pg_constraint as k join pg_attribute as a on a.attrelid = k.conrelid and k.conkey = array[a.attnum]
    where k.conrelid = relation and k.contype = 'p' and a.attname = 'id'
  ) then
    raise exception '% has no primary key `id`: add one, because entries refer to rows by it.', relation;
  elsif tenant <> '' and not exists (
    select from pg_attribute as a where a.attrelid = relation and a.attname = tenant and a.atttypid = 'uuid'::regtype
  ) then
    raise exception '% has no column % of type uuid: pass the column with the organization as `tenant`.', relation, tenant;
  elsif exists (select from app.audit_prefixes as a where a.prefix = substring(singular || '.' from '^[^.]*\.')) then
    raise exception 'Clients may log actions %.… themselves: pass another prefix for % as `resource`.', singular, relation;
  end if;
  for event in
    values
      ('insert', 'new table as written_rows'), ('update', 'old table as old_rows new table as new_rows'), ('delete', 'old table as written_rows')
  loop
    execute format(
      'create or replace trigger audit_%s after %s on %s referencing %s
       for each statement execute function app.record_changes(%L, %L, %L, %L, %L, %L, %L)',
      event.column1, event.column1, relation, event.column2, singular, verbs, tenant, named, redacted, ignored, people
    );
  end loop;
end;
$$;
comment on function app.audit is 'Turns the audit trail on for a table, or changes its options.';

-- An event may name people: colleagues, strangers, people who sign up later. Exports and erasures must find it by their ids and addresses.
-- A look-up would show the author who has an account, so the entry gets hashes of everything that looks like an id or an address. The salt
-- is private, and 64 bits of a hash suffice: a false match changes nothing in the entry.
create or replace function app.hash_mentions(identifiers text[]) returns bigint[]
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select array_agg(distinct ('x' || left(app.salted_hash(s.erasure_salt, lower(i.id)), 16))::bit(64)::bigint)
  from app.settings as s cross join unnest(identifiers) as i (id)
  where i.id <> '';
$$;
comment on function app.hash_mentions is 'The hashes by which audit_logs.mentions names people; null if there are none.';

create or replace function app.person_mentions(person app.person) returns bigint[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return app.hash_mentions(array[person.id::text, person.clerk_user_id] || person.emails);
end;
$$;
comment on function app.person_mentions is 'The hashes by which audit_logs.mentions names the person.';

-- The second pattern finds addresses inside a longer text, such as a link or a sentence.
create or replace function app.find_identifiers(value text) returns text[]
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select array_agg(distinct m.match[1])
  from
    unnest(array[
      '([^\s"(),:;<>@\[\]\\]+@[^\s"(),:;<>@\[\]\\]+)', '([\w.+%-]+@[\w-]+(?:\.[\w-]+)*)', '(?:^|[^\w.+%-])(user_[\w-]+)',
      '([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})'
    ]) as p (pattern),
    -- JSON writes a line break as \n. Its letter n is not a part of the next word.
    regexp_matches(regexp_replace(value, '\\(u[0-9a-f]{4}|.)', ' ', 'g'), p.pattern, 'gi') as m (match);
$$;
comment on function app.find_identifiers is 'Everything in a JSON text that looks like our id, Clerk''s id or an e-mail address of a person.';

create or replace function app.limit_audit_events(organization_id uuid) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  wait integer := app.take_token(app.claims() ->> 'sub', 'audit:' || app.rate_limit_caller(organization_id::text), 100, 1.0 / 3);
begin
  if wait > 0 then
    raise sqlstate 'PT429' using message = 'You log too many audit events.', hint = format('Try again in %s s.', wait);
  end if;
end;
$$;
comment on function app.limit_audit_events is 'Counts an entry that the caller makes in an organization. Raises PT429 above 100 at once and 20 a minute.';

-- For events that no table shows, such as the export of a report. The actor is the caller. Only the service may name another one. A person
-- may log a burst of 100 events in an organization, and 20 a minute after that. The service has no limit, because its events are yours.
create or replace function app.log_audit_event(
  p_organization_id uuid, p_user_id uuid, p_action text, p_resource_type text, p_resource_id text, p_metadata jsonb
) returns uuid
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  entry public.audit_logs;
  namespace text := substring(p_action from '^[^.]*\.');
begin
  perform app.refuse_deep_json(p_metadata);
  entry := app.start_audit_entry();
  if coalesce((select t.claims ->> 'role' from app.token as t), '') = 'service_role' then
    perform app.refuse_clerk_tokens();
    entry.user_id := (select p.id from public.profiles as p where p.id = p_user_id); -- null for an erased person
    entry.actor := case when entry.user_id is null then coalesce(entry.actor, 'service') end;
  elsif entry.user_id is null or p_user_id <> entry.user_id then
    raise sqlstate 'PT403' using message = 'Only the secret key may name another actor.', hint = 'Omit p_user_id.';
  elsif p_organization_id is null or p_organization_id <> all(app.own_org_ids()) then
    raise sqlstate 'PT403' using message = 'You are not a member of this organization.';
  elsif not exists (select from app.audit_prefixes as a where a.prefix = namespace) then
    raise sqlstate 'PT403' using
      message = 'Clients may not log this action.', hint = 'Use an action client.<name>, or add its prefix to app.audit_prefixes.';
  else
    perform app.limit_audit_events(p_organization_id);
  end if;
  if not coalesce(
    length(p_action) <= 100 and length(p_resource_type) between 1 and 100 and coalesce(length(p_resource_id), 0) <= 200
      and jsonb_typeof(p_metadata) = 'object' and octet_length(p_metadata::text) <= 8192,
    false
  ) then
    raise sqlstate 'PT400' using
      message = 'The audit event is incomplete or too large.',
      hint = 'At most 100 characters each for action and resource type, 200 for the resource id, 8 kB for the metadata object.';
  end if;
  -- An erasure removes people from the resource id and the metadata only.
  if app.find_identifiers(concat_ws(' ', p_action, replace(p_action, '.', ' '), p_resource_type)) is not null then
    raise sqlstate 'PT400' using
      message = 'The action or the resource type contains an id or an address.', hint = 'Pass it as p_resource_id or in p_metadata.';
  end if;
  entry.id := gen_random_uuid();
  entry.created_at := now();
  entry.organization_id := p_organization_id;
  entry.action := p_action;
  entry.resource_type := p_resource_type;
  entry.resource_id := p_resource_id;
  entry.metadata := p_metadata;
  entry.mentions := (
    select app.hash_mentions(array(
      select i.id
      from unnest(app.find_identifiers(concat(p_metadata, to_json(p_resource_id)))) as i (id)
      where not exists (
        select from public.profiles as p where p.id = entry.user_id and lower(i.id) in (p.id::text, lower(p.clerk_user_id), lower(p.email))
      )
    ))
  );
  insert into public.audit_logs select (entry).*;
  return entry.id;
end;
$$;
comment on function app.log_audit_event is 'Writes an entry on behalf of a caller. Definer: no API role may write the audit trail. The caller learns: an entry id; whether the caller belongs to the organization.';

create or replace function public.log_audit_event(
  p_organization_id uuid, p_action text, p_resource_type text, p_resource_id text default null, p_metadata jsonb default '{}',
  p_user_id uuid default null
) returns uuid
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.log_audit_event(p_organization_id, p_user_id, p_action, p_resource_type, p_resource_id, p_metadata);
$$;
comment on function public.log_audit_event is
'Adds an audit entry, with the caller as its actor, for one of the caller''s organizations. Returns its id. The action must begin with a prefix of app.audit_prefixes. A person may log a burst of 100 events per organization, and 20 a minute after that: PT429. The service has no limit.';

grant execute on function app.log_audit_event(uuid, uuid, text, text, text, jsonb) to authenticated, service_role;
grant execute on function public.log_audit_event(uuid, text, text, text, jsonb, uuid) to authenticated, service_role;

select app.audit(
  'public.organizations', tenant => 'id', named => '{name}', ignored => '{updated_at}'
);
select app.audit(
  'public.organization_memberships', 'member', '{joined,role_changed,left}', named => '{user_id,role}',
  ignored => '{updated_at,clerk_role,clerk_membership_id,joined_at}'
);
select app.audit('public.organization_invitations', 'invitation', named => '{role}', redacted => '{email}');
select app.audit(
  'public.profiles', redacted => '{email,full_name,avatar_url,preferences}', tenant => '', ignored => '{updated_at,last_seen_at}'
);
