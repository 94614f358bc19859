-- Writes off an invoice. Members may not change an amount to 0 with a write, so a function does it for those with the permission.
create or replace function app.write_off_invoice(invoice uuid) returns void
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update public.invoices as i set amount = 0, is_settled = true
  where i.id = invoice and i.organization_id = any(app.org_ids('invoices:write_off'));
  if not found then
    raise sqlstate 'PT404' using message = 'There is no such invoice, or you may not write it off.';
  end if;
end;
$$;
comment on function app.write_off_invoice is
'Writes off an invoice. Definer: the policies allow no such write. The caller learns: whether they may write it off.';

create or replace function public.write_off_invoice(invoice uuid) returns void
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  select app.write_off_invoice(invoice);
$$;
comment on function public.write_off_invoice is 'Writes off an invoice. Raises PT404 unless the caller may: invoices:write_off.';

grant execute on function app.write_off_invoice(uuid), public.write_off_invoice(uuid) to authenticated;
