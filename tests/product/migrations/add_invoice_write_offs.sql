-- Writing off an invoice needs a permission of its own. Both roles need a second factor, so the permission does, too.
insert into public.role_permissions (role, permission) values
('owner', 'invoices:write_off'), ('admin', 'invoices:write_off');
