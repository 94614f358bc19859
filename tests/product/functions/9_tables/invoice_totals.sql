-- A view of the product: what each organization has invoiced, and what is settled. Its readers are those of the invoices.
create or replace view public.invoice_totals with (security_invoker = true) as
select
  i.organization_id,
  count(*) as invoices,
  sum(i.amount) as amount,
  coalesce(sum(i.amount) filter (where i.is_settled), 0) as settled
from public.invoices as i
group by i.organization_id;
comment on view public.invoice_totals is 'The invoiced and the settled amount of each organization.';
grant select on public.invoice_totals to authenticated;
