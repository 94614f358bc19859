{% for parent in keyless %}
-- References to {{ parent }} include organization_id, so they need this key.
-- While it is created, writes to {{ parent }} wait.
-- If the table is large, create this index before the release with `create unique index concurrently`.
-- squawk-ignore require-concurrent-index-creation
create unique index if not exists {{ parent }}_organization_id_id_idx on public.{{ parent }}
{{- "\n" if parent | length > 30 else " " }}(organization_id, id);

{% endfor %}
-- {{ table.title }} belong to an organization, like projects. public.role_permissions has each role's permissions on them.
create table public.{{ table.name }} (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  created_by uuid references public.profiles on delete set null,
{% for column in table.columns %}
  {{ column.definition }},
{% endfor %}
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
{% for constraint in table.constraints %}
  {{ constraint }}{{ "" if loop.last else "," }}
{% endfor %}
);
comment on table public.{{ table.name }} is '{{ table.title }} of an organization.';
comment on column public.{{ table.name }}.id is 'Our id.';
comment on column public.{{ table.name }}.organization_id is 'The organization it belongs to; never changes.';
comment on column public.{{ table.name }}.created_by is 'The caller who created it. Null after this person was erased.';
{% for column in table.columns %}
comment on column public.{{ table.name }}.{{ column.name }} is '{{ column.comment }}';
{% endfor %}
comment on column public.{{ table.name }}.created_at is 'When it was created.';
comment on column public.{{ table.name }}.updated_at is 'When a value last changed.';
create index {{ table.name }}_organization_id_created_at_idx on public.{{ table.name }}
{{- "\n" if table.name | length > 24 else " " }}(organization_id, created_at desc);
{% for column in table.columns if column.parent %}
create index {{ table.name }}_{{ column.name }}_idx on public.{{ table.name }}
{{- "\n" if table.name | length > 24 else " " }}(organization_id, {{ column.name }});
{% endfor %}
create index {{ table.name }}_created_by_idx on public.{{ table.name }} (created_by);
alter table public.{{ table.name }} enable row level security, force row level security;

insert into public.role_permissions (role, permission) values
{% for action, holders in roles.items() %}
{% for role in holders %}
('{{ role }}', '{{ table.name }}:{{ action }}'){{ ";" if loop.last and action == "delete" else "," }}
{% endfor %}
{% endfor %}
