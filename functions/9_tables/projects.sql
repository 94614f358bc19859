-- What projects need from functions: a stamp, an author, broadcasts and the audit trail.

create or replace trigger touch before update on public.projects
for each row when (old.* is distinct from new.*) execute function app.touch();

alter table public.projects alter column created_by set default app.user_id();

select app.broadcast('public.projects', 'projects:read');

select app.audit('public.projects', named => '{title}');
