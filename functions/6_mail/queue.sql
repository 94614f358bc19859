-- Mail: written where the change is made that it tells of, so that both are there or neither. The service sends it afterwards
-- (sending.sql, /jobs/mail): at least once, and with an idempotency key, by which Resend delivers once.
--
-- A mail holds no text and no names. What it says is looked up when it is claimed: nobody is told of what is not true any more.

-- Whoever writes in bulk (a backfill, a script) says: set app.no_mail = 'on'.
create or replace function app.is_mail_enabled() returns boolean
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return current_setting('app.no_mail', true) is distinct from 'on' and coalesce((select s.mail_enabled from app.settings as s), false);
end;
$$;
comment on function app.is_mail_enabled is 'Whether mail is to be written now. Definer: app.settings is private.';

-- What people can do without, and may switch off: profiles.preferences -> 'mail' -> <template> = false.
create or replace function app.is_essential_mail(template text) returns boolean
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select template not in ('welcome', 'member_joined');
$$;
comment on function app.is_essential_mail is 'Whether the mail goes out whatever the recipient prefers.';

create or replace function app.mail_address(mail app.email_outbox) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case mail.audience
    when 'person' then (select p.email from public.profiles as p where p.id = mail.person_id)
    when 'operator' then (select s.operator_email from app.settings as s)
    else mail.recipient
  end;
$$;
comment on function app.mail_address is 'Where a mail goes now; null for nowhere.';

-- Asked twice: when it is written, and once more when it is about to be sent.
create or replace function app.mail_block_reason(mail app.email_outbox) returns text
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  person public.profiles;
begin
  if app.mail_address(mail) is null then
    return 'no_address';
  end if;
  if mail.template = 'webhook_failures' then
    return case when not exists (select from app.webhook_events as e where e.outcome = 'failed') then 'mended' end;
  elsif mail.audience <> 'person' then
    return null;
  end if;
  select p.* into person from public.profiles as p where p.id = mail.person_id;
  if person.banned then
    return 'banned';
  elsif exists (select from public.organizations as o where o.id = mail.organization_id and o.deleted_at is not null) then
    return 'organization_deleted';
  elsif mail.template = 'member_joined' and not (
    exists (
      select from public.organization_memberships as m
      where m.organization_id = mail.organization_id and m.user_id = person.id and m.role in ('owner', 'admin')
    )
    and exists (select from public.organization_memberships as m where m.organization_id = mail.organization_id and m.user_id = mail.about_id)
  ) then
    return 'not_a_member';
  elsif mail.template = 'role_changed' and not exists (
    select from public.organization_memberships as m where m.organization_id = mail.organization_id and m.user_id = person.id
  ) then
    return 'not_a_member';
  elsif app.is_essential_mail(mail.template) then
    return null;
  elsif person.preferences -> 'mail' -> mail.template = 'false' then
    return 'unsubscribed';
  elsif exists (select from app.mail_suppressions as s where s.person_id = person.id and s.address = lower(person.email)) then
    return 'suppressed';
  end if;
  return null;
end;
$$;
comment on function app.mail_block_reason is 'Why a mail is not to be sent: a code; null when nothing speaks against it.';

-- The same is not said twice: not while the first waits, nor within an hour of it; to the operator of webhooks, within a day. But a
-- role may change back within the hour, so of roles only what waits counts: it will tell of the role then.
create or replace function app.is_repeated_mail(mail app.email_outbox) returns boolean
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from app.email_outbox as o
    where o.person_id is not distinct from mail.person_id and o.template = mail.template
      and (o.about_id, o.organization_id, o.data) is not distinct from (mail.about_id, mail.organization_id, mail.data)
      and (
        o.state = 'queued'
        or (
          mail.template <> 'role_changed' and o.state <> 'dropped'
          and o.created_at > now() - case mail.template when 'webhook_failures' then interval '1 day' else interval '1 hour' end
        )
      )
  );
$$;
comment on function app.is_repeated_mail is 'Whether the same mail waits, or was written a short while ago.';

create or replace function app.enqueue_mail(
  template text, person_id uuid default null, about_id uuid default null, organization_id uuid default null, data jsonb default '{}',
  due_at timestamptz default now()
) returns uuid
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  mail app.email_outbox;
begin
  if not app.is_mail_enabled() then
    return null;
  end if;
  mail.id := gen_random_uuid();
  mail.template := template;
  mail.audience := case when person_id is null then 'operator' else 'person' end;
  mail.person_id := person_id;
  mail.about_id := about_id;
  mail.organization_id := organization_id;
  mail.data := data;
  if app.mail_block_reason(mail) is not null or app.is_repeated_mail(mail) then
    return null;
  end if;
  insert into app.email_outbox (id, template, audience, person_id, about_id, organization_id, data, next_attempt_at, give_up_at)
  values (mail.id, template, mail.audience, person_id, about_id, organization_id, data, due_at, due_at + interval '1 day');
  return mail.id;
end;
$$;
comment on function app.enqueue_mail is
'Writes a mail to a person, or to the operator: its id, or null when it is not to be sent. Definer: whoever makes a change may not write mail.';

-- --- what is told

-- Somebody new, not somebody whom a backfill brings: they signed up lately.
create or replace function app.mail_welcome() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if new.created_at > now() - interval '2 days'
    and not exists (select from app.email_outbox as o where o.person_id = new.id and o.template = 'welcome') then
    perform app.enqueue_mail('welcome', new.id);
  end if;
  return null;
