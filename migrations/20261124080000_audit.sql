-- The audit trail says who did what, on whose behalf and from where; and nothing that happens to others rewrites it.

-- References would: a tenant's or a person's deletion would delete or change their entries.
alter table public.audit_logs
-- squawk-ignore ban-drop-constraint
drop constraint audit_logs_organization_id_fkey,
-- squawk-ignore ban-drop-constraint
drop constraint audit_logs_user_id_fkey,
add column actor text check (length(actor) between 1 and 100),
add column impersonator text check (length(impersonator) <= 256),
add column changes jsonb,
add column request_id text check (length(request_id) <= 200);
comment on column public.audit_logs.organization_id is 'The tenant whose data it was; null for what belongs to none. No reference: entries outlive it.';
comment on column public.audit_logs.user_id is 'The person who did it; null for no person, and for an erased one. No reference: entries outlive them.';
comment on column public.audit_logs.actor is 'Who did it when no person did: clerk, service, system or what the service called itself.';
comment on column public.audit_logs.impersonator is 'Clerk''s id of who acted in the person''s name (the token''s act claim).';
comment on column public.audit_logs.resource_id is 'Which one: its primary key.';
comment on column public.audit_logs.metadata is 'What tells a reader which one it was, such as a title; or what the caller of log_audit_event() said.';
comment on column public.audit_logs.changes is 'before and after: the columns that changed; redacted: those that changed and whose values are nobody''s business.';
comment on column public.audit_logs.ip_address is 'Where the request came from, as its x-forwarded-for says first.';
comment on column public.audit_logs.user_agent is 'With what, at most 512 characters.';
comment on column public.audit_logs.request_id is 'The request''s x-request-id.';

-- A page of a tenant's entries is a range of the first index, also when many have one time. The table is empty: nothing wrote it yet.
-- squawk-ignore require-concurrent-index-deletion
drop index public.audit_logs_organization_id_created_at_idx;
-- squawk-ignore require-concurrent-index-deletion
drop index public.audit_logs_action_idx;
-- squawk-ignore require-concurrent-index-creation
create index audit_logs_organization_id_created_at_idx on public.audit_logs (organization_id, created_at desc, id desc);
-- squawk-ignore require-concurrent-index-creation
create index audit_logs_resource_idx on public.audit_logs (resource_type, resource_id, created_at desc);

alter table app.settings add column audit_retention interval not null default '400 days' check (audit_retention >= interval '31 days');
comment on column app.settings.audit_retention is 'How long audit entries are kept: whole months are dropped when all of them is older.';

-- What clients may log themselves. What triggers record has other prefixes, so nobody can forge it.
create table app.audit_prefixes (
  prefix text primary key check (prefix ~ '^[a-z][a-z0-9_]{0,30}\.$')
);
comment on table app.audit_prefixes is 'Prefixes of the actions that clients may log by public.log_audit_event().';
comment on column app.audit_prefixes.prefix is 'Such as report., which allows report.exported.';
alter table app.audit_prefixes enable row level security, force row level security;
insert into app.audit_prefixes (prefix) values ('client.');

-- A closed range of the trail, condensed; each chained to the one before. Whoever holds a copy of a seal can prove what was there.
create table app.audit_seals (
  sequence bigint primary key check (sequence > 0),
  range_start timestamptz not null,
  range_end timestamptz not null check (range_end > range_start),
  entries bigint not null check (entries >= 0),
  digest bytea not null check (length(digest) = 32),
  seal bytea not null unique check (length(seal) = 32),
  sealed_at timestamptz not null default now()
);
comment on table app.audit_seals is 'Seals over closed ranges of public.audit_logs, without a gap. `ballast audit verify` recomputes them.';
comment on column app.audit_seals.sequence is '1, 2, 3 and so on.';
comment on column app.audit_seals.range_start is 'The first moment of the range: the end of the range before.';
comment on column app.audit_seals.range_end is 'The end of the range, which it does not include. No range crosses a month.';
comment on column app.audit_seals.entries is 'How many entries the range has.';
comment on column app.audit_seals.digest is 'SHA-256 over the SHA-256 of each entry, in the order of time and id.';
comment on column app.audit_seals.seal is 'SHA-256 over the seal before, the range, the number of entries and the digest.';
comment on column app.audit_seals.sealed_at is 'When it was made.';
alter table app.audit_seals enable row level security, force row level security;

-- What the law lets us change in the trail, and that we did.
create table app.audit_interventions (
  id bigint generated always as identity primary key,
  kind text not null check (kind in ('erasure', 'retention')),
  range_start timestamptz not null,
  range_end timestamptz not null,
  entries bigint not null check (entries > 0),
  happened_at timestamptz not null default now()
);
comment on table app.audit_interventions is 'Each time that entries were dropped by retention, or lost their person by erasure.';
comment on column app.audit_interventions.id is 'The intervention.';
comment on column app.audit_interventions.kind is 'erasure or retention.';
comment on column app.audit_interventions.range_start is 'The time of the first entry, or the start of the dropped month.';
comment on column app.audit_interventions.range_end is 'The time of the last entry, or the end of the dropped month.';
comment on column app.audit_interventions.entries is 'How many entries.';
comment on column app.audit_interventions.happened_at is 'When.';
alter table app.audit_interventions enable row level security, force row level security;

-- What an entry was before an erasure: enough to prove the seal over it, too little to know the person.
create table app.audit_erasures (
  entry_id uuid not null,
  entry_created_at timestamptz not null,
  original bytea not null check (length(original) = 32),
  remaining bytea not null check (length(remaining) = 32),
  intervention_id bigint not null references app.audit_interventions on delete restrict,
  primary key (entry_id, entry_created_at)
);
comment on table app.audit_erasures is 'Entries that an erasure changed.';
comment on column app.audit_erasures.entry_id is 'The entry.';
comment on column app.audit_erasures.entry_created_at is 'Its time.';
comment on column app.audit_erasures.original is 'SHA-256 of the entry as it was recorded, which the seal is over.';
comment on column app.audit_erasures.remaining is 'SHA-256 of what the erasure left.';
comment on column app.audit_erasures.intervention_id is 'The last erasure of the entry.';
create index audit_erasures_intervention_id_idx on app.audit_erasures (intervention_id);
alter table app.audit_erasures enable row level security, force row level security;
