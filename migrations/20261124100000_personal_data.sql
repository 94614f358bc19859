-- The rights of the people in the data: one registry says where they are, and drives export, erasure, retention and the privacy page.

-- Everything a person can be found by.
create type app.person as (
  id uuid,
  clerk_user_id text,
  emails text[] -- noqa: LT01
);
comment on type app.person is 'A person: our id, Clerk''s id, and their e-mail addresses in lower case, without those that another account has too.';

-- Where the data of people are: a row for each column that points at a person. The SQL in it is ours, run with t for the table and
-- person for an app.person.
create table app.personal_data (
  relation text not null,
  path text not null,
  subject text,
  domain text unique,
  exported text[],
  ordered_by text[],
  made_at text,
  erasure text not null check (erasure in ('delete', 'set null', 'pseudonymise', 'keep', 'none')),
  replacements text,
  erased_by text,
  category text,
  data text,
  purpose text not null,
  lawful_basis text,
  kept_for text,
  expired text,
  retention text,
  position integer generated always as identity,
  primary key (relation, path),
  check (erasure = 'none' or (category, data, lawful_basis, retention) is not null),
  check (domain is null or (subject, exported, ordered_by) is not null),
  check (erasure in ('keep', 'none') or subject is not null),
  check (erasure <> 'pseudonymise' or replacements is not null or erased_by is not null),
  check (replacements is null or erased_by is null),
  check (expired is null or kept_for is not null)
);
comment on table app.personal_data is 'Registry of personal data, declared in functions/99_personal_data.sql. Every table of ours is in it.';
comment on column app.personal_data.relation is 'The table, with its schema.';
comment on column app.personal_data.path is 'The column that points at a person or holds what is about one. Empty: the table has no personal data.';
comment on column app.personal_data.subject is 'SQL condition: the row t is of the person.';
comment on column app.personal_data.domain is 'Its name in an export; null when it is not exported, and purpose says why.';
comment on column app.personal_data.exported is 'SQL expressions of what an export says of a row.';
comment on column app.personal_data.ordered_by is 'Columns that an export reads it by: a key.';
comment on column app.personal_data.made_at is 'SQL expression of when a row was made: an export leaves out what is younger than itself.';
comment on column app.personal_data.erasure is 'What an erasure does: delete, set null, pseudonymise, keep; or none, where nothing is personal.';
comment on column app.personal_data.replacements is 'For pseudonymise: the SET list. It ends that subject holds.';
comment on column app.personal_data.erased_by is 'A function (person app.person, batch integer) that erases a batch and returns how many rows; null: what erasure says is done as it is.';
comment on column app.personal_data.category is 'Heading on the privacy page.';
comment on column app.personal_data.data is 'Which data, in words for the privacy page.';
comment on column app.personal_data.purpose is 'What for. For erasure none or keep: why.';
comment on column app.personal_data.lawful_basis is 'The article of the GDPR that allows it.';
comment on column app.personal_data.kept_for is 'SQL expression of the interval after which it goes.';
comment on column app.personal_data.expired is 'SQL condition: the row t is to be purged, when $1 is that long ago. Null: something else purges it.';
comment on column app.personal_data.retention is 'How long, in words that follow kept_for.';
comment on column app.personal_data.position is 'The order of declaration: the order of export and erasure.';
alter table app.personal_data enable row level security, force row level security;

-- Hashes of the erased, so that a late event or an old backup does not bring them back. The salt is the installation's, for good.
alter table app.settings
-- squawk-ignore adding-field-with-default
add column erasure_salt bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
check (length(erasure_salt) >= 32);
comment on column app.settings.erasure_salt is 'Salt of the hashes of erased people. Never change it: they could come back.';

-- Who asked for their data, and when: one export an hour.
create table app.exports (
  id uuid primary key default gen_random_uuid(),
  person_id uuid not null references public.profiles on delete cascade,
  requested_by text not null check (requested_by in ('person', 'administrator')),
  outcome text not null default 'running' check (outcome in ('running', 'finished', 'failed')),
  started_at timestamptz not null default now(),
  touched_at timestamptz not null default now()
);
comment on table app.exports is 'Exports of personal data.';
comment on column app.exports.id is 'The export.';
comment on column app.exports.person_id is 'Whose data.';
comment on column app.exports.requested_by is 'person or administrator.';
comment on column app.exports.outcome is 'running, finished or failed. One that runs and was not touched for a while has failed too.';
comment on column app.exports.started_at is 'When it began: what was made later is not in it.';
comment on column app.exports.touched_at is 'When its last page was read.';
create index exports_person_id_started_at_idx on app.exports (person_id, started_at desc);
create index exports_started_at_idx on app.exports (started_at);
alter table app.exports enable row level security, force row level security;

