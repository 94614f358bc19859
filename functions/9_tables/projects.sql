-- Sets up projects: updated_at, the default author, broadcasts, the audit trail, and the entry in the registry of personal data.

create or replace trigger touch before update on public.projects
for each row when (old.* is distinct from new.*) execute function app.touch();

alter table public.projects alter column created_by set default app.user_id();

select app.broadcast('public.projects', 'projects:read');

select app.audit('public.projects', named => '{title}');

delete from app.personal_data
where relation = 'public.projects';
insert into app.personal_data (
  relation, path, subject, domain, exported, ordered_by, made_at, erasure, replacements, erased_by,
  category, data, purpose, lawful_basis, retention_period, expired, retention
)
values
(
  'public.projects', 'created_by', 't.created_by = person.id', 'projects',
  '{t.id,t.organization_id,t.title,t.description,t.status,t.metadata,t.created_at,t.updated_at}', '{id}', 't.created_at',
  'set null', null, null,
  'Your work', 'That you created a project', 'To show the members of the organization who created it', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as the project exists: at most 30 days longer than its organization'
);
