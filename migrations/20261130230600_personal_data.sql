-- The rights of the people in the data. One registry lists all personal data; export, erasure, retention and the privacy page use it.

-- All identifiers by which a person's data are found.
create type app.person as (
  id uuid,
  clerk_user_id text,
  emails text[] -- noqa: LT01
);
comment on type app.person is
'A person: our id, Clerk''s id, and their e-mail addresses in lower case, without those that another account also has.';

-- A row for each column that refers to a person. Its SQL comes from functions/ only; it runs with t for the table and person for an
-- app.person.
create table app.personal_data (
  relation text not null,
  path text not null,
  subject text,
  erasure_subject text,
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
  retention_period text,
  expired text,
  retention text,
  position integer generated always as identity,
  primary key (relation, path),
  check (erasure = 'none' or (category, data, lawful_basis, retention) is not null),
  check (domain is null or (subject, exported, ordered_by) is not null),
  check (erasure in ('keep', 'none') or subject is not null),
  check (erasure <> 'pseudonymise' or replacements is not null or erased_by is not null),
  check (replacements is null or erased_by is null),
  check (expired is null or retention_period is not null)
);
comment on table app.personal_data is 'Registry of personal data, declared in functions/. Every table of ours is in it.';
comment on column app.personal_data.relation is 'The table, with its schema.';
comment on column app.personal_data.path is 'The column that refers to a person or holds data about one. Empty: the table has no personal data.';
comment on column app.personal_data.subject is 'SQL condition: the row t is about the person.';
comment on column app.personal_data.erasure_subject is 'Like subject, for an erasure only. Null: subject.';
comment on column app.personal_data.domain is 'Its name in an export; null if it is not exported, and purpose says why.';
comment on column app.personal_data.exported is 'SQL expressions: what an export contains of a row.';
comment on column app.personal_data.ordered_by is 'The key columns by which an export pages through it.';
comment on column app.personal_data.made_at is 'SQL expression: when a row was created. An export leaves out rows younger than itself.';
comment on column app.personal_data.erasure is 'What an erasure does: delete, set null, pseudonymise, keep; or none if nothing is personal.';
comment on column app.personal_data.replacements is 'For pseudonymise: the SET list. Afterwards subject must be false for the row.';
comment on column app.personal_data.erased_by is
'A function (person app.person, keys jsonb) that erases the rows with these primary keys, such as [[id], [id]], and returns how many; null: the generic SQL for erasure.';
comment on column app.personal_data.category is 'Heading on the privacy page.';
comment on column app.personal_data.data is 'Which data, in the privacy page''s words.';
comment on column app.personal_data.purpose is 'The purpose of keeping it. For erasure none or keep: the reason.';
comment on column app.personal_data.lawful_basis is 'The article of the GDPR that allows it.';
comment on column app.personal_data.retention_period is 'SQL expression: the interval after which it is deleted.';
comment on column app.personal_data.expired is
'SQL condition: the row t is to be purged, with $1 the moment retention_period ago. Null: it is purged by other means.';
comment on column app.personal_data.retention is 'How long, in words that follow retention_period.';
comment on column app.personal_data.position is 'The order of declaration, which is the order of export and erasure.';
alter table app.personal_data enable row level security, force row level security;

-- Exports by person and time, to allow one an hour.
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
comment on column app.exports.person_id is 'The person whose data are exported.';
comment on column app.exports.requested_by is 'person or administrator.';
comment on column app.exports.outcome is 'running, finished or failed. A running export that was not touched for a while has failed too.';
comment on column app.exports.started_at is 'When it began: rows created later are not in it.';
comment on column app.exports.touched_at is 'When its last page was read.';
create index exports_person_id_started_at_idx on app.exports (person_id, started_at desc);
create index exports_started_at_idx on app.exports (started_at);
alter table app.exports enable row level security, force row level security;

