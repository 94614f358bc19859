-- JSON from outside has at most 64 levels: PostgreSQL and clients read JSON by recursion, so deeper values could exhaust a stack. A column
-- has the check `not jsonb_path_exists(value, 'strict $.**{64}')`, which itself stops at that level. A function that takes JSON begins with
-- the call below.

create or replace function app.refuse_deep_json(value jsonb) returns void
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_path_exists(value, 'strict $.**{64}') then
    raise sqlstate 'PT400' using message = 'The JSON has more than 64 levels.', hint = 'Nest objects and arrays less deeply.';
  end if;
end;
$$;
comment on function app.refuse_deep_json is 'Raises PT400 if the JSON has more than 64 levels. {"a": [1]} has three.';
