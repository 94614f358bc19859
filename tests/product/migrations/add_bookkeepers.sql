-- Bookkeepers read invoices and write them off. Like admins they need a second factor, and act as viewers without one.
insert into public.roles (key, name, rank, needs_second_factor, fallback, may_be_invited, may_own) values
('bookkeeper', 'Bookkeeper', 23, true, 'viewer', true, false);
insert into app.clerk_roles (key, role) values ('org:bookkeeper', 'bookkeeper');
insert into public.role_permissions (role, permission) values
('bookkeeper', 'members:read'), ('bookkeeper', 'invoices:read'), ('bookkeeper', 'invoices:write_off');
