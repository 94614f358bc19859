-- By this an erasure finds the invitations to an address of which it has the hash only.
alter table app.clerk_records add column address_hash text;
comment on column app.clerk_records.address_hash is 'Of an invitation: app.person_hash() of its address in lower case.';
update app.clerk_records as r
set address_hash = encode(sha256(s.erasure_salt || convert_to(lower(r.fields ->> 'email'), 'UTF8')), 'hex')
from app.settings as s
where r.kind = 'invitation';
-- squawk-ignore require-concurrent-index-creation
create index clerk_records_address_hash_idx on app.clerk_records (address_hash) where address_hash is not null;
