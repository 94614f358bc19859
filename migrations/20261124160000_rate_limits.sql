-- How much each caller has written through the Data API lately. Unlogged: after a crash everybody begins anew, and no write waits for it.
create unlogged table app.rate_limits (
  caller text primary key,
  tokens double precision not null,
  refilled_at timestamptz not null
) with (fillfactor = 70);
comment on table app.rate_limits is 'A bucket of tokens per caller: each write takes one, and time brings them back. See app.check_request().';
comment on column app.rate_limits.caller is 'SHA-256 of Clerk''s id of the person, in hexadecimal.';
comment on column app.rate_limits.tokens is 'Writes that were left at refilled_at.';
comment on column app.rate_limits.refilled_at is 'When the caller last wrote.';
alter table app.rate_limits enable row level security, force row level security;
