-- The limits per person in the database. The write limit in the Data API is PostgREST's pre-request function. It is off by default;
-- docs/limits.md switches it on. app.log_audit_event() has a limit of its own, which is always on.

create or replace function app.rate_limit_caller(id text) returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select encode(sha256(convert_to(rate_limit_caller.id, 'UTF8')), 'hex');
$$;
comment on function app.rate_limit_caller is
'The hash by which app.rate_limits identifies a person (by Clerk''s id) or an organization (by ours).';

-- A token bucket: it holds `burst` tokens and refills at `refill` tokens per second. The upsert is one statement, so that two concurrent
-- writes cannot take the same last token. The second waits for the first, whose transaction lasts as long as its write. Its clock was read
-- before the wait, so refilled_at could go back: greatest() prevents that.
create or replace function app.take_token(clerk_user_id text, bucket text, burst double precision, refill double precision) returns integer
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  caller constant text := app.rate_limit_caller(clerk_user_id);
  wait double precision;
begin
  insert into app.rate_limits as l (caller, bucket, tokens, refilled_at)
  values (caller, bucket, burst - 1, clock_timestamp())
  on conflict on constraint rate_limits_pkey do update
  set
    tokens = least(burst, l.tokens + refill * greatest(0, extract(epoch from excluded.refilled_at - l.refilled_at))) - 1,
    refilled_at = greatest(l.refilled_at, excluded.refilled_at)
  where l.tokens + refill * greatest(0, extract(epoch from excluded.refilled_at - l.refilled_at)) >= 1;
  if found then
    return 0;
  end if;
  select (1 - l.tokens) / refill - extract(epoch from clock_timestamp() - l.refilled_at) into wait
  from app.rate_limits as l where l.caller = caller and l.bucket = bucket;
  return greatest(1, ceil(wait))::integer;
exception when others then
  return 0; -- a fault in the limiter must never refuse a write
end;
$$;
comment on function app.take_token(text, text, double precision, double precision) is
'Takes a token from one of a person''s buckets. Returns 0, or the seconds until there is one.';

create or replace function app.take_token() returns integer
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  person text := app.claims() ->> 'sub';
begin
  if coalesce(person, '') = '' then
    return 0; -- an anonymous caller: the policies refuse the write
  end if;
  return app.take_token(person, 'writes', 100, 20);
end;
$$;
comment on function app.take_token() is
'Takes one write from the caller''s bucket. Returns 0, or the seconds until a write is available. Definer: no role has a privilege on the buckets. The caller learns: how long their own writes must wait.';

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
