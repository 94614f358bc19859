-- Which addresses somebody has had, for when they are erased: invitations to one go with the person, whichever arrives first. Hashes,
-- because they outlast the person, and because those of an erased person may still become known, by a late message.
create table app.known_addresses (
  subject_hash text not null check (subject_hash ~ '^[0-9a-f]{64}$'),
  address_hash text not null check (address_hash ~ '^[0-9a-f]{64}$'),
  primary key (subject_hash, address_hash)
);
comment on table app.known_addresses is 'Hashes of the addresses that messages of Clerk''s gave people; only ever grows.';
comment on column app.known_addresses.subject_hash is 'Whose: app.person_hash() of Clerk''s id, as in app.clerk_tombstones.';
comment on column app.known_addresses.address_hash is 'app.person_hash() of the address in lower case.';
create index known_addresses_address_hash_idx on app.known_addresses (address_hash);
alter table app.known_addresses enable row level security, force row level security;

-- Whoever is being erased has no record any more from which their addresses could be read.
insert into app.known_addresses (subject_hash, address_hash)
select
  l.subject_hash,
  encode(sha256(s.erasure_salt || convert_to(lower(e.email), 'UTF8')), 'hex')
from app.erasure_log as l
cross join app.settings as s
cross join unnest((l.person).emails) as e (email)
on conflict do nothing;