-- Each erasure: while it runs with whom it is about, afterwards with nothing but a hash.
create table app.erasure_log (
  receipt uuid primary key default gen_random_uuid(),
  subject_hash text not null unique check (subject_hash ~ '^[0-9a-f]{64}$'),
  person app.person,
  state text not null default 'running' check (state in ('running', 'erased', 'complete')),
  requested_by text not null check (requested_by in ('person', 'clerk', 'administrator', 'restore')),
  counts jsonb not null default '{}',
  requested_at timestamptz not null default now(),
  settled_at timestamptz,
  erased_at timestamptz,
  clerk_deleted_at timestamptz,
  stored_at timestamptz,
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  error text,
  check ((state = 'complete') <= (person is null))
);
comment on table app.erasure_log is 'Erasures of people, kept for good as the proof that each was done.';
comment on column app.erasure_log.receipt is 'What the person gets: whoever knows it may read the state, without signing in.';
comment on column app.erasure_log.subject_hash is 'SHA-256 over app.settings.erasure_salt and Clerk''s id, in hexadecimal.';
comment on column app.erasure_log.person is 'Whom to erase; when only Clerk has to follow, Clerk''s id alone; null when all is done.';
comment on column app.erasure_log.state is 'running; erased: nothing is left here; complete: nor at Clerk, and the ledger has it.';
comment on column app.erasure_log.requested_by is 'person, clerk (a webhook), administrator, or restore (of a backup from before).';
comment on column app.erasure_log.counts is 'Rows that were erased or changed, by table.';
comment on column app.erasure_log.requested_at is 'When it was asked for. The person is gone for everybody else from then on.';
comment on column app.erasure_log.settled_at is 'When a step found nothing more: what began before may still write.';
comment on column app.erasure_log.erased_at is 'When nothing was left here.';
comment on column app.erasure_log.clerk_deleted_at is 'When Clerk had deleted the account, or told us that it did.';
comment on column app.erasure_log.stored_at is 'When the entry was written beside the backups.';
comment on column app.erasure_log.attempts is 'How often Clerk or the store failed since the last success.';
comment on column app.erasure_log.next_attempt_at is 'When it is due again.';
comment on column app.erasure_log.error is 'What failed last: a code, no data.';
create index erasure_log_next_attempt_at_idx on app.erasure_log (next_attempt_at) where state <> 'complete';
alter table app.erasure_log enable row level security, force row level security;

-- Who changed their name here: the service tells Clerk, or Clerk's next change of the person would bring the old name back.
create table app.name_changes (
  person_id uuid primary key references public.profiles on delete cascade,
  changed_at timestamptz not null default now(),
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  error text
);
comment on table app.name_changes is 'Names that Clerk has yet to be told of; the name is in the profile.';
comment on column app.name_changes.person_id is 'Whose.';
comment on column app.name_changes.changed_at is 'When it was last changed.';
comment on column app.name_changes.attempts is 'How often Clerk was tried.';
comment on column app.name_changes.next_attempt_at is 'When it is due again. Infinity: Clerk refuses it.';
comment on column app.name_changes.error is 'Why Clerk did not take it: a code.';
create index name_changes_next_attempt_at_idx on app.name_changes (next_attempt_at);
alter table app.name_changes enable row level security, force row level security;

-- Whom an audit entry is about, besides who did it: export and erasure find it by that.
alter table public.audit_logs add column subject_ids uuid[];
comment on column public.audit_logs.subject_ids is 'People the entry is about or names, other than user_id; null for none.';
-- squawk-ignore require-concurrent-index-creation
create index audit_logs_subject_ids_idx on public.audit_logs using gin (subject_ids) where subject_ids is not null;
-- squawk-ignore require-concurrent-index-creation
create index audit_logs_impersonator_idx on public.audit_logs (impersonator) where impersonator is not null;

-- app.erase_audit_entries() does more.
-- squawk-ignore ban-drop-function
drop function if exists app.erase_audit_actor(uuid, integer);

