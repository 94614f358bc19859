-- Sending mail: the service claims queued mail, records the outcome, and reports Resend's delivery events.

create or replace function app.mail_context(mail app.email_outbox) returns jsonb
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp
as $$
declare
  data_function constant text := (select k.data_function from app.mail_kinds as k where k.kind = mail.template);
  own jsonb := '{}';
begin
  if data_function is not null then
    execute format('select to_jsonb(d) from (select f.* from %s($1) as f limit 1) as d', data_function) into own using mail;
  end if;
  return own || jsonb_build_object(
    'name', (select p.full_name from public.profiles as p where p.id = mail.person_id),
    'organization', (select coalesce(o.name, o.slug, o.clerk_org_id) from public.organizations as o where o.id = mail.organization_id)
  );
end;
$$;
comment on function app.mail_context is 'Current values for the template of a mail; null if the mail is no longer true.';

-- A claim lasts three minutes. Then the sender is presumed dead, and the mail can be claimed again. Mail that must not be sent any more
-- is dropped here, at most 1,000 at a time: so many that are due cannot make a call time out, and the next call takes the others. Mail
-- whose data cannot be read is retried later. If reading it takes until the statement times out, its kind waits for five minutes. So
-- neither stops the others.
create or replace function public.claim_mail(batch integer default 1, kinds text[] default null) returns jsonb
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  mail app.email_outbox;
  block_reason text;
  context jsonb;
  claimed jsonb := '[]';
begin
  perform app.refuse_clerk_tokens();
  if not coalesce((select s.mail_enabled from app.settings as s), false) then
    return claimed;
  end if;
  for examined in 1 .. 1000 + batch loop
    exit when jsonb_array_length(claimed) = batch;
    select o.* into mail from app.email_outbox as o
    where o.state in ('queued', 'sending') and o.next_attempt_at <= now() and (kinds is null or o.template = any(kinds))
    order by o.next_attempt_at
    limit 1
    for update skip locked;
    exit when not found;
    block_reason := app.mail_block_reason(mail);
    if mail.give_up_at <= now() then
      update app.email_outbox as o
      set state = 'failed', recipient = null, error = coalesce(o.error, 'too_late'), next_attempt_at = now()
      where o.id = mail.id;
      continue;
    elsif block_reason is null then
      update app.email_outbox as o set state = 'sending', attempts = o.attempts + 1, next_attempt_at = now() + interval '3 minutes'
      where o.id = mail.id;
      begin
        context := app.mail_context(mail);
      exception
        when query_canceled then
          -- The statement has no time left, and the data of the kind's other mail may take as long.
          perform public.end_mail(mail.id, 'queued', error => 'data_' || sqlstate);
          update app.email_outbox as o set next_attempt_at = now() + interval '5 minutes' where o.id in (
            select q.id from app.email_outbox as q
            where q.template = mail.template and q.state = 'queued' and q.next_attempt_at <= now()
            for update skip locked
          );
          return claimed;
        when assert_failure or others then
          perform public.end_mail(mail.id, 'queued', error => 'data_' || sqlstate);
          continue;
      end;
      block_reason := case when context is null then 'outdated' end;
    end if;
    if block_reason is not null then
      update app.email_outbox as o set state = 'dropped', recipient = null, error = block_reason where o.id = mail.id;
    else
      claimed := claimed || jsonb_build_object(
        'id', mail.id, 'template', mail.template, 'to', app.mail_address(mail), 'person_id', mail.person_id,
        'is_essential', (select k.is_essential from app.mail_kinds as k where k.kind = mail.template), 'context', context
      );
    end if;
  end loop;
  return claimed;
end;
$$;
comment on function public.claim_mail is
'Claims mail that is due, for three minutes: [{id, template, to, person_id, is_essential, context}]. kinds: those that the service has templates for; mail of another kind waits for a newer service. Definer: the service has no privilege on tables.';

-- If a sender that was presumed dead and its successor both report, success wins.
create or replace function public.end_mail(
  id uuid, state text, provider_id text default null, error text default null, retry_after integer default null
) returns text
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  mail app.email_outbox;
  due_at timestamptz;
