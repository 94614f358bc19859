-- Where personal data is stored, and the state of erasures, for administrators in the SQL editor.

create or replace view ops.erasures with (security_invoker) as
select
  l.receipt, l.state, l.requested_by, l.requested_at, l.erased_at, l.clerk_deleted_at, l.stored_at, l.attempts, l.next_attempt_at,
  l.error, l.counts, (
    select count(*) from app.erasure_failures as f
    where f.receipt = l.receipt
  ) as skipped
from app.erasure_log as l
order by l.state = 'complete', l.requested_at desc;
comment on view ops.erasures is 'Erasures, incomplete ones first. `ballast person resume` continues them.';

create or replace view ops.erasure_failures with (security_invoker) as
select f.receipt, f.relation, f.key, f.error, f.attempts, f.failed_at, f.next_attempt_at
from app.erasure_failures as f
order by f.failed_at desc;
comment on view ops.erasure_failures is
'Rows that an erasure could not change, by table and primary key, with the SQLSTATE. Remove the cause, then run `ballast person resume`.';

create or replace view ops.personal_data_map with (security_invoker) as
select
  d.relation, d.path, d.category, d.data, d.purpose, d.lawful_basis, d.erasure, d.domain as exported_as,
  concat_ws(' ', app.retention_period(d)::text, d.retention) as retention
from app.personal_data as d
order by d.position;
comment on view ops.personal_data_map is 'Where personal data is stored, with purpose, lawful basis and retention, and what an erasure does to it.';
