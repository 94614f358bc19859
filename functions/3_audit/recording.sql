-- The audit trail: what triggers record of every write to a tenant table, and what callers add. The next: functions/9_tables/*.sql.

-- An entry that says who acts, and from where, and nothing else yet. A person is who the token says. Who holds the secret key may say
-- what it is called (x-actor), and functions of ours do (app.actor). x-forwarded-for is the client's own word where no proxy of ours
-- replaces it.
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
  -- Tried rather than asked, the address last: PostgreSQL 15 cannot ask whether text is JSON or an address.
  begin
    headers := nullif(current_setting('request.headers', true), '')::jsonb;
    entry.user_agent := left(headers ->> 'user-agent', 512);
    entry.request_id := left(headers ->> 'x-request-id', 200);
    address := trim(split_part(headers ->> 'x-forwarded-for', ',', 1));
    entry.ip_address := case when address ~ '^[0-9a-fA-F.:]{2,45}$' then address::inet end;
  exception when others then
    null;
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
comment on function app.start_audit_entry is 'Who acts, on whose behalf and from where, as an entry to complete. Never raises. Definer: it reads app.token and app.caller.';

-- One insert, however many rows a statement wrote. The arguments are those of app.audit(), and the columns that point at people.
-- Without nested loops: the plan is made for the first statement of a session, of one row, and kept for those of thousands. What that
-- seems to cost must not make PostgreSQL compile it. "offset 0" keeps it from making the row's object again wherever one is used.
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
begin
  -- What erasure and retention do row by row is recorded by them, once.
  if current_setting('app.unaudited', true) = 'on' then
    return null;
  end if;
  who := app.start_audit_entry(); -- not where it is declared: what fails there, the exception block does not catch
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
    from (select to_jsonb(w.*) as content from written_rows as w offset 0) as r;
  else
    insert into public.audit_logs (
      user_id, actor, impersonator, ip_address, user_agent, request_id,
      organization_id, action, resource_type, resource_id, metadata, subject_ids, changes
    )
    select
      who.user_id, who.actor, who.impersonator, who.ip_address, who.user_agent, who.request_id,
      -- Hidden now and purged later: to people that is the deletion.
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
    from (select to_jsonb(n.*) as new, to_jsonb(o.*) as old from new_rows as n join old_rows as o on n.id = o.id offset 0) as r
    cross join lateral (
      select jsonb_object_agg(e.key, r.old -> e.key) as before, jsonb_object_agg(e.key, e.value) as after
      from jsonb_each(r.new - ignored) as e
      where e.value <> r.old -> e.key
    ) as c
    where c.after is not null;
  end if;
  return null;
exception when others then
  -- A write never fails because of its record. The server's log says that one is missing.
  raise warning 'A change of % is not in the audit trail (%).', tg_relid::regclass, sqlstate;
  return null;
end;
$$;
comment on function app.record_changes is 'Records what a statement wrote. Definer: nobody else writes the audit trail.';

-- Turns the audit trail on for a table with a primary key `id`; called again, it changes how.
create or replace function app.audit(
  relation regclass,
  resource text default null, -- projects are recorded as project.created and so on
  verbs text[] default '{created,updated,deleted}',
  tenant text default 'organization_id', -- the column with the organization
  named text[] default '{}', -- columns that each entry repeats, so that a reader knows what it is about
  redacted text[] default '{}', -- columns whose values are not recorded, only that they changed
  ignored text[] default '{updated_at}' -- columns whose changes do not count
) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  singular text := coalesce(resource, (select rtrim(c.relname, 's') from pg_class as c where c.oid = relation));
  -- The columns that point at people: an entry is found by whom it names.
  people text[] := array(
    select a.attname::text
    from pg_constraint as k
    join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
    where k.conrelid = relation and k.contype = 'f' and k.confrelid = 'public.profiles'::regclass
    union all
    select 'id' where relation = 'public.profiles'::regclass
  );
  event record;
begin
  if not exists (
    select from pg_constraint as k where k.conrelid = relation and k.contype = 'p' and k.conkey = array(
      select a.attnum from pg_attribute as a where a.attrelid = relation and a.attname = 'id'
    )
  ) then
    raise exception '% has no primary key `id`, by which its entries are found.', relation;
  elsif tenant <> '' and not exists (
    select from pg_attribute as a where a.attrelid = relation and a.attname = tenant and a.atttypid = 'uuid'::regtype
  ) then
    raise exception '% has no column % of type uuid, which says whose entries they are.', relation, tenant;
  elsif exists (select from app.audit_prefixes as a where a.prefix = substring(singular || '.' from '^[^.]*\.')) then
    raise exception 'Clients may log %.… themselves: give the entries of % another word, as resource.', singular, relation;
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
comment on function app.audit is 'Turns the audit trail on for a table, or changes how it is audited.';

create or replace function app.find_people_named(value jsonb, besides uuid) returns uuid[]
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  with texts as materialized (
    select v #>> '{}' as text from jsonb_path_query(value, 'strict $.** ? (@.type() == "string")') as v
  )
  select array_agg(distinct p.id)
  from public.profiles as p
  where p.id is distinct from besides and (
    p.id = any(array(select t.text::uuid from texts as t where t.text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'))
    or p.clerk_user_id = any(array(select t.text from texts as t))
    or lower(p.email) = any(array(select lower(t.text) from texts as t))
  );
$$;
comment on function app.find_people_named is 'People whose ids or e-mail address are texts in the value, other than one; null for none.';

-- What no table tells, such as that a report was exported. The actor is the caller; only the service may name somebody else.
create or replace function app.log_audit_event(
  p_organization_id uuid, p_user_id uuid, p_action text, p_resource_type text, p_resource_id text, p_metadata jsonb
) returns uuid
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  entry public.audit_logs := app.start_audit_entry();
  namespace text := substring(p_action from '^[^.]*\.');
begin
  if coalesce((select t.claims ->> 'role' from app.token as t), '') = 'service_role' then
    perform app.refuse_clerk_tokens();
    entry.user_id := (select p.id from public.profiles as p where p.id = p_user_id); -- nobody who was erased
    entry.actor := case when entry.user_id is null then coalesce(entry.actor, 'service') end;
  elsif entry.user_id is null or p_user_id <> entry.user_id then
    raise sqlstate 'PT403' using message = 'The actor of an audit event is the caller.', hint = 'Leave p_user_id out.';
  elsif p_organization_id is null or p_organization_id <> all(app.own_org_ids()) then
    raise sqlstate 'PT403' using message = 'You do not belong to this organization.';
  elsif not exists (select from app.audit_prefixes as a where a.prefix = namespace) then
    raise sqlstate 'PT403' using
      message = 'Clients may not log this action.', hint = 'Use client.<what>, or add a prefix to app.audit_prefixes.';
  end if;
  if not coalesce(
    length(p_action) <= 100 and length(p_resource_type) between 1 and 100 and coalesce(length(p_resource_id), 0) <= 200
      and jsonb_typeof(p_metadata) = 'object' and octet_length(p_metadata::text) <= 8192,
    false
  ) then
    raise sqlstate 'PT400' using
      message = 'The audit event is too large or not complete.',
      hint = 'Action and resource type have at most 100 characters, the resource id 200, the metadata is an object of at most 8 kB.';
  end if;
  entry.id := gen_random_uuid();
  entry.created_at := now();
  entry.organization_id := p_organization_id;
  entry.action := p_action;
  entry.resource_type := p_resource_type;
  entry.resource_id := p_resource_id;
  entry.metadata := p_metadata;
  entry.subject_ids := app.find_people_named(p_metadata || jsonb_build_object('resource', p_resource_id), entry.user_id);
  insert into public.audit_logs select (entry).*;
  return entry.id;
end;
$$;
comment on function app.log_audit_event is 'Writes an entry that a caller asks for. Definer: no role of the API may write the audit trail.';

create or replace function public.log_audit_event(
  p_organization_id uuid, p_action text, p_resource_type text, p_resource_id text default null, p_metadata jsonb default '{}',
  p_user_id uuid default null
) returns uuid
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.log_audit_event(p_organization_id, p_user_id, p_action, p_resource_type, p_resource_id, p_metadata);
$$;
comment on function public.log_audit_event is
'Adds an entry to the audit trail, by the caller, about an organization of theirs; returns its id. Actions begin with a prefix of app.audit_prefixes.';

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
