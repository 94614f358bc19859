-- How much each caller recently wrote. Unlogged, so that no write waits for it; a crash resets every limit.
create unlogged table app.rate_limits (
  caller text not null,
  bucket text not null,
  tokens double precision not null,
  refilled_at timestamptz not null,
  primary key (caller, bucket)
) with (fillfactor = 70);
comment on table app.rate_limits is
'Token buckets of callers: each write takes a token, and time refills them. See app.check_request() and app.log_audit_event().';
comment on column app.rate_limits.caller is 'SHA-256 of the person''s Clerk id, in hexadecimal.';
comment on column app.rate_limits.bucket is 'writes: writes through the Data API. audit:HASH: audit entries of one organization; HASH is the SHA-256 of its id.';
comment on column app.rate_limits.tokens is 'Tokens left at refilled_at.';
comment on column app.rate_limits.refilled_at is 'When the caller last wrote.';
alter table app.rate_limits enable row level security, force row level security;
