-- The database's figures for the service's /metrics: numbers, and the status of each row of ops.health.

create or replace function public.service_metrics() returns jsonb
language plpgsql stable parallel unsafe security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform app.refuse_clerk_tokens();
  return jsonb_build_object(
    'backup_age_seconds', (
      select extract(epoch from now() - max(b.created_at)) from public.backup_logs as b where b.status = 'completed'
    ),
    'drill_age_seconds', (select extract(epoch from now() - max(b.drilled_at)) from public.backup_logs as b where b.drill_passed),
    'webhook_failures', (select count(*) from app.webhook_events as e where e.outcome = 'failed'),
    'erasures_waiting', (select count(*) from app.erasure_log as l where l.state <> 'complete'),
    'mail_queued', (select h.queued from ops.mail_health as h),
    'mail_oldest_seconds', (select extract(epoch from now() - h.oldest_queued_at) from ops.mail_health as h),
    'health', (select jsonb_object_agg(h.subject, array_position('{green,yellow,red}', h.status) - 1) from ops.health as h)
  );
end;
$$;
comment on function public.service_metrics is
'Figures for /metrics by name, null if there is nothing to measure yet. health has 0 (green), 1 (yellow) or 2 (red) per subject. Definer: the service has no privilege on tables.';

grant execute on function public.service_metrics() to service_role;
