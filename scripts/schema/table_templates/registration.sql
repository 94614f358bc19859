
insert into app.personal_data (
  relation, path, subject, domain, exported, ordered_by, made_at, erasure, replacements, erased_by,
  category, data, purpose, lawful_basis, kept_for, expired, retention
)
values
(
  'public.{{ table.name }}', 'created_by', 't.created_by = person.id', '{{ table.name }}',
  array[{{ table.exported | filled(10, "  ") }}],
  '{id}', 't.created_at', 'set null', null, null,
  'Your work', 'Which {{ table.words }} you created',
  'To show the members of the organization who did', 'Contract, Art. 6(1)(b) GDPR',
  null, null, 'as long as they exist: at most 30 days longer than their organization'
);
