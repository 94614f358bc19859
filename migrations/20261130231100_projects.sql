-- Projects are the example business entity: copy this shape for yours.
create table public.projects (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  created_by uuid references public.profiles on delete set null,
  title text not null check (length(title) between 1 and 200),
  description text check (length(description) <= 10000),
  status text not null default 'active' check (status in ('active', 'archived', 'deleted')),
  metadata jsonb not null default '{}' check (
    jsonb_typeof(metadata) = 'object' and octet_length(metadata::text) <= 65536 and not jsonb_path_exists(metadata, 'strict $.**{64}')
  ),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- For references of other tables, which include organization_id.
  unique (organization_id, id)
);
comment on table public.projects is 'Example business entity, scoped to an organization.';
comment on column public.projects.id is 'Our id.';
comment on column public.projects.organization_id is 'The organization it belongs to; it never changes.';
comment on column public.projects.created_by is 'The person who created it. Null once that person is erased.';
comment on column public.projects.title is 'Title, 1 to 200 characters.';
comment on column public.projects.description is 'Free text.';
comment on column public.projects.status is 'active, archived or deleted (in the bin).';
comment on column public.projects.metadata is 'The product''s own data, an object of at most 64 KiB and 64 levels.';
comment on column public.projects.created_at is 'When it was created.';
comment on column public.projects.updated_at is 'When a value last changed.';
create index projects_organization_id_created_at_idx on public.projects (organization_id, created_at desc);
create index projects_created_by_idx on public.projects (created_by);
alter table public.projects enable row level security, force row level security;

insert into public.role_permissions (role, permission) values
('owner', 'projects:create'), ('owner', 'projects:read'), ('owner', 'projects:update'), ('owner', 'projects:delete'),
('admin', 'projects:create'), ('admin', 'projects:read'), ('admin', 'projects:update'), ('admin', 'projects:delete'),
('member', 'projects:create'), ('member', 'projects:read'), ('member', 'projects:update'),
('viewer', 'projects:read');

-- Subscribers of Postgres Changes receive projects. A publication of all tables has this one already.
do $$
begin
  if not exists (
    select from pg_publication_tables where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'projects'
  ) then
    alter publication supabase_realtime add table public.projects;
  end if;
end;
$$;
