-- Queues mail (an outbox): in the same transaction as the change it reports, so either both are committed or neither. The service sends
-- it afterwards (sending.sql, /jobs/mail): at least once, with an idempotency key, by which Resend delivers it once.
--
-- A queued mail holds no text and no names. They are read when the mail is claimed, so it never states something that is no longer true.

-- Bulk writers (a backfill, a script) suppress mail: set app.no_mail = 'on'.
create or replace function app.is_mail_enabled() returns boolean
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return current_setting('app.no_mail', true) is distinct from 'on' and coalesce((select s.mail_enabled from app.settings as s), false);
end;
$$;
comment on function app.is_mail_enabled is 'Whether mail is queued in this session. Definer: app.settings is private.';

create or replace function app.mail_address(mail app.email_outbox) returns text
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case mail.audience
    when 'person' then (select p.email from public.profiles as p where p.id = mail.person_id)
    when 'operator' then (select s.operator_email from app.settings as s)
    else mail.recipient
  end;
$$;
comment on function app.mail_address is 'The current address of a mail''s recipient; null if there is none.';

-- Checked twice: when a mail is queued and again when it is about to be sent. People can switch off mail that is not essential:
-- profiles.preferences -> 'mail' -> <kind> = false.
create or replace function app.mail_block_reason(mail app.email_outbox) returns text
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  person public.profiles;
  kind app.mail_kinds;
begin
  select k.* into kind from app.mail_kinds as k where k.kind = mail.template;
  if not found then
    return 'unknown_kind';
  elsif app.mail_address(mail) is null then
    return 'no_address';
  elsif mail.audience <> 'person' then
    return null;
  end if;
  select p.* into person from public.profiles as p where p.id = mail.person_id;
  if person.banned then
    return 'banned';
  elsif exists (select from public.organizations as o where o.id = mail.organization_id and o.deleted_at is not null) then
    return 'organization_deleted';
  elsif kind.is_essential then
    return null;
  elsif person.preferences -> 'mail' -> mail.template = 'false' then
    return 'unsubscribed';
  elsif exists (select from app.mail_suppressions as s where s.person_id = person.id and s.address = lower(person.email)) then
    return 'suppressed';
  end if;
  return null;
end;
$$;
comment on function app.mail_block_reason is 'A code for why a mail must not be sent to its recipient; null if it may be sent.';

create or replace function app.is_repeated_mail(mail app.email_outbox) returns boolean
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from app.email_outbox as o
    join app.mail_kinds as k on k.kind = o.template
    where o.person_id is not distinct from mail.person_id and o.template = mail.template
      and (o.about_id, o.organization_id, o.data) is not distinct from (mail.about_id, mail.organization_id, mail.data)
      and (o.state = 'queued' or (o.state <> 'dropped' and o.created_at > now() - k.repeat_after))
  );
$$;
comment on function app.is_repeated_mail is 'Whether the same mail is queued, or was queued within app.mail_kinds.repeat_after.';

-- A wrong kind raises also while mail is switched off, so that a test finds it.
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
  select k.audience into mail.audience from app.mail_kinds as k where k.kind = template;
  if not found then
    raise exception 'There is no mail kind %.', template using errcode = 'undefined_object', hint = 'Register it with app.register_mail_kind().';
  elsif mail.audience <> (case when person_id is null then 'operator' else 'person' end) then
    raise exception 'Mail of the kind % goes to: %.', template, mail.audience
      using errcode = 'invalid_parameter_value', hint = 'Pass person_id for mail to a person, and only then.';
  elsif not app.is_mail_enabled() then
    return null;
  end if;
  mail.id := gen_random_uuid();
  mail.template := template;
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
'Queues mail to a person, or to the operator if person_id is null. Returns its id, or null if it must not be sent. Raises if the kind is not registered, or has another audience. Definer: callers have no privilege on the outbox.';

-- --- triggers that queue mail

-- Only for people who signed up in the last two days: a backfill also imports people who signed up long ago.
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
comment on function app.mail_welcome is 'Queues the welcome mail when a person first has an address. Definer: it reads the outbox. The caller learns: nothing.';

create or replace trigger mail_welcome_new after insert on public.profiles
for each row when (new.email is not null) execute function app.mail_welcome();
create or replace trigger mail_welcome after update of email on public.profiles
for each row when (old.email is null and new.email is not null) execute function app.mail_welcome();

-- Recipients are processed in a fixed order, so that two people who join at the same time cannot deadlock.
create or replace function app.mail_member_joined() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if new.joined_at > now() - interval '2 days' and app.is_mail_enabled() then
    perform app.enqueue_mail('member_joined', m.user_id, new.user_id, new.organization_id)
    from (
      select m.user_id from public.organization_memberships as m
      join public.role_permissions as rp on rp.role = m.role and rp.permission = 'members:invite'
      where m.organization_id = new.organization_id and m.user_id <> new.user_id
      order by m.user_id
    ) as m;
  end if;
  return null;
end;
$$;
comment on function app.mail_member_joined is 'Notifies the members who may invite people of a new member. Definer: it reads memberships.';

create or replace trigger mail_member_joined after insert on public.organization_memberships
for each row execute function app.mail_member_joined();

-- Role changes in the first ten minutes are not reported: Clerk events may still arrive out of order, and a founder is an admin before
-- becoming the owner.
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
comment on function app.mail_role_changed is 'Notifies a person that their role changed. Definer: it reads the outbox.';

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
comment on function app.mail_export_ready is 'Notifies a person that a copy of their data was made, by them or by an administrator. Definer: it reads the outbox.';

create or replace trigger mail_export_ready after update of outcome on app.exports
for each row when (old.outcome <> 'finished' and new.outcome = 'finished') execute function app.mail_export_ready();

-- When an erasure is complete, the profile has no address any more. So the address is copied into the mail when the erasure begins, and
-- is removed with it. The mail is held until the erasure completes. An erasure replayed after a restore sends no second mail.
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
comment on function app.mail_erasure_begun is 'Queues the mail that confirms an erasure, held until the erasure completes. Definer: it writes the outbox.';

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
comment on function app.mail_erasure_done is 'Releases the mail that confirms an erasure. Definer: it writes the outbox.';

create or replace trigger mail_erasure_done after update of state on app.erasure_log
for each row when (old.state = 'running' and new.state <> 'running') execute function app.mail_erasure_done();

create or replace function app.enqueue_backup_alerts() returns trigger
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
comment on function app.enqueue_backup_alerts is 'Notifies the operator of a failed backup or drill. Definer: it reads the outbox.';

create or replace trigger enqueue_backup_alerts after insert or update on public.backup_logs
for each row execute function app.enqueue_backup_alerts();

-- Many events often fail at once for one reason. The lock lets only one of several concurrent transactions queue the mail. It is due
-- after ten minutes; if every event has succeeded by then, it is dropped.
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
comment on function app.mail_webhook_failures is 'Notifies the operator, at most once a day, that Clerk events failed. Definer: it reads the outbox.';

create or replace trigger mail_webhook_failures after insert or update of outcome on app.webhook_events
for each row when (new.outcome = 'failed') execute function app.mail_webhook_failures();
