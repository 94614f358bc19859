-- A function that clients call. The policies of public.invoices decide who may change an invoice.
create or replace function public.settle_invoice(invoice uuid) returns boolean
language sql volatile parallel unsafe security invoker set search_path = pg_catalog, pg_temp
as $$
  with settled as (
    update public.invoices as i set is_settled = true where i.id = settle_invoice.invoice returning i.id
  )
  select exists (select from settled);
$$;
comment on function public.settle_invoice is 'Settles an invoice. False if there is no such invoice, or if the caller may not change it.';
grant execute on function public.settle_invoice(uuid) to authenticated;