-- Each erasure. While it runs, the row contains the person. Afterwards it has only a hash, by which a late event or a restored backup is
-- recognized and does not bring the person back.
create table app.erasure_log (
  receipt uuid primary key default gen_random_uuid(),
  subject_hash text not null unique check (subject_hash ~ '^[0-9a-f]{64}$'),
  person app.person,
  state text not null default 'running' check (state in ('running', 'erased', 'complete')),
  requested_by text not null check (requested_by in ('person', 'clerk', 'administrator', 'restore')),
  counts jsonb not null default '{}' check (not jsonb_path_exists(counts, 'strict $.**{64}')),
  requested_at timestamptz not null default now(),
  settled_at timestamptz,
  erased_at timestamptz,
  clerk_deleted_at timestamptz,
  stored_at timestamptz,
  next_rule integer,
  found bigint not null default 0,
  was_quiet boolean not null default false,
  quiet_passes integer not null default 0,
  batches jsonb not null default '{}' check (not jsonb_path_exists(batches, 'strict $.**{64}')),
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  error text,
  check ((state = 'complete') <= (person is null))
);
comment on table app.erasure_log is 'Erasures of people, kept forever as proof that each was done.';
comment on column app.erasure_log.receipt is 'Given to the person: its holder may read the state without signing in.';
comment on column app.erasure_log.subject_hash is 'SHA-256 over app.settings.erasure_salt and Clerk''s id, in hexadecimal.';
comment on column app.erasure_log.person is
'The person to erase; only Clerk''s id once nothing but the deletion at Clerk is left; null when the erasure is complete.';
comment on column app.erasure_log.state is
'running; erased: this database has no more data of the person; complete: Clerk has none either, and the ledger has the entry.';
comment on column app.erasure_log.requested_by is 'person, clerk (a webhook), administrator, or restore (of a backup that is older).';
comment on column app.erasure_log.counts is 'Rows that were erased or changed, by table.';
comment on column app.erasure_log.requested_at is 'When it was requested. From then on the person is hidden from everyone else.';
comment on column app.erasure_log.settled_at is 'When the first pass over all rules ended; transactions that began earlier may still write rows.';
comment on column app.erasure_log.erased_at is 'When this database had no more data of the person.';
comment on column app.erasure_log.clerk_deleted_at is 'When Clerk deleted the account, or reported that it had.';
comment on column app.erasure_log.stored_at is 'When the entry was written to the ledger, which is stored with the backups.';
comment on column app.erasure_log.next_rule is
'The rule with which the next step begins: a position in app.personal_data. Null: a new pass over all rules begins.';
comment on column app.erasure_log.found is 'How many rows this pass has found. A quiet pass that finds none ends the erasure.';
comment on column app.erasure_log.was_quiet is
'Whether this pass is quiet: all transactions from before settled_at had ended when it began, and it leaves no rule out.';
comment on column app.erasure_log.quiet_passes is
'How many passes in a row were quiet. The third ends the erasure even if others still write about the person.';
comment on column app.erasure_log.batches is 'Rows per batch, by rule, as {"relation.path": rows}.';
comment on column app.erasure_log.attempts is
'How often a step, Clerk or the store failed. After the first failure a step is only one batch, to find the row that fails.';
comment on column app.erasure_log.next_attempt_at is 'When it is due again.';
comment on column app.erasure_log.error is 'The last failure: a code, no data.';
create index erasure_log_next_attempt_at_idx on app.erasure_log (next_attempt_at) where state <> 'complete';
alter table app.erasure_log enable row level security, force row level security;

-- Rows that an erasure could not change, such as one that a trigger of yours refuses. They do not stop the erasure of other rows, and the
-- erasure is not complete before they are gone.
create table app.erasure_failures (
  receipt uuid not null references app.erasure_log on delete cascade,
  relation text not null,
  key text not null,
  error text,
  attempts integer not null default 1,
  failed_at timestamptz not null default now(),
  next_attempt_at timestamptz not null default now() + interval '30 seconds',
  primary key (receipt, relation, key)
);
comment on table app.erasure_failures is 'Rows that an erasure skipped because they could not be erased.';
comment on column app.erasure_failures.receipt is 'The erasure.';
comment on column app.erasure_failures.relation is 'The table.';
comment on column app.erasure_failures.key is 'The row''s primary key, as a JSON array.';
comment on column app.erasure_failures.error is 'The SQLSTATE of the failure.';
comment on column app.erasure_failures.attempts is 'How often it failed.';
comment on column app.erasure_failures.failed_at is 'When it last failed.';
comment on column app.erasure_failures.next_attempt_at is 'When it is tried again.';
alter table app.erasure_failures enable row level security, force row level security;

-- Addresses that a person has had, so that their erasure also removes invitations to them, in whatever order the two arrive. Hashes,
-- because the rows outlast the person, and because a late message may still reveal an address of an erased person.
create table app.known_addresses (
  subject_hash text not null check (subject_hash ~ '^[0-9a-f]{64}$'),
  address_hash text not null check (address_hash ~ '^[0-9a-f]{64}$'),
  primary key (subject_hash, address_hash)
);
comment on table app.known_addresses is 'Hashes of the addresses that people had according to Clerk''s messages. Rows are only added.';
comment on column app.known_addresses.subject_hash is 'The person: app.person_hash() of Clerk''s id, as in app.clerk_tombstones.';
comment on column app.known_addresses.address_hash is 'app.person_hash() of the address in lower case.';
create index known_addresses_address_hash_idx on app.known_addresses (address_hash);
alter table app.known_addresses enable row level security, force row level security;

-- Names that people changed here. The service sends them to Clerk. Otherwise Clerk would keep the old name and could write it back here.
create table app.name_changes (
  person_id uuid primary key references public.profiles on delete cascade,
  changed_at timestamptz not null default now(),
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  error text
);
comment on table app.name_changes is 'Name changes that Clerk does not have yet; the name itself is in the profile.';
comment on column app.name_changes.person_id is 'The person.';
comment on column app.name_changes.changed_at is 'When the name was last changed.';
comment on column app.name_changes.attempts is 'How often sending it to Clerk was attempted.';
comment on column app.name_changes.next_attempt_at is 'When it is due again. Infinity: Clerk refuses it.';
comment on column app.name_changes.error is 'Why Clerk did not accept it: a code.';
create index name_changes_next_attempt_at_idx on app.name_changes (next_attempt_at);
alter table app.name_changes enable row level security, force row level security;