begin
  perform app.refuse_clerk_tokens();
  if state is null or state not in ('sent', 'queued', 'failed') then
    raise sqlstate 'PT400' using message = 'The state of an ended mail must be sent, queued (to retry) or failed.';
  end if;
  select o.* into mail from app.email_outbox as o where o.id = id for update;
  if state = 'sent' and mail.audience = 'erased' then
    delete from app.email_outbox as o where o.id = id;
  elsif state = 'sent' then
    update app.email_outbox as o set state = 'sent', provider_id = provider_id, error = null, sent_at = now()
    where o.id = id and o.state in ('queued', 'sending', 'failed');
  elsif mail.state = 'sending' then
    due_at := now() + greatest(
      interval '30 seconds' * power(2, least(mail.attempts - 1, 9)), make_interval(secs => least(coalesce(retry_after, 0), 86400))
    );
    if state = 'failed' or due_at >= mail.give_up_at then
      update app.email_outbox as o set state = 'failed', recipient = null, error = left(error, 200), next_attempt_at = now()
      where o.id = id;
    else
      update app.email_outbox as o set state = 'queued', error = left(error, 200), next_attempt_at = due_at where o.id = id;
    end if;
  end if;
  return (select o.state from app.email_outbox as o where o.id = id);
end;
$$;
comment on function public.end_mail is
'Records the outcome of a claimed mail: sent; queued (retry with exponential backoff, not before retry_after seconds); failed (permanently). Returns the resulting state. Definer: the service has no privilege on tables.';

-- Resend's events arrive in any order, possibly before Resend's id is recorded here. So a mail carries our id as a tag.
create or replace function public.record_mail_event(
  mail_id uuid, provider_id text, kind text, address text default null, is_permanent boolean default true
) returns boolean
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  ranks constant text[] := '{queued,sending,failed,sent,delivered,bounced,complained}';
  mail app.email_outbox;
begin
  perform app.refuse_clerk_tokens();
  if kind is null or kind not in ('delivered', 'bounced', 'complained') then
    raise sqlstate 'PT400' using message = 'The kind of a mail event must be delivered, bounced or complained.';
  end if;
  select o.* into mail from app.email_outbox as o where o.id = mail_id or o.provider_id = provider_id
  order by o.id is not distinct from mail_id desc
  limit 1 for update;
  if not found then
    return false;
  end if;
  if mail.audience = 'erased' then
    delete from app.email_outbox as o where o.id = mail.id; -- it was sent, but its sender was killed before recording that
    return true;
  end if;
  update app.email_outbox as o
  set state = kind, provider_id = coalesce(o.provider_id, provider_id), sent_at = coalesce(o.sent_at, now()), error = null
  where o.id = mail.id and array_position(ranks, o.state) < array_position(ranks, kind);
  if is_permanent and kind in ('bounced', 'complained') then
    insert into app.mail_suppressions as s (person_id, address, reason)
    select p.id, lower(p.email), kind from public.profiles as p
    where p.id = mail.person_id and lower(p.email) = lower(address) -- the person may have another address by now
    on conflict (person_id) do update set address = excluded.address, reason = excluded.reason, suppressed_at = now()
    where (s.address, s.reason) is distinct from (excluded.address, excluded.reason);
  end if;
  return true;
end;
$$;
comment on function public.record_mail_event is
'Records a Resend event: delivered, bounced or complained. An address that bounces permanently or complains receives only essential mail. Returns whether the mail is known. Definer: the service has no privilege on tables.';

create or replace function public.unsubscribe_from_mail(person_id uuid, template text) returns boolean
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.refuse_clerk_tokens();
  if not exists (select from app.mail_kinds as k where k.kind = unsubscribe_from_mail.template and not k.is_essential) then
    return false;
  end if;
  update public.profiles as p
  set preferences = p.preferences || jsonb_build_object(
    'mail',
    case jsonb_typeof(p.preferences -> 'mail') when 'object' then p.preferences -> 'mail' else '{}' end || jsonb_build_object(template, false)
  )
  where p.id = unsubscribe_from_mail.person_id and p.preferences -> 'mail' -> template is distinct from 'false';
  return true;
end;
$$;
comment on function public.unsubscribe_from_mail is
'Switches a kind of mail off for a person. The service has verified the link. Returns false for essential mail, which cannot be switched off, and for a kind that no longer exists. Definer: the service has no privilege on tables.';

-- For the previews of the local mailbox.
create or replace function public.list_mail_kinds() returns jsonb
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.refuse_clerk_tokens();
  return (
    select coalesce(jsonb_object_agg(k.kind, jsonb_build_object('is_essential', k.is_essential, 'example', k.example)), '{}')
    from app.mail_kinds as k
  );
end;
$$;
comment on function public.list_mail_kinds is
'The kinds of mail: {kind: {is_essential, example}}. Definer: the service has no privilege on tables.';

grant execute on function
public.claim_mail(integer, text[]), public.list_mail_kinds(), public.end_mail(uuid, text, text, text, integer),
public.record_mail_event(uuid, text, text, text, boolean), public.unsubscribe_from_mail(uuid, text)
to service_role;
