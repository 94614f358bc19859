-- The write limit per person in the Data API: PostgREST's pre-request function. It is off by default; docs/limits.md switches it on.

create or replace function app.rate_limit_caller(clerk_user_id text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select encode(sha256(convert_to(rate_limit_caller.clerk_user_id, 'UTF8')), 'hex');
$$;
comment on function app.rate_limit_caller is 'The hash by which app.rate_limits identifies a person.';

-- A token bucket: it holds 100 writes and refills at 20 per second. The upsert is one statement, so that two concurrent writes cannot take
-- the same last token. The second waits for the first, whose transaction lasts as long as its write. Its clock was read before the wait,
-- so refilled_at could go back: greatest() prevents that.
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
    return 0; -- an anonymous caller: the policies refuse the write
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
  return 0; -- a fault in the limiter must never refuse a write
end;
$$;
comment on function app.take_token is 'Takes one write from the caller''s bucket. Returns 0, or the seconds until a write is available. Definer: no role has a privilege on the buckets.';

-- Reads cannot be counted: PostgREST runs them, and calls of functions that are not volatile, in read-only transactions.
-- The service has its own limits (service/limits.py). PostgREST adds a header to an error only if it is raised in this form:
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
comment on function app.check_request is 'PostgREST''s pre-request function. Answers 429 to a person who exceeds a burst of 100 writes or 20 writes per second. Raises no other error.';

grant execute on function app.take_token(), app.check_request() to authenticated;
grant execute on function app.check_request() to service_role;
