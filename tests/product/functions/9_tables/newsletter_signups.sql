-- Registers the addresses as personal data.
delete from app.personal_data
where relation = 'public.newsletter_signups';
insert into app.personal_data (
  relation, path, subject, domain, exported, ordered_by, made_at, erasure,
  category, data, purpose, lawful_basis, retention_period, expired, retention
)
values (
  'public.newsletter_signups', 'person_id', 't.person_id = person.id or lower(t.email) = any(person.emails)', 'newsletter',
  '{t.email,t.created_at}', '{id}', 't.created_at', 'delete',
  'Newsletter', 'That you ordered our newsletter', 'To send it to you', 'Consent, Art. 6(1)(a) GDPR',
  $$interval '2 years'$$, 't.created_at < $1', 'after you signed up'
);
