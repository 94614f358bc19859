-- Organizations, people and memberships, and what each role may do.

-- Roles are rows: a product adds its own in a migration. Only the key owner has a meaning in code: a person who owns the organization.
create table public.roles (
  key text primary key check (key ~ '^[a-z][a-z_]{0,39}$'),
  name text not null check (length(name) between 1 and 100),
  rank integer not null unique check (rank between 1 and 100),
  needs_second_factor boolean not null default false,
  fallback text,
  may_be_invited boolean not null default true,
  may_own boolean not null default false,
  -- Always false, so that the foreign key below finds only roles that need no second factor. Such a role has no fallback itself. So the
  -- fallbacks form no cycle, and no chain.
  fallback_needs_second_factor boolean not null generated always as (false) stored,
  unique (key, needs_second_factor),
  check (needs_second_factor = (fallback is not null)),
  check ((key = 'owner') = (rank = 100)),
  check (key <> 'owner' or may_own),
  constraint roles_fallback_fkey foreign key (fallback, fallback_needs_second_factor) references public.roles (key, needs_second_factor)
  on update restrict on delete restrict
);
comment on table public.roles is 'The roles of members. public.role_permissions holds what each may do. app.clerk_roles maps Clerk''s roles to them.';
comment on column public.roles.key is 'The name in SQL and in the API. It never changes. owner is the role of the person who owns the organization.';
comment on column public.roles.name is 'The name for people.';
comment on column public.roles.rank is
'Members invite and remove only people of their own rank or lower. The owner''s is 100. A Clerk role without a row in app.clerk_roles maps to the role with the lowest rank.';
comment on column public.roles.needs_second_factor is
'Whether members in this role need a second factor, in organizations that require it. Without one, they act in the fallback role.';
comment on column public.roles.fallback is 'The role of a session without the needed second factor: one of a lower rank that needs none.';
comment on column public.roles.may_be_invited is 'Whether people can be invited in this role.';
comment on column public.roles.may_own is
'Whether the person who owns the organization has the role owner while their Clerk role maps to this role.';
comment on column public.roles.fallback_needs_second_factor is 'Always false: part of the foreign key of fallback.';
create index roles_fallback_idx on public.roles (fallback, fallback_needs_second_factor);
alter table public.roles enable row level security, force row level security;
insert into public.roles (key, name, rank, needs_second_factor, fallback, may_be_invited, may_own) values
('viewer', 'Viewer', 10, false, null, true, false),
('member', 'Member', 20, false, null, true, false),
('admin', 'Admin', 30, true, 'viewer', true, true),
('owner', 'Owner', 100, true, 'viewer', false, true);

-- The only matrix of roles and permissions. Policies, the service and browsers read it.
create table public.role_permissions (
  role text not null references public.roles on update restrict on delete cascade,
  permission text not null check (permission ~ '^[a-z_]+:[a-z_]+$'),
  primary key (role, permission)
);
comment on table public.role_permissions is 'Which role holds which permission.';
comment on column public.role_permissions.role is 'The role.';
comment on column public.role_permissions.permission is 'resource:action, such as projects:update.';
alter table public.role_permissions enable row level security, force row level security;

-- A tenant table adds its own permissions in its own migration. No policy asks for billing:manage and organization:delete: at Clerk,
-- Clerk's own permissions decide. Clients show or hide buttons by these two.
insert into public.role_permissions (role, permission) values
('owner', 'members:read'), ('owner', 'members:invite'), ('owner', 'members:remove'), ('owner', 'audit:read'),
('owner', 'billing:manage'), ('owner', 'organization:update'), ('owner', 'organization:delete'),
('admin', 'members:read'), ('admin', 'members:invite'), ('admin', 'members:remove'), ('admin', 'audit:read'),
('admin', 'organization:update'),
('member', 'members:read'),
('viewer', 'members:read');