select set_config('app.audit_intervention', 'on', true);
with texts as (
  select
    a.id, a.created_at, a.user_id,
    array[
      a.metadata ->> 'user_id', a.changes -> 'before' ->> 'user_id', a.changes -> 'after' ->> 'user_id',
      a.changes -> 'before' ->> 'created_by', a.changes -> 'after' ->> 'created_by',
      case a.resource_type when 'profile' then a.resource_id end
    ] as ids
  from public.audit_logs as a
),

named as (
  select
    t.id, t.created_at,
    array(
      select distinct i.value::uuid from unnest(t.ids) as i (value)
      where i.value ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' and i.value::uuid is distinct from t.user_id
    ) as people
  from texts as t
)

update public.audit_logs as a set subject_ids = n.people
from named as n
where a.id = n.id and a.created_at = n.created_at and n.people <> '{}';
select set_config('app.audit_intervention', '', true);

-- Whom a message is about: the same for the inbox.
alter table app.webhook_events add column mentions text[] not null default '{}';
comment on column app.webhook_events.mentions is 'Clerk''s ids of users and the e-mail addresses in the event. Personal data.';
-- squawk-ignore require-concurrent-index-creation
create index webhook_events_mentions_idx on app.webhook_events using gin (mentions);
-- squawk-ignore require-concurrent-index-creation
create index webhook_events_applied_at_idx on app.webhook_events (applied_at);
update app.webhook_events as e
set mentions = array(
  select distinct case when m.value like '%@%' then lower(m.value) else m.value end
  from (select v #>> '{}' as value from jsonb_path_query(e.event, 'strict $.** ? (@ like_regex "^user_|@")') as v) as m
  where length(m.value) <= 320
);

-- squawk-ignore require-concurrent-index-creation
create index profiles_lower_email_idx on public.profiles (lower(email));
-- squawk-ignore require-concurrent-index-creation
create index organization_invitations_email_idx on public.organization_invitations (lower(email));
-- squawk-ignore require-concurrent-index-creation
create index clerk_records_user_id_idx on app.clerk_records (user_id) where user_id is not null;
-- squawk-ignore require-concurrent-index-creation
create index clerk_records_created_by_idx on app.clerk_records ((fields ->> 'created_by')) where kind = 'organization';
-- squawk-ignore require-concurrent-index-creation
create index clerk_records_email_idx on app.clerk_records (lower(fields ->> 'email')) where kind = 'invitation';
-- squawk-ignore require-concurrent-index-creation
create index clerk_tombstones_user_id_idx on app.clerk_tombstones (user_id) where user_id is not null;

-- Who was deleted before has yet to be erased: of them there may be messages, audit entries and memberships.
with profiles as (
  select
    a.changes -> 'before' ->> 'clerk_user_id' as clerk_id,
    min(a.resource_id)::uuid as id
  from public.audit_logs as a
  where a.resource_type = 'profile' and a.action = 'profile.deleted'
  group by a.changes -> 'before' ->> 'clerk_user_id'
),

deleted as (
  select
    t.clerk_id,
    o.id,
    encode(sha256(s.erasure_salt || convert_to(t.clerk_id, 'UTF8')), 'hex') as hash,
    (
      select coalesce(array_agg(distinct lower(m.value #>> '{}')), '{}')
      from app.webhook_events as e
      cross join jsonb_path_query(e.event, '$.data.email_addresses[*] ? (@.verification.status == "verified").email_address') as m (value)
      left join public.profiles as p on lower(m.value #>> '{}') = lower(p.email)
      where
        e.mentions @> array[t.clerk_id] and e.type like 'user.%' and e.event -> 'data' ->> 'id' = t.clerk_id
        and p.id is null
    ) as emails
  from app.clerk_tombstones as t
  cross join app.settings as s
  left join profiles as o on t.clerk_id = o.clerk_id
  where t.kind = 'user'
)

insert into app.erasure_log (subject_hash, person, requested_by)
select d.hash, row(d.id, d.clerk_id, d.emails)::app.person, 'clerk' from deleted as d;
update app.clerk_tombstones as t
set clerk_id = encode(sha256(s.erasure_salt || convert_to(t.clerk_id, 'UTF8')), 'hex')
from app.settings as s
where t.kind = 'user';
comment on column app.clerk_tombstones.clerk_id is 'Clerk''s id; of a user its hash, as app.person_hash() makes it.';
