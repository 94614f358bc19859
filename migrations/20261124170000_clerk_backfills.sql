-- How far `ballast clerk backfill` came, for the next run to go on when it was interrupted. Objects are listed by when they were created,
-- so that moment is the place: it stays right when objects before it are deleted, and unlike an id it names nobody.
create table app.clerk_backfills (
  kind text primary key check (kind in ('user', 'organization', 'membership', 'invitation')),
  instance_id text,
  next_offset integer not null check (next_offset > 0),
  last_created_ms bigint not null,
  updated_at timestamptz not null default now()
);
comment on table app.clerk_backfills is 'How far an unfinished backfill came, a row a kind. A finished one leaves none.';
comment on column app.clerk_backfills.kind is 'As in app.clerk_records.';
comment on column app.clerk_backfills.instance_id is 'Clerk''s instance whose list it is.';
comment on column app.clerk_backfills.next_offset is 'How many objects the list had up to the last one that was merged.';
comment on column app.clerk_backfills.last_created_ms is 'When Clerk created that one, in milliseconds since 1970.';
comment on column app.clerk_backfills.updated_at is 'When it was merged.';
alter table app.clerk_backfills enable row level security, force row level security;