-- Tenants. Clerk is the source; only name and settings may be changed here.
create table public.organizations (
  id uuid primary key default gen_random_uuid(),
  clerk_org_id text not null unique,
  name text not null check (length(name) between 1 and 256),
  slug text,
  subscription_tier text not null default 'free' check (subscription_tier in ('free', 'starter', 'pro', 'enterprise')),
  subscription_status text not null default 'active' check (subscription_status in ('active', 'cancelled', 'past_due')),
  max_seats integer check (max_seats > 0),
  settings jsonb not null default '{}' check (
    jsonb_typeof(settings) = 'object' and octet_length(settings::text) <= 65536 and not jsonb_path_exists(settings, 'strict $.**{64}')
  ),
  mfa_required boolean not null,
  -- A deleted organization loses its members at once and is purged later; a suspended one returns unchanged.
  suspended_at timestamptz,
  suspension_reason text check (length(suspension_reason) between 1 and 500),
  deleted_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
comment on table public.organizations is 'Tenants, synced from Clerk organizations.';
comment on column public.organizations.id is 'Our id; every tenant table refers to it.';
comment on column public.organizations.clerk_org_id is 'Clerk''s id, org_….';
comment on column public.organizations.name is 'Display name. A change here lasts until the name changes in Clerk.';
comment on column public.organizations.slug is 'Clerk''s slug. Clerk does not guarantee that there is one, nor that it stays unique.';
comment on column public.organizations.subscription_tier is 'Plan, from Clerk''s billing events through app.clerk_plans.';
comment on column public.organizations.subscription_status is 'State of the subscription, from Clerk''s billing events.';
comment on column public.organizations.max_seats is 'Largest number of members that Clerk allows; null if Clerk gave no limit.';
comment on column public.organizations.settings is 'The tenant''s own settings, an object of at most 64 KiB and 64 levels.';
comment on column public.organizations.mfa_required is 'Whether members need the second factor that public.roles asks of their role.';
comment on column public.organizations.suspended_at is 'When it was suspended: since then only administrators reach its data. Null if it is not. ops.suspend_organization() sets it.';
comment on column public.organizations.suspension_reason is 'The reason that the administrator gave. Members cannot read it while the organization is suspended.';
comment on column public.organizations.deleted_at is 'When it was hidden here because Clerk deleted it. The grace period until it is purged counts from then.';
comment on column public.organizations.created_at is 'When the organization was created.';
comment on column public.organizations.updated_at is 'When a value last changed.';
create index organizations_deleted_at_idx on public.organizations (deleted_at) where deleted_at is not null;
alter table public.organizations enable row level security, force row level security;

-- People. Clerk is the source; a person may change their display name, picture and preferences here.
create table public.profiles (
  id uuid primary key default gen_random_uuid(),
  clerk_user_id text not null unique,
  email text check (length(email) <= 320),
  full_name text check (length(full_name) between 1 and 256),
  avatar_url text check (avatar_url ~ '^https?://' and length(avatar_url) <= 2048),
  banned boolean not null default false,
  current_organization_id uuid,
  preferences jsonb not null default '{}' check (
    jsonb_typeof(preferences) = 'object' and octet_length(preferences::text) <= 65536
    and not jsonb_path_exists(preferences, 'strict $.**{64}')
  ),
  last_seen_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
comment on table public.profiles is 'People, synced from Clerk users.';
comment on column public.profiles.id is 'Our id; every reference to a person uses it.';
comment on column public.profiles.clerk_user_id is 'Clerk''s id, user_…: the sub of a session token.';
comment on column public.profiles.email is 'Primary e-mail address; null without one, or while Clerk has not verified it. Not unique: a person who signs up again gets a new id.';
comment on column public.profiles.full_name is 'Display name. A change here lasts until the name changes in Clerk.';
comment on column public.profiles.avatar_url is 'Picture, http or https.';
comment on column public.profiles.banned is 'Whether Clerk has ended the person''s access: banned, or deprovisioned by a directory. Their tokens are then ignored.';
comment on column public.profiles.current_organization_id is 'The organization the person works in; one they belong to.';
comment on column public.profiles.preferences is 'The person''s own settings, an object of at most 64 KiB and 64 levels. Only start_session returns them, and only to their owner.';
comment on column public.profiles.last_seen_at is 'Last start of a session, to the minute.';
comment on column public.profiles.created_at is 'When the person signed up.';
comment on column public.profiles.updated_at is 'When a value that co-members may read last changed.';
create index profiles_current_organization_id_idx on public.profiles (current_organization_id, id);
create index profiles_email_idx on public.profiles (email);
create index profiles_lower_email_idx on public.profiles (lower(email));
alter table public.profiles enable row level security, force row level security;

-- Which person belongs to which tenant, in which role. Only the Clerk sync writes here.
create table public.organization_memberships (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  user_id uuid not null references public.profiles on delete cascade,
  role text not null references public.roles on update restrict on delete restrict,
  clerk_role text,
  clerk_membership_id text unique,
  joined_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (user_id, organization_id)
);
comment on table public.organization_memberships is 'Memberships of people in organizations, synced from Clerk.';
comment on column public.organization_memberships.id is 'Our id.';
comment on column public.organization_memberships.organization_id is 'The organization.';
comment on column public.organization_memberships.user_id is 'The person.';
comment on column public.organization_memberships.role is
'The role that policies use: clerk_role mapped by app.clerk_roles. The person who owns the organization is owner if that role may own it.';
comment on column public.organization_memberships.clerk_role is 'Clerk''s key as received, such as org:admin.';
comment on column public.organization_memberships.clerk_membership_id is
'Clerk''s id, orgmem_…; null while the membership is known from a session token only.';
comment on column public.organization_memberships.joined_at is 'When the person joined.';
comment on column public.organization_memberships.updated_at is 'When a value last changed.';
comment on constraint organization_memberships_clerk_membership_id_key on public.organization_memberships is
'Across tenants: Clerk makes these ids, and only the Clerk sync writes them.';
-- When a person leaves their current organization, current_organization_id becomes null, even if they select it at that moment.
alter table public.profiles add constraint profiles_current_organization_id_fkey
foreign key (current_organization_id, id) references public.organization_memberships (organization_id, user_id)
on delete set null (current_organization_id);
create index organization_memberships_organization_id_idx on public.organization_memberships (organization_id);
create index organization_memberships_role_idx on public.organization_memberships (role);
alter table public.organization_memberships enable row level security, force row level security;

-- Pending invitations, for the team page. Answered and revoked ones are deleted.
create table public.organization_invitations (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  clerk_invitation_id text not null unique,
  email text not null check (length(email) <= 320),
  role text not null references public.roles on update restrict on delete restrict,
  clerk_role text,
  expires_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
comment on table public.organization_invitations is 'Pending invitations, synced from Clerk.';
comment on column public.organization_invitations.id is 'Our id.';
comment on column public.organization_invitations.organization_id is 'The organization that invites.';
comment on column public.organization_invitations.clerk_invitation_id is 'Clerk''s id, orginv_….';
comment on column public.organization_invitations.email is 'The invited e-mail address.';
comment on column public.organization_invitations.role is 'The role that the person will get.';
comment on column public.organization_invitations.clerk_role is 'Clerk''s key as received.';
comment on column public.organization_invitations.expires_at is 'When the invitation expires, if it does.';
comment on column public.organization_invitations.created_at is 'When it was sent.';
comment on column public.organization_invitations.updated_at is 'When a value last changed.';
comment on constraint organization_invitations_clerk_invitation_id_key on public.organization_invitations is
'Across tenants: Clerk makes these ids, and only the Clerk sync writes them.';
create index organization_invitations_organization_id_created_at_idx on public.organization_invitations (organization_id, created_at desc);
create index organization_invitations_role_idx on public.organization_invitations (role);
create index organization_invitations_email_idx on public.organization_invitations (lower(email));
alter table public.organization_invitations enable row level security, force row level security;
