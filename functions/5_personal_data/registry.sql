-- The registry of personal data: where it is, what for, how long, and what becomes of it. Every table has a row: Ballast's own are here,
-- the row of a table of 9_tables is in that table's file. Tests compare the registry with the catalogue, an export with a scan of all
-- tables, and an erasure with the same scan.
-- Each time this file changes, Ballast's own rows are written again. They keep the positions below 1000, so that they come before all
-- others: an erasure goes the other way, and deletes the profile last.

delete from app.personal_data
where position < 1000;
select setval(pg_get_serial_sequence('app.personal_data', 'position'), 1, false);

insert into app.personal_data (
  relation, path, subject, domain, exported, ordered_by, made_at, erasure, replacements, erased_by,
  category, data, purpose, lawful_basis, retention_period, expired, retention
)
values
(
  'public.profiles', 'id', 't.id = person.id', 'profile',
  array[
    't.id', 't.clerk_user_id', 't.email', 't.full_name', 't.avatar_url', 't.banned', 't.current_organization_id', 't.preferences',
    't.last_seen_at', 't.created_at', 't.updated_at'
  ],
  '{id}', 't.created_at', 'delete', null, null,
  'Account', 'Name, e-mail address, picture, preferences, when you signed up and were last here',
  'To know who you are and to show you to the people you work with', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as you have an account'
),
(
  'app.clerk_records', 'clerk_id', $$t.kind = 'user' and t.clerk_id = person.clerk_user_id$$, 'sign_in_account',
  '{t.kind,t.clerk_id,t.fields}', '{kind,clerk_id}', null, 'delete', null, null,
  'Account', 'What Clerk, which signs you in, last told us of your name, e-mail address and picture',
  'To keep your account the same in both places', 'Contract, Art. 6(1)(b) GDPR', null, null, 'as long as you have an account'
),
(
  'app.name_changes', 'person_id', 't.person_id = person.id', 'name_changes', '{t.changed_at,t.attempts,t.error}',
  '{person_id}', 't.changed_at', 'delete', null, null,
  'Account', 'That you changed your name here', 'To tell Clerk of it', 'Contract, Art. 6(1)(b) GDPR', null, null, 'until Clerk has it'
),
(
  'public.organization_memberships', 'user_id', 't.user_id = person.id', 'memberships',
  array[
    't.id', 't.organization_id', '(select o.name from public.organizations as o where o.id = t.organization_id) as organization', 't.role',
    't.clerk_role', 't.clerk_membership_id', 't.joined_at', 't.updated_at'
  ],
  '{id}', 't.joined_at', 'delete', null, null,
  'Organizations', 'Which organizations you belong to, and as what', 'To decide what you may see and do', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as you belong to the organization'
),
(
  'app.clerk_records', 'user_id', $$t.kind = 'membership' and t.user_id = person.clerk_user_id$$, 'membership_records',
  '{t.kind,t.clerk_id,t.organization_id,t.fields}', '{kind,clerk_id}', null, 'delete', null, null,
  'Organizations', 'What Clerk last told us of your memberships', 'To apply its messages in whatever order they come',
  'Contract, Art. 6(1)(b) GDPR', null, null, 'as long as you belong to the organization'
),
(
  'app.clerk_tombstones', 'user_id', 't.user_id = person.clerk_user_id', 'past_memberships',
  '{t.organization_id,t.began_at,t.deleted_at}', '{kind,clerk_id}', 't.deleted_at', 'delete', null, null,
  'Organizations', 'Which organizations you have left, and when', 'So that a late message does not let you back in',
  'Legitimate interest in access control, Art. 6(1)(f) GDPR', null, null, 'as long as you have an account'
),
(
  'app.clerk_records', 'fields.created_by', $$t.kind = 'organization' and t.fields ->> 'created_by' = person.clerk_user_id$$,
  'founded_organizations', array['t.clerk_id as organization', $$t.fields -> 'name' as name$$], '{kind,clerk_id}', null,
  'pseudonymise', $$fields = t.fields || '{"created_by": null}'$$, null,
  'Organizations', 'Which organizations you founded', 'To know who owns an organization', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as the organization exists and you have an account'
),
(
  'public.organization_invitations', 'email', 'lower(t.email) = any(person.emails)', 'invitations',
  '{t.id,t.organization_id,t.email,t.role,t.expires_at,t.created_at}', '{id}', 't.created_at', 'delete', null, 'app.erase_invitations',
  'Invitations', 'The e-mail address to which an organization sent an invitation, and the role', 'To let the invited in',
  'Legitimate interest of the inviting organization, Art. 6(1)(f) GDPR', $$interval '30 days'$$, 't.expires_at < $1',
  'after the invitation lapsed; until then while it waits for an answer'
),
(
  'app.clerk_records', 'fields.email', $$t.kind = 'invitation' and lower(t.fields ->> 'email') = any(person.emails)$$, 'invitation_records',
  '{t.clerk_id,t.organization_id,t.fields}', '{kind,clerk_id}', null, 'delete', null, 'app.erase_invitations',
  'Invitations', 'What Clerk last told us of invitations to you', 'To apply its messages in whatever order they come',
  'Legitimate interest of the inviting organization, Art. 6(1)(f) GDPR', $$interval '30 days'$$,
  $$t.kind = 'invitation' and app.clerk_time(t.fields -> 'expires_at') < $1$$,
  'after the invitation lapsed; until then while it waits for an answer'
),
(
  'public.audit_logs', 'user_id', 't.user_id = person.id', 'activity',
  array[
    't.id', 't.created_at', 't.organization_id', 't.action', 't.resource_type', 't.resource_id',
    't.request_id',
    'case when t.impersonator is null then t.ip_address end as ip_address',
    'case when t.impersonator is null then t.user_agent end as user_agent',
    'case when t.subject_ids is null then t.metadata end as metadata', 'case when t.subject_ids is null then t.changes end as changes'
  ],
  '{created_at,id}', 't.created_at', 'pseudonymise', null, 'app.erase_audit_entries',
  'Audit trail', 'What you changed and when, with the address and the browser of the request',
  'So that an organization can prove who did what, and we can find misuse', 'Legitimate interest in security, Art. 6(1)(f) GDPR',
  '(select s.audit_retention from app.settings as s)', null,
  'from the day it was done'
),
(
  'public.audit_logs', 'impersonator',
  't.impersonator = person.clerk_user_id and t.user_id is distinct from person.id', 'activity_for_others',
  '{t.id,t.created_at,t.organization_id,t.action,t.resource_type}', '{created_at,id}', 't.created_at',
  'pseudonymise', null, 'app.erase_audit_entries',
  'Audit trail', 'What you did in somebody else’s name, for support',
  'So that an organization can prove who did what, and we can find misuse',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', '(select s.audit_retention from app.settings as s)', null,
  'from the day it was done'
),
(
  'public.audit_logs', 'subject_ids',
  't.subject_ids @> array[person.id] and t.user_id is distinct from person.id and t.impersonator is distinct from person.clerk_user_id',
  'activity_about_you',
  array[
    't.id', 't.created_at', 't.organization_id', 't.action', 't.resource_type', 't.resource_id',
    $$case when t.resource_type in ('member', 'profile') then t.changes end as changes$$
  ],
  '{created_at,id}', 't.created_at', 'pseudonymise', null, 'app.erase_audit_entries',
  'Audit trail', 'What others changed that concerns you, such as your role',
  'So that an organization can prove who did what, and we can find misuse',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', '(select s.audit_retention from app.settings as s)', null,
  'from the day it was done'
),
(
  'app.webhook_events', 'mentions', 't.mentions && (person.emails || person.clerk_user_id)', 'messages_from_clerk',
  array[
    't.message_id', 't.type', 't.received_at', 't.outcome',
    $$case
      when t.type like 'user.%' and t.event -> 'data' ->> 'id' = person.clerk_user_id then (t.event -> 'data') - 'private_metadata'
      when t.event -> 'data' -> 'public_user_data' ->> 'user_id' = person.clerk_user_id
        then jsonb_build_object('public_user_data', t.event -> 'data' -> 'public_user_data', 'role', t.event -> 'data' -> 'role')
    end as about_you$$
  ],
  '{message_id}', 't.received_at', 'pseudonymise', null, 'app.erase_messages',
  'Account', 'The messages by which Clerk tells us of your account',
  'To apply each of them exactly once, and again if something failed', 'Contract, Art. 6(1)(b) GDPR',
  $$interval '30 days'$$, 't.applied_at < $1', 'after a message was applied'
),
(
  'app.exports', 'person_id', 't.person_id = person.id', 'exports', '{t.id,t.requested_by,t.outcome,t.started_at}', '{id}', 't.started_at',
  'delete', null, null,
  'Your rights', 'When you asked for a copy of your data', 'To give you no more than one an hour', 'Legal obligation, Art. 6(1)(c) GDPR',
  $$interval '30 days'$$, 't.started_at < $1', 'after the request'
),
(
  'app.email_outbox', 'person_id', 't.person_id = person.id', 'mail', '{t.id,t.template,t.state,t.created_at,t.sent_at}', '{id}',
  't.created_at', 'delete', null, null,
  'E-mail', 'Which e-mails we sent you, when, and whether they arrived', 'To send each once, and to find out why one did not arrive',
  'Contract, Art. 6(1)(b) GDPR', $$interval '30 days'$$, $$t.created_at < $1 and t.state not in ('queued', 'sending')$$,
  'after it was written'
),
(
  'app.email_outbox', 'about_id', 't.about_id = person.id and t.person_id is distinct from person.id', 'mail_about_you',
  '{t.id,t.template,t.organization_id,t.created_at}', '{id}', 't.created_at', 'delete', null, null,
  'E-mail', 'That we told the owners of an organization that you joined', 'So that they know who has access',
  'Legitimate interest in access control, Art. 6(1)(f) GDPR', $$interval '30 days'$$, null, 'after it was written'
),
(
  'app.mail_suppressions', 'person_id', 't.person_id = person.id', 'mail_suppressions', '{t.address,t.reason,t.suppressed_at}',
  '{person_id}', 't.suppressed_at', 'delete', null, null,
  'E-mail', 'That e-mail to your address came back, or that you reported it as spam', 'To send it nothing that you can do without',
  'Legitimate interest in deliverable e-mail, Art. 6(1)(f) GDPR', null, null, 'as long as you have an account'
),
(
  'app.email_outbox', 'recipient', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'Your e-mail address, while you are being erased', 'To tell you once that you have been erased',
  'Legal obligation, Art. 6(1)(c) GDPR', null, null, 'until that e-mail is sent, or given up a day after the erasure'
),
(
  'app.erasure_log', 'person', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'A hash that shows that you were erased, and when',
  'To prove the erasure, and to erase you again should a backup bring you back. While an erasure runs it also holds whom to erase',
  'Legal obligation, Art. 6(1)(c) GDPR', null, null, 'for good'
),
(
  'app.clerk_tombstones', 'clerk_id', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'The same hash', 'So that a late message does not bring you back', 'Legal obligation, Art. 6(1)(c) GDPR',
  null, null, 'for good'
),
(
  'app.known_addresses', 'address_hash', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'Hashes of the e-mail addresses you have had',
  'So that invitations to them go when you are erased, and a late message does not bring them back', 'Legal obligation, Art. 6(1)(c) GDPR',
  null, null, 'for good'
),
(
  'app.audit_erasures', 'original', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'Hashes of audit entries as they were before you were erased', 'To prove that nobody else changed the audit trail',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', null, null, 'for good'
),
(
  'app.rate_limits', 'caller', 't.caller = app.rate_limit_caller(person.clerk_user_id)', null, null, null, null, 'delete', null, null,
  'Your work', 'A hash of your account, and how much you wrote in the last seconds',
  'So that nobody writes so much that others wait. Not in an export: it is over before it could be read',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', $$interval '1 hour'$$, 't.refilled_at < $1', 'after you last wrote'
),
(
  'realtime.messages', 'payload', null, null, null, null, null, 'keep', null, null,
  'Your work', 'Changes of what you and others work on, on their way to the members, with who created it',
  'To show changes at once. Supabase drops them by itself', 'Contract, Art. 6(1)(b) GDPR', $$interval '3 days'$$, null, 'after the change'
);

