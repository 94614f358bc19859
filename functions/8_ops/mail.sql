-- Undelivered mail, for administrators in the SQL editor.

create or replace view ops.mail_failures with (security_invoker) as
select o.id, o.template, o.audience, o.person_id, o.state, o.error, o.attempts, o.created_at, o.next_attempt_at
from app.email_outbox as o
where o.state in ('failed', 'bounced', 'complained') or (o.state in ('queued', 'sending') and o.error is not null)
order by o.created_at desc;
comment on view ops.mail_failures is 'Mail that failed permanently, bounced, was reported as spam, or is being retried, newest first. Shows no addresses.';

create or replace function ops.retry_mail(id uuid) returns text
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  update app.email_outbox as o set state = 'queued', attempts = 0, next_attempt_at = now(), give_up_at = now() + interval '1 day'
  where o.id = id and o.state = 'failed';
  if not found then
    return 'No failed mail has this id: ops.mail_failures lists the ids.';
  end if;
  return 'The next run of the mail job sends it.';
end;
$$;
comment on function ops.retry_mail is 'Queues failed mail again: select ops.retry_mail(id) from ops.mail_failures where state = ''failed''.';
