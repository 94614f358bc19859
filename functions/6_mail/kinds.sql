-- The kinds of mail: their recipients, whether people may switch them off, and the data that their templates have. Ballast's kinds are
-- registered here, and those of a product in its own file, in the same way (docs/mail.md).
--
-- A function returns the data of one mail as a row: its columns are what the template may use. No row means that the mail is no longer
-- true, so it is dropped. Every template also has the recipient's name and the organization's name.

create or replace function app.example_of(column_name text, type oid) returns jsonb
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case
    when t.oid = 'date'::regtype then '"2026-01-31"'
    when t.oid in ('timestamptz'::regtype, 'timestamp'::regtype) then '"2026-01-31T10:00:00+00:00"'
    when t.oid = 'uuid'::regtype then '"00000000-0000-4000-8000-000000000000"'
    when t.typcategory = 'S' then to_jsonb(replace(column_name, '_', ' '))
    when t.typcategory = 'N' then '42'
    when t.typcategory = 'B' then 'true'
  end
  from pg_type as t
  where t.oid = example_of.type;
$$;
comment on function app.example_of is 'An example value for a column of the data of a mail; null for types that need a written one.';

-- Everything is checked here, so that a wrong declaration fails in `ballast migrate up` and not when a mail is sent.
create or replace function app.register_mail_kind(
  kind text, data_function text default null, audience text default 'person', is_essential boolean default false,
  repeat_after interval default '1 hour', example jsonb default '{}'
) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  function constant oid := to_regprocedure(data_function || '(app.email_outbox)');
  values_of_all constant jsonb := '{"name": "Ada Winter", "organization": "Acme"}';
  declared jsonb := '{}';
  empty app.email_outbox;
  found record;
begin
  if kind is null or kind !~ '^[a-z][a-z0-9_]{0,49}$' or kind = 'layout' then
    raise exception 'The mail kind % has an invalid name.', kind
      using hint = 'Start with a letter. Use at most 50 lower-case letters, digits and underscores.';
  elsif audience is null or audience not in ('person', 'operator', 'erased') then
    raise exception 'The audience of the mail kind % must be person, operator or erased.', kind;
  elsif is_essential is not true and audience <> 'person' then
    raise exception 'Only people can switch mail off, so the mail kind % must be essential.', kind using hint = 'Pass is_essential => true.';
  elsif data_function is not null and function is null then
    raise exception 'There is no function %(app.email_outbox) for the data of the mail kind %.', data_function, kind
      using hint = 'Create it first, and pass its name with its schema.';
  end if;
  for found in
    select a.name, app.example_of(a.name, a.type) as example
    from pg_proc as p
    cross join unnest(p.proargnames, p.proargmodes::text[], p.proallargtypes) as a (name, mode, type)
    where p.oid = function and a.mode = 't'
  loop
    if values_of_all ? found.name then
      raise exception 'The function % returns a column %, but every mail has a value of this name.', data_function, found.name
        using hint = 'Give the column another name.';
    elsif coalesce(example -> found.name, found.example) is null then
      raise exception 'The column % of % needs an example, because of its type.', found.name, data_function
        using hint = format('Pass example => ''{"%s": …}''.', found.name);
    end if;
    declared := declared || jsonb_build_object(found.name, coalesce(example -> found.name, found.example));
  end loop;
  if function is not null then
    if declared = '{}' or (select p.provolatile = 'v' from pg_proc as p where p.oid = function) then
      raise exception 'The function % must return a table and be stable.', data_function
        using hint = 'Declare it as `returns table (<column> <type>, …) language sql stable`.';
    end if;
    begin
      execute format('select to_jsonb(f) from %s($1) as f', function::regproc) using empty;
    exception when others then
      raise exception 'The function % fails for a mail without values: %', data_function, sqlerrm
        using hint = 'It must return no row, or a row with nulls.';
    end;
  end if;
  if exists (select from jsonb_object_keys(example) as k (name) where not declared || values_of_all ? k.name) then
    raise exception 'The example of the mail kind % has a value that is not among its data: %.', kind, example - array(
      select k.name from jsonb_object_keys(declared || values_of_all) as k (name)
      order by k.name
    ) using hint = 'Remove it from the example, or return it as a column.';
  end if;
  insert into app.mail_kinds as k (kind, data_function, audience, is_essential, repeat_after, example)
  values (kind, function::regproc::text, audience, is_essential, repeat_after, values_of_all || declared || example)
  on conflict on constraint mail_kinds_pkey do update
  set
    data_function = excluded.data_function, audience = excluded.audience, is_essential = excluded.is_essential,
    repeat_after = excluded.repeat_after, example = excluded.example
  where (k.data_function, k.audience, k.is_essential, k.repeat_after, k.example)
    is distinct from (excluded.data_function, excluded.audience, excluded.is_essential, excluded.repeat_after, excluded.example);