insert into app.personal_data (relation, path, erasure, purpose, retention_period, retention)
values
('public.organizations', '', 'none', 'Customers, not people', $$interval '30 days'$$, 'after Clerk deleted it, with all its rows'),
('public.role_permissions', '', 'none', 'What roles may do', null, null),
('public.backup_logs', '', 'none', 'When backups were made', null, null),
('app.applied_sources', '', 'none', 'Names of files', null, null),
('app.job_runs', '', 'none', 'How jobs ended: counts', null, null),
('app.clerk_backfills', '', 'none', 'How far a load from Clerk came: a number and a moment', null, null),
('app.settings', '', 'none', 'Choices of the installation', null, null),
('app.clerk_roles', '', 'none', 'What roles of Clerk''s mean', null, null),
('app.clerk_plans', '', 'none', 'What plans of Clerk''s mean', null, null),
('app.audit_prefixes', '', 'none', 'Which actions clients may log', null, null),
('app.audit_seals', '', 'none', 'Hashes over hashes', null, null),
('app.audit_interventions', '', 'none', 'When the audit trail was changed, and how much', null, null),
('app.personal_data', '', 'none', 'This registry', null, null);

select setval(pg_get_serial_sequence('app.personal_data', 'position'), greatest(999, max(d.position))) from app.personal_data as d;
