-- The registry of personal data: where it is stored, for what purpose, for how long, and what an erasure does to it. Every table has an
-- entry. Those of Ballast's tables are here; those of your tables are in functions/9_tables. Tests compare the registry with the
-- catalogue, and exports and erasures with a scan of all tables.
-- Whenever this file changes, it rewrites Ballast's entries. Their positions are below 1000, so that they come before all others. An
-- erasure runs in the reverse order, so it deletes the profile last.

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
  'Account', 'Name, e-mail address, picture, preferences, and when you signed up and were last seen',
  'To identify you and to show you to the people you work with', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as you have an account'
),
(
  'app.clerk_records', 'clerk_id', $$t.kind = 'user' and t.clerk_id = person.clerk_user_id$$, 'sign_in_account',
  '{t.kind,t.clerk_id,t.fields}', '{kind,clerk_id}', null, 'delete', null, null,
  'Account', 'The name, e-mail address and picture that Clerk, our sign-in provider, last sent us',
  'To keep your account the same in both places', 'Contract, Art. 6(1)(b) GDPR', null, null, 'as long as you have an account'
),
(
  'app.name_changes', 'person_id', 't.person_id = person.id', 'name_changes', '{t.changed_at,t.attempts,t.error}',
  '{person_id}', 't.changed_at', 'delete', null, null,
  'Account', 'That you changed your name here', 'To send the new name to Clerk', 'Contract, Art. 6(1)(b) GDPR', null, null,
  'until Clerk has stored it'
),
(
  'public.organization_memberships', 'user_id', 't.user_id = person.id', 'memberships',
  array[
    't.id', 't.organization_id', '(select o.name from public.organizations as o where o.id = t.organization_id) as organization', 't.role',
    't.clerk_role', 't.clerk_membership_id', 't.joined_at', 't.updated_at'
  ],
  '{id}', 't.joined_at', 'delete', null, null,
  'Organizations', 'Which organizations you belong to, and your roles', 'To decide what you may see and do', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as you belong to the organization'
),
(
  'app.clerk_records', 'user_id', $$t.kind = 'membership' and t.user_id = person.clerk_user_id$$, 'membership_records',
  '{t.kind,t.clerk_id,t.organization_id,t.fields}', '{kind,clerk_id}', null, 'delete', null, null,
  'Organizations', 'The details of your memberships that Clerk last sent us', 'To apply its messages in whatever order they arrive',
  'Contract, Art. 6(1)(b) GDPR', null, null, 'as long as you belong to the organization'
),
(
  'app.clerk_tombstones', 'user_id', 't.user_id = person.clerk_user_id', 'past_memberships',
  array['t.organization_id', 't.began_at', $$nullif(t.deleted_at, 'infinity') as deleted_at$$], '{kind,clerk_id}',
  $$case when isfinite(t.deleted_at) then t.deleted_at else '-infinity' end$$, 'delete', null, null,
  'Organizations', 'Which organizations you have left, and when', 'To prevent a late message from restoring your access',
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
  'app.ownerships', 'owner_id', 't.owner_id = person.id', 'owned_organizations',
  array[
    't.organization_id', '(select o.name from public.organizations as o where o.id = t.organization_id) as organization', 't.transferred_at'
  ],
  '{organization_id}', 't.transferred_at', 'set null', null, null,
  'Organizations', 'Which organizations were transferred to you', 'To know who owns an organization', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as the organization exists and you have an account'
),
(
  'public.organization_invitations', 'email', 'lower(t.email) = any(person.emails)', 'invitations',
  '{t.id,t.organization_id,t.email,t.role,t.expires_at,t.created_at}', '{id}', 't.created_at', 'delete', null, null,
  'Invitations', 'The e-mail address to which an organization sent an invitation, and the role', 'To let invited people join',
  'Legitimate interest of the inviting organization, Art. 6(1)(f) GDPR', $$interval '30 days'$$, 't.expires_at < $1',
  'after the invitation expired; a pending invitation is kept until it expires'
),
(
  'app.clerk_records', 'fields.email', $$t.kind = 'invitation' and lower(t.fields ->> 'email') = any(person.emails)$$, 'invitation_records',
  '{t.clerk_id,t.organization_id,t.fields}', '{kind,clerk_id}', null, 'delete', null, 'app.erase_invitations',
  'Invitations', 'The details of invitations to you that Clerk last sent us', 'To apply its messages in whatever order they arrive',
  'Legitimate interest of the inviting organization, Art. 6(1)(f) GDPR', $$interval '30 days'$$,
  $$t.kind = 'invitation' and app.clerk_time(t.fields -> 'expires_at') < $1$$,
  'after the invitation expired; a pending invitation is kept until it expires'
),
(
  'public.audit_logs', 'user_id', 't.user_id = person.id', 'activity',
  array[
    't.id', 't.created_at', 't.organization_id', 't.action', 't.resource_type',
    'case when t.mentions is null or app.find_identifiers(t.resource_id) is null then t.resource_id end as resource_id',
    't.request_id',
    'case when t.impersonator is null then t.ip_address end as ip_address',
    'case when t.impersonator is null then t.user_agent end as user_agent',
    $$case
      when t.mentions is not null then app.leave_out_others(t.metadata, person) when t.subject_ids is null then t.metadata
    end as metadata$$,
    'case when t.subject_ids is null then t.changes end as changes'
  ],
  '{created_at,id}', 't.created_at', 'pseudonymise', null, 'app.erase_audit_entries',
  'Audit trail', 'What you changed and when, with the IP address and the browser of the request',
  'To let an organization prove who did what, and to find misuse', 'Legitimate interest in security, Art. 6(1)(f) GDPR',
  '(select s.audit_retention from app.settings as s)', null,
  'from the day of the entry'
),
(
  'public.audit_logs', 'impersonator',
  't.impersonator = person.clerk_user_id and t.user_id is distinct from person.id', 'activity_for_others',
  '{t.id,t.created_at,t.organization_id,t.action,t.resource_type}', '{created_at,id}', 't.created_at',
  'pseudonymise', null, 'app.erase_audit_entries',
  'Audit trail', 'What you did on behalf of another person, for support',
  'To let an organization prove who did what, and to find misuse',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', '(select s.audit_retention from app.settings as s)', null,
  'from the day of the entry'
),
(
  -- The select calls the function once, not for each partition and, when the index is not used, each row.
  'public.audit_logs', 'subject_ids',
  '(t.subject_ids @> array[person.id] or t.mentions && (select app.person_mentions(person))) '
  'and t.user_id is distinct from person.id and t.impersonator is distinct from person.clerk_user_id',
  'activity_about_you',
  array[
    't.id', 't.created_at', 't.organization_id', 't.action', 't.resource_type',
    'case when t.mentions is null or app.find_identifiers(t.resource_id) is null then t.resource_id end as resource_id',
    $$case when t.resource_type in ('member', 'profile') then t.changes end as changes$$
  ],
  '{created_at,id}', 't.created_at', 'pseudonymise', null, 'app.erase_audit_entries',
  'Audit trail', 'What others changed that concerns you, such as your role',
  'To let an organization prove who did what, and to find misuse',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', '(select s.audit_retention from app.settings as s)', null,
  'from the day of the entry'
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
  'Account', 'The messages about your account that Clerk sent us',
  'To apply each of them exactly once, and again if something failed', 'Contract, Art. 6(1)(b) GDPR',
  $$interval '30 days'$$, 't.applied_at < $1', 'after a message was applied'
),
(
  'app.exports', 'person_id', 't.person_id = person.id', 'exports', '{t.id,t.requested_by,t.outcome,t.started_at}', '{id}', 't.started_at',
  'delete', null, null,
  'Your rights', 'When you asked for a copy of your data', 'To limit copies to one per hour', 'Legal obligation, Art. 6(1)(c) GDPR',
  $$interval '30 days'$$, 't.started_at < $1', 'after the request'
),
(
  'app.email_outbox', 'person_id', 't.person_id = person.id', 'mail', '{t.id,t.template,t.state,t.created_at,t.sent_at}', '{id}',
  't.created_at', 'delete', null, null,
  'E-mail', 'Which e-mails we sent you, when, and whether they arrived', 'To send each once, and to find out why one did not arrive',
  'Contract, Art. 6(1)(b) GDPR', $$interval '30 days'$$, $$t.created_at < $1 and t.state not in ('queued', 'sending')$$,
  'after it was queued'
),
(
  'app.email_outbox', 'about_id', 't.about_id = person.id and t.person_id is distinct from person.id', 'mail_about_you',
  '{t.id,t.template,t.organization_id,t.created_at}', '{id}', 't.created_at', 'delete', null, null,
  'E-mail', 'That we notified others of something that concerns you, for example that you joined their organization',
  'To inform the people who need to know', 'Legitimate interest of the organization, Art. 6(1)(f) GDPR',
  $$interval '30 days'$$, null, 'after it was queued'
),
(
  'app.mail_suppressions', 'person_id', 't.person_id = person.id', 'mail_suppressions', '{t.address,t.reason,t.suppressed_at}',
  '{person_id}', 't.suppressed_at', 'delete', null, null,
  'E-mail', 'That e-mail to your address bounced, or that you reported it as spam', 'To send that address only essential e-mail',
  'Legitimate interest in deliverable e-mail, Art. 6(1)(f) GDPR', null, null, 'as long as you have an account'
),
(
  'app.email_outbox', 'recipient', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'Your e-mail address, while you are being erased', 'To notify you once when you have been erased',
  'Legal obligation, Art. 6(1)(c) GDPR', null, null, 'until that e-mail is sent, at most a day after the erasure'
),
(
  'app.erasure_log', 'person', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'A hash that shows that you were erased, and when',
  'To prove the erasure, and to repeat it after a restore. While the erasure runs, it also holds your ids and e-mail addresses',
  'Legal obligation, Art. 6(1)(c) GDPR', null, null, 'permanently'
),
(
  'app.erasure_failures', 'key', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'The ids of rows that could not be erased yet', 'To erase them later', 'Legal obligation, Art. 6(1)(c) GDPR',
  null, null, 'until you have been erased'
),
(
  'app.clerk_tombstones', 'clerk_id', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'The same hash', 'To prevent a late message from restoring your data', 'Legal obligation, Art. 6(1)(c) GDPR',
  null, null, 'permanently'
),
(
  'app.known_addresses', 'address_hash', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'Hashes of the e-mail addresses you have had',
  'To remove invitations to them when you are erased, and to ignore late messages about them',
  'Legal obligation, Art. 6(1)(c) GDPR',
  null, null, 'permanently'
),
(
  'app.audit_erasures', 'original', null, null, null, null, null, 'keep', null, null,
  'Your rights', 'Hashes of audit entries as they were before you were erased',
  'To prove that the audit trail was not changed in any other way',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', null, null, 'permanently'
),
(
  'app.rate_limits', 'caller', 't.caller = app.rate_limit_caller(person.clerk_user_id)', null, null, null, null, 'delete', null, null,
  'Your work', 'A hash of your account, and how much you wrote in the last minutes',
  'To keep one person from slowing down others. Not part of an export, because it expires within an hour',
  'Legitimate interest in security, Art. 6(1)(f) GDPR', $$interval '1 hour'$$, 't.refilled_at < $1', 'after you last wrote'
),
(
  'realtime.messages', 'payload', null, null, null, null, null, 'keep', null, null,
  'Your work', 'Changes to what you and others work on, with who created it, while they are sent to the members',
  'To show changes at once. Supabase deletes them automatically', 'Contract, Art. 6(1)(b) GDPR', $$interval '3 days'$$, null,
  'after the change'
);

