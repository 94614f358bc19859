-- What {{ table.words }} need from functions: a stamp, an author, broadcasts and the audit trail.

create or replace trigger touch before update on public.{{ table.name }}
for each row when (old.* is distinct from new.*) execute function app.touch();

alter table public.{{ table.name }} alter column created_by set default app.user_id();

select app.broadcast('public.{{ table.name }}', '{{ table.name }}:read');

select app.audit('public.{{ table.name }}'
{%- if table.resource %}, '{{ table.resource }}'{% endif %}
{%- if table.headline %}, named => '{{ "{" }}{{ table.headline }}{{ "}" }}'{% endif %});
