-- Mail as a transactional outbox: a mail is queued in the same transaction as the change it reports, and sent afterwards.

-- Data, not a list in code: Ballast's functions register its kinds, and a product's functions its own (app.register_mail_kind).
create table app.mail_kinds (
  kind text primary key check (kind ~ '^[a-z][a-z0-9_]{0,49}$'),
  data_function text check (length(data_function) <= 200),
  audience text not null check (audience in ('person', 'operator', 'erased')),
  is_essential boolean not null check (is_essential or audience = 'person'),
  repeat_after interval not null check (repeat_after >= interval '0'),
  example jsonb not null check (jsonb_typeof(example) = 'object' and not jsonb_path_exists(example, 'strict $.**{64}'))
);
comment on table app.mail_kinds is 'The kinds of mail. The texts of each are in service/mail_templates.';
comment on column app.mail_kinds.kind is 'The name of the kind and of its templates.';
comment on column app.mail_kinds.data_function is 'Returns the data of a mail as a row; null if the names of recipient and organization suffice.';
comment on column app.mail_kinds.audience is 'Who receives it: a person, the operator (app.settings.operator_email), or a person who was erased.';
comment on column app.mail_kinds.is_essential is 'Whether it is sent regardless of the recipient''s preferences.';
comment on column app.mail_kinds.repeat_after is 'How long after it was queued the same mail is not queued again. While it waits, it never is.';
comment on column app.mail_kinds.example is 'Example values for its templates.';
alter table app.mail_kinds enable row level security, force row level security;

-- The id is the idempotency key: however often Resend receives a mail, it goes out once. Names and addresses are looked up when
-- the mail is sent, so that they are current and not stored here. The one exception is the address of an erased person.
create table app.email_outbox (
  id uuid primary key default gen_random_uuid(),
  template text not null check (template ~ '^[a-z][a-z0-9_]{0,49}$'),
  audience text not null check (audience in ('person', 'operator', 'erased')),
  person_id uuid references public.profiles on delete cascade,
  about_id uuid references public.profiles on delete cascade,
  organization_id uuid references public.organizations on delete cascade,
  recipient text check (length(recipient) <= 320),
  data jsonb not null default '{}' check (
    jsonb_typeof(data) = 'object' and octet_length(data::text) <= 2048 and not jsonb_path_exists(data, 'strict $.**{64}')
  ),
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
comment on table app.email_outbox is 'Mail to be sent, and its outcome for 30 days.';
comment on column app.email_outbox.id is 'The mail; Resend''s Idempotency-Key. For mail to an erased person it is the receipt.';
comment on column app.email_outbox.template is 'The kind of mail, from app.mail_kinds.';
comment on column app.email_outbox.audience is 'person; operator: app.settings.operator_email; erased: recipient.';
comment on column app.email_outbox.person_id is 'The recipient: the address in the profile at the time of sending.';
comment on column app.email_outbox.about_id is 'The person it names, if that is not the recipient.';
comment on column app.email_outbox.organization_id is 'The organization it is about.';
comment on column app.email_outbox.recipient is
'Address of a person who is being erased; removed as soon as the mail is sent or given up. Personal data.';
comment on column app.email_outbox.data is 'Further values for the template: ids and numbers, no names, no secrets.';
comment on column app.email_outbox.state is
'queued, sending, sent (Resend has it), delivered, bounced, complained; failed: given up; dropped: no recipient is left.';
comment on column app.email_outbox.attempts is 'How often it was claimed.';
comment on column app.email_outbox.next_attempt_at is
'When it is due. While sending: when its sender is presumed dead. Once given up: when that was. Infinity: held until its cause is complete.';
comment on column app.email_outbox.give_up_at is 'When it is too late to send it. Resend remembers an idempotency key for a day.';
comment on column app.email_outbox.provider_id is 'Resend''s id.';
comment on column app.email_outbox.error is 'Why the last attempt failed: a code, no data.';
comment on column app.email_outbox.created_at is 'When it was queued.';
comment on column app.email_outbox.sent_at is 'When Resend accepted it.';
create index email_outbox_next_attempt_at_idx on app.email_outbox (next_attempt_at) where state in ('queued', 'sending');
create index email_outbox_person_id_idx on app.email_outbox (person_id, template, created_at);
create index email_outbox_about_id_idx on app.email_outbox (about_id) where about_id is not null;
create index email_outbox_organization_id_idx on app.email_outbox (organization_id) where organization_id is not null;
create index email_outbox_created_at_idx on app.email_outbox (created_at);
create unique index email_outbox_provider_id_idx on app.email_outbox (provider_id) where provider_id is not null;
comment on index app.email_outbox_provider_id_idx is 'Across tenants: Resend makes these ids, and only the service reads or writes them.';
alter table app.email_outbox enable row level security, force row level security;

-- Mail providers treat a sender who keeps writing to addresses that bounce or complain as a spammer.
create table app.mail_suppressions (
  person_id uuid primary key references public.profiles on delete cascade,
  address text not null check (length(address) <= 320),
  reason text not null check (reason in ('bounced', 'complained')),
  suppressed_at timestamptz not null default now()
);
comment on table app.mail_suppressions is 'Addresses that get essential mail only. Delete a row to send to it again.';
comment on column app.mail_suppressions.person_id is 'The person.';
comment on column app.mail_suppressions.address is 'The address, in lower case. The person''s other addresses are not suppressed. Personal data.';
comment on column app.mail_suppressions.reason is 'bounced: the receiving server refused it permanently; complained: the person marked it as spam.';
comment on column app.mail_suppressions.suppressed_at is 'When Resend reported it.';
alter table app.mail_suppressions enable row level security, force row level security;
