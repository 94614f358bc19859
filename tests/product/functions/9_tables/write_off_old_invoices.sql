-- The job write-off-old-invoices: its step, which only the service may call, and its schedule.
create or replace function public.write_off_old_invoices(days integer) returns integer
language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
declare
  written_off integer;
begin
  perform app.refuse_clerk_tokens();
  update public.invoices as i set amount = 0, is_settled = true
  where i.id in (
    select o.id from public.invoices as o
    where not o.is_settled and o.created_at < now() - make_interval(days => days)
    limit 1000
  );
  get diagnostics written_off = row_count;
  return written_off;
end;
$$;
comment on function public.write_off_old_invoices is
'Writes off at most 1,000 unsettled invoices of that age, and returns how many. Definer: the service has no privilege on tables.';
grant execute on function public.write_off_old_invoices(integer) to service_role;

select app.schedule_job('write-off-old-invoices', interval '1 day', '17 3 * * *', 'Writes off old unsettled invoices.');
