-- Rectification: people may change their name in public.profiles. The service sends the new name to Clerk. Otherwise Clerk would keep
-- the old name and could write it back here.

create or replace function app.queue_name_change() returns trigger
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if app.user_id() = new.id then
    insert into app.name_changes (person_id) values (new.id)
    on conflict (person_id) do update set changed_at = now(), attempts = 0, next_attempt_at = now(), error = null;
  end if;
  return null;
end;
$$;
comment on function app.queue_name_change is 'Queues a changed name for Clerk. Definer: people may write their profile, but not this queue. The caller learns: nothing.';

create or replace trigger queue_name_change after update of full_name on public.profiles
for each row when (old.full_name is distinct from new.full_name) execute function app.queue_name_change();

-- A claimed change is reserved for one minute. After that, another process may claim it.
create or replace function public.claim_name_changes() returns jsonb
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  with due as (
    select n.person_id from app.name_changes as n where n.next_attempt_at <= now() order by n.next_attempt_at limit 20 for update skip locked
  ), claimed as (
    update app.name_changes as n set attempts = n.attempts + 1, next_attempt_at = now() + interval '1 minute'
    from due where n.person_id = due.person_id
    returning n.person_id, n.changed_at
  )
  select coalesce(jsonb_agg(jsonb_build_object(
    'clerk_user_id', p.clerk_user_id, 'changed_at', c.changed_at,
    'first_name', coalesce(substring(p.full_name from '^\s*(\S+)'), ''), 'last_name', coalesce(substring(p.full_name from '^\s*\S+\s+(.*\S)'), '')
  )), '[]')
  from claimed as c
  join public.profiles as p on p.id = c.person_id;
$$;
comment on function public.claim_name_changes is
'Claims up to 20 changed names for a minute, to send them to Clerk: [{clerk_user_id, first_name, last_name, changed_at}]. Definer: the service has no privilege on tables.';

create or replace function public.end_name_change(clerk_user_id text, changed_at timestamptz, error text, is_final boolean) returns void
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform app.refuse_clerk_tokens();
  -- Only the change that was sent: there may be a newer one by now.
  if error is null then
    delete from app.name_changes as n using public.profiles as p
    where p.clerk_user_id = clerk_user_id and n.person_id = p.id and n.changed_at = changed_at;
  else
    update app.name_changes as n
    set
      error = left(error, 200),
      next_attempt_at = case when is_final then 'infinity' else now() + interval '30 seconds' * power(2, least(n.attempts, 9)) end
    from public.profiles as p
    where p.clerk_user_id = clerk_user_id and n.person_id = p.id and n.changed_at = changed_at;
  end if;
end;
$$;
comment on function public.end_name_change is
'Records the result: Clerk accepted the name (error is null), refused it (is_final), or failed and is retried later. Definer: the service has no privilege on tables.';

grant execute on function public.claim_name_changes(), public.end_name_change(text, timestamptz, text, boolean) to service_role;
