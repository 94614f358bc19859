-- How much one person may write through the Data API: PostgREST's pre-request function, once docs/limits.md has switched it on.

create or replace function app.rate_limit_caller(clerk_user_id text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select encode(sha256(convert_to(rate_limit_caller.clerk_user_id, 'UTF8')), 'hex');
$$;
comment on function app.rate_limit_caller is 'What app.rate_limits calls a person.';

-- A bucket holds 100 writes and gets 20 back each second. One statement, so that two at once cannot both take the last token; the second
-- waits for the first, whose transaction is as short as the write. The moment was read before that wait, so time never goes back.
create or replace function app.take_token() returns integer
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  burst constant double precision := 100;
  refill constant double precision := 20;
  person text := app.claims() ->> 'sub';
  wait double precision;
begin
  if coalesce(person, '') = '' then
    return 0; -- nobody: the policies refuse
  end if;
  insert into app.rate_limits as l (caller, tokens, refilled_at)
  values (app.rate_limit_caller(person), burst - 1, clock_timestamp())
  on conflict (caller) do update
  set
    tokens = least(burst, l.tokens + refill * greatest(0, extract(epoch from excluded.refilled_at - l.refilled_at))) - 1,
    refilled_at = greatest(l.refilled_at, excluded.refilled_at)
  where l.tokens + refill * greatest(0, extract(epoch from excluded.refilled_at - l.refilled_at)) >= 1;
  if found then
    return 0;
  end if;
  select (1 - l.tokens) / refill - extract(epoch from clock_timestamp() - l.refilled_at) into wait
  from app.rate_limits as l where l.caller = app.rate_limit_caller(person);
  return greatest(1, ceil(wait))::integer;
exception when others then
  return 0; -- whatever is wrong with the buckets, it is no reason to refuse a write
end;
$$;
comment on function app.take_token is 'Takes one write of the caller''s: 0, or in how many seconds there will be one. Definer: nobody has a privilege on the buckets.';

-- Reads are not counted, and cannot be: PostgREST runs them, and functions that are not volatile, in transactions that only read.
-- The service is limited where it is asked (service/limits.py). Only in this form may an error bring a header with it:
-- https://docs.postgrest.org/en/stable/references/errors.html
create or replace function app.check_request() returns void
language plpgsql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
declare
  wait integer;
begin
  if current_user <> 'authenticated' or current_setting('transaction_read_only') = 'on'
    or current_setting('request.method', true) in ('GET', 'HEAD', 'OPTIONS') then
    return;
  end if;
  wait := app.take_token();
  if wait > 0 then
    raise sqlstate 'PGRST' using
      message = json_build_object(
        'code', 'PT429', 'message', 'Too many writes.', 'details', null, 'hint', format('Try again in %s s.', wait)
      )::text,
      detail = json_build_object(
        'status', 429, 'status_text', 'Too Many Requests', 'headers', json_build_object('Retry-After', wait::text)
      )::text;
  end if;
end;
$$;
comment on function app.check_request is 'PostgREST''s pre-request function: refuses with 429 who writes more than 100 times at once, or 20 times a second. Raises nothing else.';

grant execute on function app.take_token(), app.check_request() to authenticated;
grant execute on function app.check_request() to service_role;
