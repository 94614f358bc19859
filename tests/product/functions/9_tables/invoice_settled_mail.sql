-- A kind of mail of the product: its data, when it is sent. Nothing is sent for an invoice that is open again.
create or replace function app.invoice_settled_data(mail app.email_outbox) returns table (number text, amount numeric)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select i.number, i.amount from public.invoices as i
  where i.id::text = mail.data ->> 'invoice_id' and i.is_settled;
$$;
comment on function app.invoice_settled_data is 'Data of the mail invoice_settled: no row if the invoice is not settled.';

select app.register_mail_kind('invoice_settled', 'app.invoice_settled_data', example => '{"number": "2026-17"}');
