-- Reads the fields of Clerk's objects. No function here raises, whatever the payload contains.
-- They are plpgsql, not SQL, because PostgreSQL before version 18 plans an SQL function again for each statement that calls it.

-- Clerk documents no textual times. They are read nevertheless, because a deletion whose time is unknown counts for ever. Only ISO 8601
-- with a time zone is unambiguous. A day that its month lacks becomes one of the next month, because make_date() would raise.
create or replace function app.iso_time(value text) returns timestamptz
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  part text[] := regexp_match(
    value, '^([12]\d{3})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):([0-5]\d):([0-5]\d(?:\.\d{1,6})?)\d*(?:Z|([+-][01]\d):([0-5]\d))$'
  );
  shift interval := make_interval(hours => coalesce(part[7], '0')::integer, mins => (left(coalesce(part[7], '+'), 1) || coalesce(part[8], '0'))::integer);
begin
  return (make_date(part[1]::integer, part[2]::integer, 1) + (part[3]::integer - 1))::timestamp at time zone 'UTC'
    + make_interval(hours => part[4]::integer, mins => part[5]::integer, secs => part[6]::double precision) - shift;
end;
$$;
comment on function app.iso_time is 'The time in a text such as 2026-11-15T20:45:21.5Z or 2026-11-15T21:45:21+01:00; null for any other text.';

-- Real deliveries have milliseconds, Clerk's published examples have seconds. A number below 1e11 counts as seconds.
create or replace function app.clerk_time(value jsonb) returns timestamptz
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  given text := value #>> '{}';
  number numeric := case when jsonb_typeof(value) = 'number' or jsonb_typeof(value) = 'string' and given ~ '^\d{1,15}$' then given::numeric end;
begin
  return case
    when number between 1 and 1e11 then to_timestamp(number::double precision)
    when number between 1e11 and 2e14 then to_timestamp((number / 1000)::double precision)
    when jsonb_typeof(value) = 'string' then app.iso_time(given)
  end;
end;
$$;
comment on function app.clerk_time is
'A Clerk timestamp: seconds or milliseconds since 1970 as a number or its digits, or ISO 8601. Null if the value is not a plausible time.';

-- For the times that order writes. One from before Clerk existed would lose against everything, and one from the future would block all
-- later changes. A day is far more than clocks differ.
create or replace function app.clerk_event_time(value jsonb) returns timestamptz
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  found timestamptz := app.clerk_time(value);
begin
  return case when found between '2015-01-01 00:00:00+00' and now() + interval '1 day' then found end;
end;
$$;
comment on function app.clerk_event_time is 'When something happened at Clerk; null if the value is not a time, or one that cannot be true.';