end;
$$;
comment on function app.mail_welcome is 'Welcomes who has an address for the first time. Definer: it reads the outbox.';

create or replace trigger mail_welcome_new after insert on public.profiles
for each row when (new.email is not null) execute function app.mail_welcome();
create or replace trigger mail_welcome after update of email on public.profiles
for each row when (old.email is null and new.email is not null) execute function app.mail_welcome();

-- In one order, so that two who join at once do not wait for each other.
create or replace function app.mail_member_joined() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if new.joined_at > now() - interval '2 days' and app.is_mail_enabled() then
    perform app.enqueue_mail('member_joined', m.user_id, new.user_id, new.organization_id)
    from (
      select m.user_id from public.organization_memberships as m
      where m.organization_id = new.organization_id and m.role in ('owner', 'admin') and m.user_id <> new.user_id
      order by m.user_id
    ) as m;
  end if;
  return null;
end;
$$;
comment on function app.mail_member_joined is 'Tells owners and admins who joined. Definer: it reads memberships.';

create or replace trigger mail_member_joined after insert on public.organization_memberships
for each row execute function app.mail_member_joined();

-- In the first minutes messages of Clerk's still come in any order, and a founder is an admin before they are the owner.
create or replace function app.mail_role_changed() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if new.joined_at < now() - interval '10 minutes' then
    perform app.enqueue_mail('role_changed', new.user_id, null, new.organization_id);
  end if;
  return null;
end;
$$;
comment on function app.mail_role_changed is 'Tells a person that their role is another. Definer: it reads the outbox.';

create or replace trigger mail_role_changed after update of role on public.organization_memberships
for each row when (old.role <> new.role) execute function app.mail_role_changed();

create or replace function app.mail_export_ready() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.enqueue_mail('export_ready', new.person_id, data => jsonb_build_object('export_id', new.id));
  return null;
end;
$$;
comment on function app.mail_export_ready is 'Tells a person that a copy of their data was made, whoever asked for it. Definer: it reads the outbox.';

create or replace trigger mail_export_ready after update of outcome on app.exports
for each row when (old.outcome <> 'finished' and new.outcome = 'finished') execute function app.mail_export_ready();

-- Who is erased has no address when it is done. So the address is put aside when it begins, when the profile still has it, and goes
-- with the mail. Nobody may hear before: the mail waits for the erasure. What a restore erases again was told of before.
create or replace function app.mail_erasure_begun() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if app.is_mail_enabled() then
    insert into app.email_outbox (id, template, audience, recipient, next_attempt_at, give_up_at)
    select new.receipt, 'erasure_done', 'erased', p.email, 'infinity', 'infinity'
    from public.profiles as p
    where p.id = (new.person).id and p.email is not null and not p.banned
    on conflict do nothing;
  end if;
  return null;
end;
$$;
comment on function app.mail_erasure_begun is 'Puts aside where to tell that an erasure is done. Definer: it writes the outbox.';

create or replace trigger mail_erasure_begun after insert on app.erasure_log
for each row when (new.requested_by <> 'restore') execute function app.mail_erasure_begun();

create or replace function app.mail_erasure_done() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update app.email_outbox as o set next_attempt_at = now(), give_up_at = now() + interval '1 day'
  where o.id = new.receipt and o.next_attempt_at = 'infinity';
  return null;
end;
$$;
comment on function app.mail_erasure_done is 'Lets go of the mail that tells of an erasure. Definer: it writes the outbox.';

create or replace trigger mail_erasure_done after update of state on app.erasure_log
for each row when (old.state = 'running' and new.state <> 'running') execute function app.mail_erasure_done();

create or replace function app.mail_backups() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if new.status in ('failed', 'interrupted') and (tg_op = 'INSERT' or old.status <> new.status) then
    perform app.enqueue_mail('backup_failed', data => jsonb_build_object('backup_id', new.id));
  end if;
  if not new.drill_passed and (tg_op = 'INSERT' or (old.drilled_at, old.drill_passed) is distinct from (new.drilled_at, new.drill_passed)) then
    perform app.enqueue_mail('drill_failed', data => jsonb_build_object('backup_id', new.id, 'drilled_at', new.drilled_at));
  end if;
  return null;
end;
$$;
comment on function app.mail_backups is 'Tells the operator of a backup or a drill that failed. Definer: it reads the outbox.';

create or replace trigger mail_backups after insert or update on public.backup_logs
for each row execute function app.mail_backups();

-- Many fail at once, for one reason: of two transactions one tells. In ten minutes most have been applied again, and it is not sent.
create or replace function app.mail_webhook_failures() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if app.is_mail_enabled() and pg_try_advisory_xact_lock('app.email_outbox'::regclass::oid::integer, 0) then
    perform app.enqueue_mail('webhook_failures', due_at => now() + interval '10 minutes');
  end if;
  return null;
end;
$$;
comment on function app.mail_webhook_failures is 'Tells the operator, once a day, that messages of Clerk''s could not be applied. Definer: it reads the outbox.';

create or replace trigger mail_webhook_failures after insert or update of outcome on app.webhook_events
for each row when (new.outcome = 'failed') execute function app.mail_webhook_failures();
