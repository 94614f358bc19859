-- What Clerk sent: all messages, and the newest state of each object.

-- The inbox. A message is stored here before Clerk gets its answer, whatever its outcome.
create table app.webhook_events (
  message_id text primary key check (length(message_id) between 1 and 256),
  type text not null,
  event jsonb not null check (not jsonb_path_exists(event, 'strict $.**{64}')),
  mentions text[] not null default '{}',
  outcome text not null check (outcome in ('processed', 'stale', 'ignored', 'failed', 'dismissed')),
  error text,
  dismissed_by text check (length(dismissed_by) between 1 and 100),
  dismissal_reason text check (length(dismissal_reason) between 1 and 500),
  attempts integer not null default 1,
  next_attempt_at timestamptz,
  received_at timestamptz not null default now(),
  applied_at timestamptz,
  check ((outcome = 'dismissed') = (dismissed_by is not null))
);
comment on table app.webhook_events is 'Inbox of Clerk''s webhooks: one row per message, stored and applied in one transaction.';
comment on column app.webhook_events.message_id is 'The svix-id header: the same on every delivery of a message.';
comment on column app.webhook_events.type is 'Clerk''s event type, such as user.created.';
comment on column app.webhook_events.event is 'The whole event as received. Personal data.';
comment on column app.webhook_events.mentions is 'The Clerk user ids and the e-mail addresses in the event. Personal data.';
comment on column app.webhook_events.outcome is
'processed; stale: all its data was already recorded or superseded; ignored: we do not handle its type or instance; failed: see error; dismissed: it failed, and an administrator gave it up.';
comment on column app.webhook_events.error is 'Why it failed or was ignored.';
comment on column app.webhook_events.dismissed_by is 'The administrator who dismissed it.';
comment on column app.webhook_events.dismissal_reason is 'Why it was dismissed. An erasure of a person in the event removes them from it.';
comment on column app.webhook_events.attempts is 'How often applying it was attempted.';
comment on column app.webhook_events.next_attempt_at is 'When the job retry-events tries a failed event again.';
comment on column app.webhook_events.received_at is 'When the first delivery arrived.';
comment on column app.webhook_events.applied_at is 'When it got its outcome; null while failed.';
create index webhook_events_next_attempt_at_idx on app.webhook_events (next_attempt_at) where outcome = 'failed';
create index webhook_events_received_at_idx on app.webhook_events (received_at);
create index webhook_events_applied_at_idx on app.webhook_events (applied_at);
create index webhook_events_mentions_idx on app.webhook_events using gin (mentions);
create index webhook_events_user_id_idx on app.webhook_events using hash ((event -> 'data' ->> 'id')) where type like 'user.%';
alter table app.webhook_events enable row level security, force row level security;

-- Attempts to apply a message that ended with their transaction, so that they could record nothing.
create table app.event_failures (
  message_id text primary key check (length(message_id) between 1 and 256),
  error text not null check (error ~ '^[0-9A-Z]{5}$'),
  failures integer not null,
  failed_at timestamptz not null default now()
);
comment on table app.event_failures is 'Clerk''s messages whose last attempts failed together with their transactions. Applying a message deletes its row.';
comment on column app.event_failures.message_id is 'The svix-id header.';
comment on column app.event_failures.error is 'The SQLSTATE.';
comment on column app.event_failures.failures is 'How many attempts in a row failed with this SQLSTATE. After two, the next delivery is stored without being applied.';
comment on column app.event_failures.failed_at is 'When the last one failed.';
alter table app.event_failures enable row level security, force row level security;

