-- A table that was made by hand: its rows belong to no organization, and no client reads it.
create table public.newsletter_signups (
  id uuid primary key default gen_random_uuid(),
  person_id uuid references public.profiles on delete cascade,
  email text not null check (length(email) <= 320),
  created_at timestamptz not null default now()
);
comment on table public.newsletter_signups is 'Who ordered the newsletter.';
comment on column public.newsletter_signups.id is 'The order.';
comment on column public.newsletter_signups.person_id is 'The person, if they have an account.';
comment on column public.newsletter_signups.email is 'The address. Personal data.';
comment on column public.newsletter_signups.created_at is 'When it was ordered.';
create index newsletter_signups_person_id_idx on public.newsletter_signups (person_id);
create index newsletter_signups_email_idx on public.newsletter_signups (lower(email));
alter table public.newsletter_signups enable row level security, force row level security;
