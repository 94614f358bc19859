-- Defaults and triggers of the tables in public.

-- Runs only if a value changed: each trigger has that condition.
create or replace function app.touch() returns trigger
language plpgsql volatile parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
  new.updated_at := now();
  return new;
end;
$$;
comment on function app.touch is 'Sets updated_at to the time of the transaction.';

create or replace trigger touch before update on public.organizations
for each row when (old.* is distinct from new.*) execute function app.touch();
create or replace trigger touch before update on public.organization_memberships
for each row when (old.* is distinct from new.*) execute function app.touch();
create or replace trigger touch before update on public.organization_invitations
for each row when (old.* is distinct from new.*) execute function app.touch();
-- Co-members read updated_at, so it must not show a change of the columns that policies/profiles.sql hides from them.
create or replace trigger touch before update on public.profiles
for each row when (
  to_jsonb(old) - '{current_organization_id,preferences,last_seen_at}'::text[]
  is distinct from to_jsonb(new) - '{current_organization_id,preferences,last_seen_at}'::text[]
) execute function app.touch();

create or replace function app.mfa_required() returns boolean
language sql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as $$
  select s.mfa_required from app.settings as s;
$$;
comment on function app.mfa_required is 'The default of a new organization. Definer: a column default runs as any role, and app.settings is private.';

alter table public.organizations alter column mfa_required set default app.mfa_required();
