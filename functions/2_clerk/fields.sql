-- Reads the fields of Clerk's objects. No function here raises, whatever the payload contains.
-- They are plpgsql, not SQL, because PostgreSQL before version 18 plans an SQL function again for each statement that calls it.

-- Real deliveries have milliseconds, Clerk's published examples have seconds. A number below 1e11 counts as seconds.
create or replace function app.clerk_time(value jsonb) returns timestamptz
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
  number numeric := case when jsonb_typeof(value) = 'number' then value::numeric end;
begin
  return case
    when number between 1 and 1e11 then to_timestamp(number::double precision)
    when number between 1e11 and 2e14 then to_timestamp((number / 1000)::double precision)
  end;
end;
$$;
comment on function app.clerk_time is 'A Clerk timestamp, in seconds or milliseconds since 1970; null if the value is not a plausible one.';

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

-- The first e-mail address in the list need not be the primary one.
create or replace function app.clerk_primary_email(data jsonb) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select app.clerk_text(e -> 'email_address', 320)
    from jsonb_array_elements(case when jsonb_typeof(data -> 'email_addresses') = 'array' then data -> 'email_addresses' else '[]' end) as e
    where e ->> 'id' = data ->> 'primary_email_address_id'
    limit 1
  );
end;
$$;
comment on function app.clerk_primary_email is 'The address whose id is primary_email_address_id, or null.';

-- Unverified addresses do not count: anyone can enter another person's.
create or replace function app.clerk_addresses(data jsonb) returns text[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select distinct lower(a.address)
    from jsonb_array_elements(case when jsonb_typeof(data -> 'email_addresses') = 'array' then data -> 'email_addresses' else '[]' end) as e
    cross join lateral (select app.clerk_text(e -> 'email_address', 320) as address) as a
    where a.address is not null
      and (e ->> 'id' = data ->> 'primary_email_address_id' or e -> 'verification' ->> 'status' = 'verified')
  );
end;
$$;
comment on function app.clerk_addresses is 'A user''s addresses in lower case: the primary one and those that Clerk has verified.';

-- The argument is a user, or the public_user_data of a membership, which has no e-mail addresses.
create or replace function app.clerk_user_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'email', app.clerk_primary_email(data),
    'full_name', app.clerk_text(to_jsonb(concat_ws(' ', app.clerk_text(data -> 'first_name'), app.clerk_text(data -> 'last_name')))),
    'avatar_url', substring(app.clerk_text(data -> 'image_url', 2048) from '^https?://.*'),
    'banned', coalesce(data -> 'banned' = 'true', false),
    'created_at', app.clerk_number(data -> 'created_at')
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
    'created_at', app.clerk_number(data -> 'created_at')
  );
end;
$$;
comment on function app.clerk_organization_fields is 'The fields that we keep of a Clerk organization.';

create or replace function app.clerk_membership_fields(data jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object('role', app.clerk_text(data -> 'role'), 'created_at', app.clerk_number(data -> 'created_at'));
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
    'expires_at', app.clerk_number(data -> 'expires_at'),
    'created_at', app.clerk_number(data -> 'created_at')
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
  return jsonb_build_object('status', app.clerk_text(data -> 'status'), 'plan', app.clerk_text(data -> 'plan' -> 'slug'));
end;
$$;
comment on function app.clerk_subscription_fields is 'The fields that we keep of a Clerk subscription (status) or of one of its items (status and plan).';

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
