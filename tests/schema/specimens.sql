-- Specimens: a tenant table that only tests apply, in the form of `ballast new table`. With it, the tests of tenants, policies, broadcasts,
-- the audit trail and personal data do not depend on a product's tables. This file may be applied twice.
create table if not exists public.specimens (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  created_by uuid references public.profiles on delete set null,
  title text not null check (length(title) between 1 and 200),
  description text check (length(description) <= 10000),
  status text not null default 'active' check (status in ('active', 'archived')),
  metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object' and not jsonb_path_exists(metadata, 'strict $.**{64}')),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (organization_id, id)
);
comment on table public.specimens is 'Specimens of an organization.';
comment on column public.specimens.id is 'Our id.';
comment on column public.specimens.organization_id is 'The organization it belongs to; it never changes.';
comment on column public.specimens.created_by is 'The person who created it. Null once that person is erased.';
comment on column public.specimens.title is 'Title, 1 to 200 characters.';
comment on column public.specimens.description is 'Free text.';
comment on column public.specimens.status is 'active or archived.';
comment on column public.specimens.metadata is 'An object.';
comment on column public.specimens.created_at is 'When it was created.';
comment on column public.specimens.updated_at is 'When a value last changed.';
create index if not exists specimens_organization_id_created_at_idx on public.specimens (organization_id, created_at desc);
create index if not exists specimens_created_by_idx on public.specimens (created_by);
alter table public.specimens enable row level security, force row level security;

insert into public.role_permissions (role, permission) values
('owner', 'specimens:create'), ('owner', 'specimens:read'), ('owner', 'specimens:update'), ('owner', 'specimens:delete'),
('admin', 'specimens:create'), ('admin', 'specimens:read'), ('admin', 'specimens:update'), ('admin', 'specimens:delete'),
('member', 'specimens:create'), ('member', 'specimens:read'), ('member', 'specimens:update'),
('viewer', 'specimens:read')
on conflict do nothing;

do $$
begin
  if not exists (select from pg_publication_tables where pubname = 'supabase_realtime' and tablename = 'specimens') then
    alter publication supabase_realtime add table public.specimens;
  end if;
end;
$$;

create or replace trigger touch before update on public.specimens
for each row when (old.* is distinct from new.*) execute function app.touch();

alter table public.specimens alter column created_by set default app.user_id();

select app.broadcast('public.specimens', 'specimens:read');

select app.audit('public.specimens', named => '{title}');

delete from app.personal_data
where relation = 'public.specimens';
insert into app.personal_data (
  relation, path, subject, domain, exported, ordered_by, made_at, erasure, category, data, purpose, lawful_basis, retention
)
values
(
  'public.specimens', 'created_by', 't.created_by = person.id', 'specimens',
  '{t.id,t.organization_id,t.title,t.description,t.status,t.metadata,t.created_at,t.updated_at}', '{id}', 't.created_at',
  'set null', 'Your work', 'Which specimens you created', 'To show the members of the organization who created it',
  'Contract, Art. 6(1)(b) GDPR', 'as long as the specimen exists'
);

grant select, delete on public.specimens to authenticated;
grant insert (organization_id, title, description, status, metadata) on public.specimens to authenticated;
grant update (title, description, status, metadata) on public.specimens to authenticated;

drop policy if exists "read with specimens:read" on public.specimens;
create policy "read with specimens:read" on public.specimens for select to authenticated
using (organization_id = any((select app.org_ids('specimens:read'))::uuid[]));

drop policy if exists "create with specimens:create" on public.specimens;
create policy "create with specimens:create" on public.specimens for insert to authenticated
with check (organization_id = any((select app.org_ids('specimens:create'))::uuid[]));

drop policy if exists "update with specimens:update" on public.specimens;
create policy "update with specimens:update" on public.specimens for update to authenticated
using (organization_id = any((select app.org_ids('specimens:update'))::uuid[]))
with check (organization_id = any((select app.org_ids('specimens:update'))::uuid[]));

drop policy if exists "delete with specimens:delete" on public.specimens;
create policy "delete with specimens:delete" on public.specimens for delete to authenticated
using (organization_id = any((select app.org_ids('specimens:delete'))::uuid[]));
