-- The service counts the webhook deliveries that it refuses: ops.webhook_health and ops.mail_health report them.

create or replace function public.record_refused_deliveries(
  sender text, reason text, deliveries integer, skew_seconds double precision default null
) returns void
language sql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
  select app.refuse_clerk_tokens();

  insert into app.refused_deliveries as r (sender, reason, hour, deliveries, skew)
  values (
    record_refused_deliveries.sender, record_refused_deliveries.reason, date_trunc('hour', now()), record_refused_deliveries.deliveries,
    make_interval(secs => record_refused_deliveries.skew_seconds)
  )
  on conflict on constraint refused_deliveries_pkey do update
  set deliveries = r.deliveries + excluded.deliveries, skew = excluded.skew, last_at = now();
$$;
comment on function public.record_refused_deliveries is
'For the service: adds refused deliveries to the counts of this hour. sender is clerk or resend; reason is signature, or timestamp with skew_seconds. Definer: the service has no privilege on tables.';

grant execute on function public.record_refused_deliveries(text, text, integer, double precision) to service_role;