create or replace function app.clerk_milliseconds(value jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return to_jsonb(round(extract(epoch from app.clerk_time(value)) * 1000));
end;
$$;
comment on function app.clerk_milliseconds is 'A Clerk timestamp in milliseconds since 1970, whatever its form; null if it is not one.';

-- For a missing value Clerk omits the key, or sends null or an empty string.
create or replace function app.clerk_text(value jsonb, max_length integer default 256) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return case when jsonb_typeof(value) = 'string' then nullif(left(btrim(value #>> '{}'), max_length), '') end;
end;
$$;
comment on function app.clerk_text is 'The string, trimmed and cut to max_length; null if it is empty or not a string.';

create or replace function app.clerk_number(value jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return case when jsonb_typeof(value) = 'number' then value end;
end;
$$;
comment on function app.clerk_number is 'The value if it is a number, otherwise null.';

-- Only addresses that Clerk has verified: anyone can enter another person's, even as their primary one.
create or replace function app.clerk_verified_emails(data jsonb) returns table (id text, address text)
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select e ->> 'id', a.address
    from jsonb_array_elements(case when jsonb_typeof(data -> 'email_addresses') = 'array' then data -> 'email_addresses' else '[]' end) as e
    cross join lateral (select app.clerk_text(e -> 'email_address', 320) as address) as a
    where e -> 'verification' ->> 'status' = 'verified' and a.address is not null;
end;
$$;
comment on function app.clerk_verified_emails is 'The verified e-mail addresses of a user, with their Clerk ids.';

-- The first e-mail address in the list need not be the primary one.
create or replace function app.clerk_primary_email(data jsonb) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return (select e.address from app.clerk_verified_emails(data) as e where e.id = data ->> 'primary_email_address_id' limit 1);
end;
$$;
comment on function app.clerk_primary_email is 'The address whose id is primary_email_address_id; null without one, or while it is not verified.';

create or replace function app.clerk_addresses(data jsonb) returns text[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select distinct lower(e.address) from app.clerk_verified_emails(data) as e);
end;
$$;
comment on function app.clerk_addresses is 'A user''s verified addresses in lower case.';

-- The argument is a user, or the public_user_data of a membership, which has no e-mail addresses.
-- Clerk ends a person's access in two ways, according to the schemas User and OrganizationMembershipPublicUserData of its Backend API,
-- version 2026-05-12 (https://github.com/clerk/openapi-specs; models/user.py in PyPI's clerk-backend-api 7.0.0): `banned`, and
-- `deprovisioned`, "restricted from signing in", for people removed by a directory (https://clerk.com/docs, "Directory Sync (SCIM)").
-- Both become the one flag `banned`. `locked` does not: it ends by itself after failed attempts to sign in.
create or replace function app.clerk_user_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'email', app.clerk_primary_email(data),
    'full_name', app.clerk_text(to_jsonb(concat_ws(' ', app.clerk_text(data -> 'first_name'), app.clerk_text(data -> 'last_name')))),
    'avatar_url', substring(app.clerk_text(data -> 'image_url', 2048) from '^https?://.*'),
    'banned', coalesce(data -> 'banned' = 'true', false) or coalesce(data -> 'deprovisioned' = 'true', false),
    'created_at', app.clerk_milliseconds(data -> 'created_at')
  );
end;
$$;
comment on function app.clerk_user_fields is 'The fields that we keep of a Clerk user.';

create or replace function app.clerk_organization_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'name', coalesce(app.clerk_text(data -> 'name'), app.clerk_text(data -> 'slug'), app.clerk_text(data -> 'id')),
    'slug', app.clerk_text(data -> 'slug'),
    'max_seats', app.clerk_number(data -> 'max_allowed_memberships'),
    'created_by', app.clerk_text(data -> 'created_by'),
    'created_at', app.clerk_milliseconds(data -> 'created_at')
  );
end;
$$;
comment on function app.clerk_organization_fields is 'The fields that we keep of a Clerk organization.';

create or replace function app.clerk_membership_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object('role', app.clerk_text(data -> 'role'), 'created_at', app.clerk_milliseconds(data -> 'created_at'));
end;
$$;
comment on function app.clerk_membership_fields is 'The fields that we keep of a Clerk membership.';

create or replace function app.clerk_invitation_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'email', app.clerk_text(data -> 'email_address', 320),
    'role', app.clerk_text(data -> 'role'),
    'expires_at', app.clerk_milliseconds(data -> 'expires_at'),
    'created_at', coalesce(app.clerk_milliseconds(data -> 'created_at'), app.clerk_milliseconds(data -> 'updated_at'))
  );
end;
$$;
comment on function app.clerk_invitation_fields is 'The fields that we keep of a Clerk invitation while it is pending.';

-- Clerk's roles and permissions are kept as information for an administrator who edits the mapping in app.clerk_roles.
create or replace function app.clerk_role_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'key', app.clerk_text(data -> 'key'),
    'name', app.clerk_text(data -> 'name'),
    'description', app.clerk_text(data -> 'description', 1000),
    'permissions', jsonb_path_query_array(data, '$.permissions[*].key')
  );
end;
$$;
comment on function app.clerk_role_fields is 'The fields that we keep of a Clerk role or permission.';

create or replace function app.clerk_subscription_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'status', app.clerk_text(data -> 'status'), 'plan', app.clerk_text(data -> 'plan' -> 'slug'),
    'period_end', app.clerk_milliseconds(data -> 'period_end')
  );
end;
$$;
comment on function app.clerk_subscription_fields is
'The fields that we keep of a Clerk subscription (status) or of one of its items (status, plan and period_end).';

create or replace function app.clerk_fields(kind text, data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return case kind
    when 'user' then app.clerk_user_fields(data)
    when 'organization' then app.clerk_organization_fields(data)
    when 'membership' then app.clerk_membership_fields(data)
    when 'invitation' then app.clerk_invitation_fields(data)
    when 'subscription' then app.clerk_subscription_fields(data)
    when 'subscription_item' then app.clerk_subscription_fields(data)
    else app.clerk_role_fields(data)
  end;
end;
$$;
comment on function app.clerk_fields is 'The fields that we keep of a Clerk object. Kinds are those of app.clerk_records.';

-- Indexes the inbox, so that a person's export or erasure finds the events that mention them.
create or replace function app.clerk_mentions(event jsonb) returns text[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select distinct case when m.value like '%@%' then lower(m.value) else m.value end
    from (select v #>> '{}' as value from jsonb_path_query(event, 'strict $.** ? (@ like_regex "^user_|@")') as v) as m
    where length(m.value) <= 320
  );
end;
$$;
comment on function app.clerk_mentions is 'The Clerk user ids, and the e-mail addresses in lower case, that are whole strings in an event.';
