-- Mail as a transactional outbox: what tells somebody of a change is written together with the change, and sent afterwards.

alter table app.settings
add column mail_enabled boolean not null default false,
add column operator_email text check (operator_email ~ '^[^@\s]+@[^@\s]+\.[^@\s]+$' and length(operator_email) <= 320);
comment on column app.settings.mail_enabled is 'Whether mail is written and sent. Off until the service has a key of Resend''s.';
comment on column app.settings.operator_email is 'Who hears of failed backups, drills and webhooks. Null: nobody.';

-- The id is the idempotency key: however often a mail is handed to Resend, it goes out once. There are no names and no addresses here:
-- they are looked up when it is sent, so that it says what is true then. The one exception is who has been erased.
create table app.email_outbox (
  id uuid primary key default gen_random_uuid(),
  template text not null check (template ~ '^[a-z][a-z_]{0,49}$'),
  audience text not null check (audience in ('person', 'operator', 'erased')),
  person_id uuid references public.profiles on delete cascade,
  about_id uuid references public.profiles on delete cascade,
  organization_id uuid references public.organizations on delete cascade,
  recipient text check (length(recipient) <= 320),
  data jsonb not null default '{}' check (jsonb_typeof(data) = 'object' and octet_length(data::text) <= 2048),
  state text not null default 'queued' check (
    state in ('queued', 'sending', 'sent', 'delivered', 'bounced', 'complained', 'failed', 'dropped')
  ),
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  give_up_at timestamptz not null default now() + interval '1 day',
  provider_id text check (length(provider_id) <= 100),
  error text check (length(error) <= 200),
  created_at timestamptz not null default now(),
  sent_at timestamptz,
  check ((audience = 'person') = (person_id is not null)),
  check (recipient is null or audience = 'erased')
);
comment on table app.email_outbox is 'Mail to be sent, and for 30 days what became of it.';
comment on column app.email_outbox.id is 'The mail; Resend''s Idempotency-Key. Of the mail to somebody erased it is the receipt.';
comment on column app.email_outbox.template is 'Which mail: service/mail_templates has its texts.';
comment on column app.email_outbox.audience is 'person; operator: app.settings.operator_email; erased: recipient.';
comment on column app.email_outbox.person_id is 'To whom: the profile''s address when it is sent.';
comment on column app.email_outbox.about_id is 'Whom it names, where that is somebody else.';
comment on column app.email_outbox.organization_id is 'Which organization it is about.';
comment on column app.email_outbox.recipient is 'Address of somebody who is being erased, gone as soon as the mail is sent or given up. Personal data.';
comment on column app.email_outbox.data is 'What else it is about: ids and numbers, no names, no secrets.';
comment on column app.email_outbox.state is
'queued, sending, sent (Resend has it), delivered, bounced, complained; failed: given up; dropped: nobody to send it to any more.';
comment on column app.email_outbox.attempts is 'How often it was claimed.';
comment on column app.email_outbox.next_attempt_at is
'When it is due. While sending: when whoever claimed it is taken for dead. Once given up: when it was. Infinity: it waits for what it tells.';
comment on column app.email_outbox.give_up_at is 'When it is too late to send it. Resend knows an idempotency key for a day.';
comment on column app.email_outbox.provider_id is 'Resend''s id.';
comment on column app.email_outbox.error is 'Why it was not sent, last: a code, no data.';
comment on column app.email_outbox.created_at is 'When it was written.';
comment on column app.email_outbox.sent_at is 'When Resend took it.';
create index email_outbox_next_attempt_at_idx on app.email_outbox (next_attempt_at) where state in ('queued', 'sending');
create index email_outbox_person_id_idx on app.email_outbox (person_id, template, created_at);
create index email_outbox_about_id_idx on app.email_outbox (about_id) where about_id is not null;
create index email_outbox_organization_id_idx on app.email_outbox (organization_id) where organization_id is not null;
create index email_outbox_created_at_idx on app.email_outbox (created_at);
create unique index email_outbox_provider_id_idx on app.email_outbox (provider_id) where provider_id is not null;
alter table app.email_outbox enable row level security, force row level security;

-- Who goes on sending to addresses that bounce or complain is soon taken for a sender of spam.
create table app.mail_suppressions (
  person_id uuid primary key references public.profiles on delete cascade,
  address text not null check (length(address) <= 320),
  reason text not null check (reason in ('bounced', 'complained')),
  suppressed_at timestamptz not null default now()
);
comment on table app.mail_suppressions is 'Addresses that get essential mail only. Delete a row to send to it again.';
comment on column app.mail_suppressions.person_id is 'Whose address.';
comment on column app.mail_suppressions.address is 'The address, in lower case. Another one of the person''s is not concerned. Personal data.';
comment on column app.mail_suppressions.reason is 'bounced: their server refused it for good; complained: they called it spam.';
comment on column app.mail_suppressions.suppressed_at is 'When Resend told us.';
alter table app.mail_suppressions enable row level security, force row level security;
