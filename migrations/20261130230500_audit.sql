-- The audit trail: the actor, impersonator and origin of each write. Deletions in other tables do not change it.

-- Partitioned by month so that retention drops whole partitions; the default partition ensures that no entry is ever refused.
-- No foreign keys: deleting a tenant or a person would delete or change their entries.
create table public.audit_logs (
  id uuid not null default gen_random_uuid(),
  organization_id uuid,
  user_id uuid,
  actor text check (length(actor) between 1 and 100),
  impersonator text check (length(impersonator) <= 256),
  action text not null,
  resource_type text not null,
  resource_id text,
  subject_ids uuid[],
  mentions bigint[],
  changes jsonb check (not jsonb_path_exists(changes, 'strict $.**{66}')),
  metadata jsonb not null default '{}' check (not jsonb_path_exists(metadata, 'strict $.**{65}')),
  ip_address inet,
  user_agent text,
  request_id text check (length(request_id) <= 200),
  created_at timestamptz not null default now(),
  primary key (id, created_at)
) partition by range (created_at);
comment on table public.audit_logs is 'Who did what, when and from where. Append-only.';
comment on column public.audit_logs.id is 'The entry''s id.';
comment on column public.audit_logs.organization_id is 'The tenant whose data changed; null if none. No foreign key: entries outlive it.';
comment on column public.audit_logs.user_id is
'The person who did it; null if it was not a person, and for an erased one. No foreign key: entries outlive them.';
comment on column public.audit_logs.actor is 'Who did it if it was not a person: clerk, service, system or the name that the service gave itself.';
comment on column public.audit_logs.impersonator is 'Clerk''s id of the person who acted as user_id (the token''s act claim).';
comment on column public.audit_logs.action is 'What was done, such as project.updated.';
comment on column public.audit_logs.resource_type is 'The kind of object it was done to.';
comment on column public.audit_logs.resource_id is 'The object''s primary key.';
comment on column public.audit_logs.subject_ids is
'People that the changed row refers to, other than user_id; null if there are none. Not readable through the API.';
comment on column public.audit_logs.mentions is
'Salted hashes of the ids and addresses in a logged event, other than those of user_id; null if there are none. Not readable through the API.';
comment on column public.audit_logs.changes is
'before and after: the columns that changed; redacted: names of changed columns whose values are not recorded.';
comment on column public.audit_logs.metadata is
'Values by which a reader recognizes the object, such as a title; or the p_metadata passed to log_audit_event().';
comment on column public.audit_logs.ip_address is 'Where the request came from: the first address in x-forwarded-for.';
comment on column public.audit_logs.user_agent is 'The request''s User-Agent, at most 512 characters.';
comment on column public.audit_logs.request_id is 'The request''s x-request-id.';
comment on column public.audit_logs.created_at is 'When it was done.';
-- A page of a tenant's entries is a range of this index, even if many entries have the same time.
create index audit_logs_organization_id_created_at_idx on public.audit_logs (organization_id, created_at desc, id desc);
create index audit_logs_user_id_created_at_idx on public.audit_logs (user_id, created_at desc);
create index audit_logs_resource_idx on public.audit_logs (resource_type, resource_id, created_at desc);
-- Export and erasure find a person's entries by these three.
create index audit_logs_subject_ids_idx on public.audit_logs using gin (subject_ids) where subject_ids is not null;
create index audit_logs_mentions_idx on public.audit_logs using gin (mentions) where mentions is not null;
create index audit_logs_impersonator_idx on public.audit_logs (impersonator) where impersonator is not null;
alter table public.audit_logs enable row level security, force row level security;

create table app.audit_logs_default partition of public.audit_logs default;
alter table app.audit_logs_default enable row level security, force row level security;

-- Actions that clients may log themselves. Triggers use other prefixes, so a client cannot forge their entries.
create table app.audit_prefixes (
  prefix text primary key check (prefix ~ '^[a-z][a-z0-9_]{0,30}\.$')
);
comment on table app.audit_prefixes is 'Prefixes of the actions that clients may log with public.log_audit_event().';
comment on column app.audit_prefixes.prefix is 'Such as report., which allows report.exported.';
alter table app.audit_prefixes enable row level security, force row level security;
insert into app.audit_prefixes (prefix) values ('client.');

-- A hash over a closed range of the trail, chained to the seal before it. A copy of a seal proves what the trail contained.
create table app.audit_seals (
  sequence bigint primary key check (sequence > 0),
  range_start timestamptz not null,
  range_end timestamptz not null check (range_end > range_start),
  entries bigint not null check (entries >= 0),
  digest bytea not null check (length(digest) = 32),
  interventions bytea not null check (length(interventions) = 32),
  retention interval not null,
  seal bytea not null unique check (length(seal) = 32),
  sealed_at timestamptz not null default now()
);
comment on table app.audit_seals is 'Seals over closed, gapless ranges of public.audit_logs. `ballast audit verify` recomputes them.';
comment on column app.audit_seals.sequence is '1, 2, 3 and so on.';
comment on column app.audit_seals.range_start is 'The first moment of the range: the end of the previous range.';
comment on column app.audit_seals.range_end is 'The end of the range, exclusive. No range crosses a month.';
comment on column app.audit_seals.entries is 'Number of entries in the range.';
comment on column app.audit_seals.digest is 'SHA-256 over the SHA-256 of each entry, ordered by time and id.';
comment on column app.audit_seals.interventions is 'SHA-256 over the erasures and drops of months since the previous seal.';
comment on column app.audit_seals.retention is 'app.settings.audit_retention at that time.';
comment on column app.audit_seals.seal is 'SHA-256 over the previous seal and the columns from range_start to retention.';
comment on column app.audit_seals.sealed_at is 'When it was created.';
alter table app.audit_seals enable row level security, force row level security;