end;
$$;
comment on function app.register_mail_kind is
'Registers a kind of mail, or changes it. data_function names a stable function (app.email_outbox) returns table: its columns are the data of the templates. example replaces the derived example values. Raises if the declaration is invalid.';

-- --- Ballast's kinds

select app.register_mail_kind('welcome');

-- The recipient must still hold the permission, and the new member must still be one.
create or replace function app.member_joined_data(mail app.email_outbox) returns table (member text, role text)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p.full_name, p.email), m.role
  from public.organization_memberships as m
  join public.profiles as p on p.id = m.user_id
  where m.organization_id = mail.organization_id and m.user_id = mail.about_id
    and exists (
      select from public.organization_memberships as r
      join public.role_permissions as rp on rp.role = r.role and rp.permission = 'members:invite'
      where r.organization_id = mail.organization_id and r.user_id = mail.person_id
    );
$$;
comment on function app.member_joined_data is 'Data of the mail member_joined: the new member.';
select app.register_mail_kind('member_joined', 'app.member_joined_data', example => '{"member": "Ben Summer", "role": "admin"}');

-- A role may change back within the hour, so only a queued mail counts as repeated. It reports the role at the time of sending.
create or replace function app.role_changed_data(mail app.email_outbox) returns table (role text)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select m.role from public.organization_memberships as m
  where m.organization_id = mail.organization_id and m.user_id = mail.person_id;
$$;
comment on function app.role_changed_data is 'Data of the mail role_changed: the role of the recipient.';
select app.register_mail_kind(
  'role_changed', 'app.role_changed_data', is_essential => true, repeat_after => '0', example => '{"role": "admin"}'
);

create or replace function app.export_ready_data(mail app.email_outbox) returns table (requested_by text, started_at timestamptz)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select e.requested_by, e.started_at
  from (select) as always
  left join app.exports as e on e.id::text = mail.data ->> 'export_id';
$$;
comment on function app.export_ready_data is 'Data of the mail export_ready: the export, or nulls if its record has been deleted.';
select app.register_mail_kind('export_ready', 'app.export_ready_data', is_essential => true, example => '{"requested_by": "person"}');

create or replace function app.erasure_done_data(mail app.email_outbox) returns table (receipt uuid)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select mail.id;
$$;
comment on function app.erasure_done_data is 'Data of the mail erasure_done: the receipt.';
select app.register_mail_kind('erasure_done', 'app.erasure_done_data', audience => 'erased', is_essential => true);

create or replace function app.backup_data(mail app.email_outbox) returns table (
  filename text, created_at timestamptz, status text, error text
)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select b.filename, b.created_at, b.status, b.error_message
  from (select) as always
  left join public.backup_logs as b on b.id::text = mail.data ->> 'backup_id';
$$;
comment on function app.backup_data is 'Data of mail about a backup or a drill: the backup, or nulls if its record has been deleted.';
select app.register_mail_kind(
  'backup_failed', 'app.backup_data', audience => 'operator', is_essential => true,
  example => '{"filename": "database/20260131T020000Z-0123abcd", "status": "failed", "error": "pg_dump ended with 1"}'
);
select app.register_mail_kind(
  'drill_failed', 'app.backup_data', audience => 'operator', is_essential => true,
  example => '{"filename": "database/20260131T020000Z-0123abcd", "status": "failed", "error": "pg_dump ended with 1"}'
);

create or replace function app.webhook_failures_data(mail app.email_outbox) returns table (failures bigint)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select count(*) from app.webhook_events as e
  where e.outcome = 'failed'
  having count(*) > 0;
$$;
comment on function app.webhook_failures_data is 'Data of the mail webhook_failures: how many Clerk events have failed; no row if all have succeeded by now.';
select app.register_mail_kind(
  'webhook_failures', 'app.webhook_failures_data', audience => 'operator', is_essential => true, repeat_after => '1 day'
);