-- Deliveries that the service refused. Strangers can cause them, so they are only counted: a few rows an hour, written at most once a
-- minute by each process.
create table app.refused_deliveries (
  sender text not null check (sender in ('clerk', 'resend')),
  reason text not null check (reason in ('signature', 'timestamp')),
  hour timestamptz not null,
  deliveries bigint not null check (deliveries > 0),
  skew interval,
  last_at timestamptz not null default now(),
  primary key (hour, sender, reason)
);
comment on table app.refused_deliveries is 'How many webhook deliveries the service refused, by hour.';
comment on column app.refused_deliveries.sender is 'Whose webhook route it was: clerk or resend.';
comment on column app.refused_deliveries.reason is
'signature: none of our secrets signed it. timestamp: one of our secrets did, but more than 5 minutes before or after the service''s time.';
comment on column app.refused_deliveries.hour is 'The beginning of the hour.';
comment on column app.refused_deliveries.deliveries is 'How many were refused.';
comment on column app.refused_deliveries.skew is 'For timestamp: the service''s clock minus the last delivery''s timestamp.';
comment on column app.refused_deliveries.last_at is 'When the last of them was recorded.';
alter table app.refused_deliveries enable row level security, force row level security;

-- Orders all writes to one object, compared from left to right. The same events in any order leave the greatest stamp.
create type app.clerk_stamp as (
  is_real boolean,
  source_updated_at timestamptz,
  is_own boolean,
  event_at timestamptz,
  fingerprint bytea
);
comment on type app.clerk_stamp is
'Compared from left to right. is_real: a whole object, not a partial copy or a stub. source_updated_at: the object''s updated_at. is_own: the object''s own event, not a copy in another one. event_at: the event''s time. fingerprint: a hash of the fields.';

-- The newest write per Clerk object. The rows in public are computed from these and from the tombstones.
create table app.clerk_records (
  kind text not null,
  clerk_id text not null,
  organization_id text,
  user_id text,
  address_hash text,
  stamp app.clerk_stamp not null,
  fields jsonb not null check (not jsonb_path_exists(fields, 'strict $.**{64}')),
  primary key (kind, clerk_id)
);
comment on table app.clerk_records is 'Last writer wins, per Clerk object: the fields we use and the stamp they came with.';
comment on column app.clerk_records.kind is 'user, organization, membership, invitation, role, permission, subscription or subscription_item.';
comment on column app.clerk_records.clerk_id is 'Clerk''s id. A membership known from a session token only: session:ORGANIZATION:USER.';
comment on column app.clerk_records.organization_id is 'Clerk''s id of the organization the object belongs to; null until an event names the payer of a subscription item.';
comment on column app.clerk_records.user_id is 'Clerk''s id of the person a membership belongs to.';
comment on column app.clerk_records.address_hash is
'For an invitation: app.person_hash() of its address in lower case. An erasure that has only the hash finds it by this.';
comment on column app.clerk_records.stamp is 'Orders the writes; see app.clerk_stamp.';
comment on column app.clerk_records.fields is 'The fields we use. Personal data for users and invitations.';
create index clerk_records_organization_id_idx on app.clerk_records (organization_id, kind, user_id) where organization_id is not null;
create index clerk_records_user_id_idx on app.clerk_records (user_id) where user_id is not null;
create index clerk_records_created_by_idx on app.clerk_records ((fields ->> 'created_by')) where kind = 'organization';
create index clerk_records_email_idx on app.clerk_records (lower(fields ->> 'email')) where kind = 'invitation';
create index clerk_records_undescribed_idx on app.clerk_records (clerk_id) where kind = 'user' and (stamp).event_at = '-infinity';
create index clerk_records_address_hash_idx on app.clerk_records (address_hash) where address_hash is not null;
alter table app.clerk_records enable row level security, force row level security;

-- What Clerk deleted. Clerk never reuses an id, so a tombstone stays and a late event changes nothing.
create table app.clerk_tombstones (
  kind text not null,
  clerk_id text not null,
  organization_id text,
  user_id text,
  began_at timestamptz,
  deleted_at timestamptz not null,
  primary key (kind, clerk_id)
);
comment on table app.clerk_tombstones is 'Clerk objects that were deleted; rows are only ever added or completed.';
comment on column app.clerk_tombstones.kind is 'As in app.clerk_records.';
comment on column app.clerk_tombstones.clerk_id is 'Clerk''s id; for a user its hash, from app.person_hash().';
comment on column app.clerk_tombstones.organization_id is 'For a membership: its organization, once an event has named it.';
comment on column app.clerk_tombstones.user_id is 'For a membership: its person, once an event has named them.';
comment on column app.clerk_tombstones.began_at is 'For a membership: when it began.';
comment on column app.clerk_tombstones.deleted_at is 'When Clerk deleted it: the newest time received; infinity if an event had no usable time.';
create index clerk_tombstones_pair_idx on app.clerk_tombstones (organization_id, user_id) where organization_id is not null;
create index clerk_tombstones_user_id_idx on app.clerk_tombstones (user_id) where user_id is not null;
alter table app.clerk_tombstones enable row level security, force row level security;