-- The law requires a few changes to the trail. Each is planned here, and carried out after its receipt was written outside the database.
-- No foreign key to app.erasure_log: the record outlives it.
create table app.audit_interventions (
  id uuid primary key default gen_random_uuid(),
  kind text not null check (kind in ('erasure', 'retention')),
  erasure uuid,
  range_start timestamptz not null,
  range_end timestamptz not null,
  entries bigint not null check (entries > 0),
  retention interval not null,
  contents bytea not null check (length(contents) = 32),
  planned_at timestamptz not null default now(),
  stored_at timestamptz,
  happened_at timestamptz,
  sealed_by bigint references app.audit_seals on delete restrict,
  check ((kind = 'erasure') = (erasure is not null))
);
comment on table app.audit_interventions is 'Each drop of a month by retention, and each removal of a person from entries by an erasure: planned, then carried out.';
comment on column app.audit_interventions.id is 'The intervention.';
comment on column app.audit_interventions.kind is 'erasure or retention.';
comment on column app.audit_interventions.erasure is 'The receipt of the erasure.';
comment on column app.audit_interventions.range_start is 'The time of the first entry, or the start of the dropped month.';
comment on column app.audit_interventions.range_end is 'The time of the last entry, or the end of the dropped month.';
comment on column app.audit_interventions.entries is 'Number of entries.';
comment on column app.audit_interventions.retention is 'app.settings.audit_retention when it was planned.';
comment on column app.audit_interventions.contents is
'SHA-256 over the rows of app.audit_erasures, or over the seals of the dropped month.';
comment on column app.audit_interventions.planned_at is 'When it was planned.';
comment on column app.audit_interventions.stored_at is 'When its receipt was stored next to the backups; null until then, or if no store is configured.';
comment on column app.audit_interventions.happened_at is 'When it was carried out; null until then.';
comment on column app.audit_interventions.sealed_by is 'The seal that covers it; null until the next seal.';
create index audit_interventions_sealed_by_idx on app.audit_interventions (sealed_by);
-- One plan at a time for each erasure, and one for retention.
create unique index audit_interventions_planned_idx on app.audit_interventions (coalesce(erasure, '00000000-0000-0000-0000-000000000000'))
where happened_at is null;
alter table app.audit_interventions enable row level security, force row level security;

-- Hashes of an entry before and after an erasure: enough to prove the seal over it, too little to identify the person.
create table app.audit_erasures (
  entry_id uuid not null,
  entry_created_at timestamptz not null,
  intervention_id uuid not null references app.audit_interventions on delete cascade,
  original bytea not null check (length(original) = 32),
  remaining bytea not null check (length(remaining) = 32),
  primary key (entry_id, entry_created_at, intervention_id)
);
comment on table app.audit_erasures is 'Entries that an erasure changes.';
comment on column app.audit_erasures.entry_id is 'The entry.';
comment on column app.audit_erasures.entry_created_at is 'The entry''s time.';
comment on column app.audit_erasures.intervention_id is 'The erasure. An entry about two people may be changed by two.';
comment on column app.audit_erasures.original is 'SHA-256 of the entry before the erasure.';
comment on column app.audit_erasures.remaining is 'SHA-256 of the entry after the erasure.';
create index audit_erasures_intervention_id_idx on app.audit_erasures (intervention_id);
alter table app.audit_erasures enable row level security, force row level security;

-- No two backends write the same row, so no write waits for another one here.
create table app.lost_records (
  kind text not null check (kind in ('audit', 'broadcast')),
  relation text not null,
  error text not null,
  day date not null,
  backend integer not null,
  lost bigint not null check (lost >= 0),
  last_at timestamptz not null default now(),
  primary key (kind, relation, error, day, backend)
);
comment on table app.lost_records is 'Rows that were written without their audit entry or broadcast. ops.audit_health and ops.realtime_health report them.';
comment on column app.lost_records.kind is 'What was lost: audit (the entries) or broadcast.';
comment on column app.lost_records.relation is 'The table that was written to.';
comment on column app.lost_records.error is 'The SQLSTATE of the error.';
comment on column app.lost_records.day is 'The day, in UTC.';
comment on column app.lost_records.backend is 'The process that wrote.';
comment on column app.lost_records.lost is 'Number of rows.';
comment on column app.lost_records.last_at is 'When a row was last lost.';
alter table app.lost_records enable row level security, force row level security;
