-- functions/96_ops_health.sql makes it again. How many projects a tenant has is not a matter of every product's.
-- squawk-ignore ban-drop-view
drop view if exists ops.tenants;
