-- Two functions of the service's jobs answer more than they did: functions/62_job_runs.sql and 96_jobs.sql make them again. A service of
-- the version before takes the new answers for none, and goes on at its next turn.

-- squawk-ignore ban-drop-function
drop function if exists public.record_job(text, jsonb, boolean, integer), app.record_job(text, jsonb, boolean, integer);
-- squawk-ignore ban-drop-function
drop function if exists public.retry_due_event(), app.retry_due_event();
