-- Behaviour of {{ table.plural }}: updated_at, author, broadcasts, audit trail, registry of personal data.

create or replace trigger touch before update on public.{{ table.name }}
for each row when (old.* is distinct from new.*) execute function app.touch();

alter table public.{{ table.name }} alter column created_by set default app.user_id();

select app.broadcast('public.{{ table.name }}', '{{ table.name }}:read');

select app.audit('public.{{ table.name }}'
{%- if table.resource %}, '{{ table.resource }}'{% endif %}
{%- if table.title_column %}, named => '{{ "{" }}{{ table.title_column }}{{ "}" }}'{% endif %});

delete from app.personal_data
where relation = 'public.{{ table.name }}';
insert into app.personal_data (
  relation, path, subject, domain, exported, ordered_by, made_at, erasure, replacements, erased_by,
  category, data, purpose, lawful_basis, retention_period, expired, retention
)
values
(
  'public.{{ table.name }}', 'created_by', 't.created_by = person.id', '{{ table.name }}',
  array[{{ table.exported_columns | wrap(10, "  ") }}],
  '{id}', 't.created_at', 'set null', null, null,
  'Your work', 'Which {{ table.plural }} you created',
  'To show the members of the organization who created it', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as they exist: at most 30 days longer than their organization'
);
