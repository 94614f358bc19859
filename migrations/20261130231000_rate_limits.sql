-- How much each caller recently wrote through the Data API. Unlogged, so that no write waits for it; a crash resets every limit.
create unlogged table app.rate_limits (
  caller text primary key,
  tokens double precision not null,
  refilled_at timestamptz not null
) with (fillfactor = 70);
comment on table app.rate_limits is 'A token bucket per caller: each write takes a token, and time refills them. See app.check_request().';
comment on column app.rate_limits.caller is 'SHA-256 of the person''s Clerk id, in hexadecimal.';
comment on column app.rate_limits.tokens is 'Tokens left at refilled_at.';
comment on column app.rate_limits.refilled_at is 'When the caller last wrote.';
alter table app.rate_limits enable row level security, force row level security;