insert into app.personal_data (relation, path, erasure, purpose, retention_period, expired, retention)
values
(
  'app.event_failures', '', 'none', 'Ids of messages that could not be applied', $$interval '7 days'$$, 't.failed_at < $1',
  'after the last attempt'
);

insert into app.personal_data (relation, path, erasure, purpose, retention_period, retention)
values
('public.organizations', '', 'none', 'Customers, not people', $$interval '30 days'$$, 'after Clerk deleted it, with all its rows'),
('public.roles', '', 'none', 'The roles of members', null, null),
('public.role_permissions', '', 'none', 'The permissions of roles', null, null),
('public.backup_logs', '', 'none', 'When backups were made', null, null),
('app.applied_sources', '', 'none', 'Names of files', null, null),
('app.recorded_objects', '', 'none', 'Names of tables and functions', null, null),
('app.job_schedules', '', 'none', 'How often each job runs', null, null),
('app.job_runs', '', 'none', 'Outcomes of jobs: counts', null, null),
('app.clerk_backfills', '', 'none', 'Progress of an import from Clerk: a number and a time', null, null),
('app.settings', '', 'none', 'Settings of the installation', null, null),
('app.mail_kinds', '', 'none', 'The kinds of mail', null, null),
('app.clerk_roles', '', 'none', 'The role for each role in Clerk', null, null),
('app.clerk_plans', '', 'none', 'The plan for each plan in Clerk', null, null),
('app.audit_prefixes', '', 'none', 'Actions that clients may log', null, null),
('app.audit_seals', '', 'none', 'Hashes over hashes', null, null),
('app.audit_interventions', '', 'none', 'When the audit trail was changed, and how much', null, null),
('app.personal_data', '', 'none', 'This registry', null, null);

insert into app.personal_data (relation, path, erasure, purpose, retention_period, expired, retention)
values (
  'app.lost_records', '', 'none', 'How many audit entries and broadcasts were lost', '(select s.audit_retention from app.settings as s)',
  't.last_at < $1', 'as long as the audit trail'
),
('app.refused_deliveries', '', 'none', 'How many webhook deliveries were refused', $$interval '30 days'$$, 't.last_at < $1', null);

-- An erasure finds invitations also by the hashes of the person's addresses, because the addresses may be erased already. Invitations from
-- after the erasure stay.
update app.personal_data as d
set erasure_subject = $$
  t.kind = 'invitation'
  and (t.address_hash = any(app.address_hashes(person.clerk_user_id)) or lower(t.fields ->> 'email') = any(person.emails))
  and app.invitation_predates_erasure(t.fields)
$$
where d.domain = 'invitation_records';

update app.personal_data as d
set erasure_subject = $$
  lower(t.email) = any(person.emails)
  and app.invitation_predates_erasure(jsonb_build_object('email', t.email, 'created_at', extract(epoch from t.created_at)))
$$
where d.domain = 'invitations';

select setval(pg_get_serial_sequence('app.personal_data', 'position'), greatest(999, max(d.position))) from app.personal_data as d;