-- Clerk's customers choose their own role keys. A key that is not listed here maps to the role with the lowest rank.
create table app.clerk_roles (
  key text primary key,
  role text not null references public.roles on update restrict on delete restrict
);
comment on table app.clerk_roles is 'Maps Clerk role keys to roles. A change applies to existing members at once.';
comment on column app.clerk_roles.key is 'Clerk''s role key, such as org:admin.';
comment on column app.clerk_roles.role is 'Our role.';
create index clerk_roles_role_idx on app.clerk_roles (role);
alter table app.clerk_roles enable row level security, force row level security;
insert into app.clerk_roles (key, role) values
('org:owner', 'owner'), ('org:admin', 'admin'), ('org:member', 'member'), ('org:viewer', 'viewer'),
('admin', 'admin'), ('basic_member', 'member'), ('guest_member', 'viewer');

-- Who owns an organization, once an administrator has decided it. Until then it is the person who created it in Clerk.
create table app.ownerships (
  organization_id uuid primary key references public.organizations on delete cascade,
  owner_id uuid references public.profiles on delete set null,
  transferred_at timestamptz not null default now()
);
comment on table app.ownerships is
'The owner of each organization whose ownership was transferred: ops.transfer_ownership() writes it, and no event from Clerk changes it.';
comment on column app.ownerships.organization_id is 'The organization.';
comment on column app.ownerships.owner_id is
'The person who owns it. Null once they are erased: the ownership does not return to the person who created the organization.';
comment on column app.ownerships.transferred_at is 'When the ownership was last transferred.';
create index ownerships_owner_id_idx on app.ownerships (owner_id);
alter table app.ownerships enable row level security, force row level security;

-- Clerk's customers choose their own plan slugs too. A slug that is not listed here counts as free; ops.clerk_plans shows who pays for it.
create table app.clerk_plans (
  slug text primary key,
  tier text not null check (tier in ('free', 'starter', 'pro', 'enterprise'))
);
comment on table app.clerk_plans is 'Maps Clerk billing plans to tiers. A change applies at once.';
comment on column app.clerk_plans.slug is 'The plan''s slug in Clerk.';
comment on column app.clerk_plans.tier is 'Our tier.';
alter table app.clerk_plans enable row level security, force row level security;
insert into app.clerk_plans (slug, tier)
select tier || suffix, tier
from unnest(array['free', 'starter', 'pro', 'enterprise']) as tier, unnest(array['', '-plan', '_plan', '_org']) as suffix;

-- Where an interrupted `ballast clerk backfill` resumes. Clerk lists objects by creation time, so that time is the position:
-- it stays right when earlier objects are deleted and, unlike an id, identifies no person.
create table app.clerk_backfills (
  kind text primary key check (kind in ('user', 'organization', 'membership', 'invitation', 'role', 'permission')),
  instance_id text,
  next_offset integer not null check (next_offset > 0),
  last_created_ms bigint not null,
  updated_at timestamptz not null default now()
);
comment on table app.clerk_backfills is 'Position of each unfinished backfill, one row per kind. A finished backfill leaves no row.';
comment on column app.clerk_backfills.kind is 'As in app.clerk_records.';
comment on column app.clerk_backfills.instance_id is 'The Clerk instance that is listed.';
comment on column app.clerk_backfills.next_offset is 'Number of listed objects up to the last one that was merged.';
comment on column app.clerk_backfills.last_created_ms is 'When Clerk created that object, in milliseconds since 1970.';
comment on column app.clerk_backfills.updated_at is 'When it was merged.';
alter table app.clerk_backfills enable row level security, force row level security;
