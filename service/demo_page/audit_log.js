// The latest entries of one organization's audit log.

import { copyOf, drawList, element, fill, momentOf } from "./elements.js";

const ROWS = 8;

/** Reads and draws them, unless `signal` comes first. `nameOf(profileId)` says who somebody is. */
export async function showAuditLog(supabase, organizationId, nameOf, signal) {
  const { data } = await supabase
    .from("audit_logs")
    .select("id, action, user_id, created_at")
    .eq("organization_id", organizationId)
    .order("created_at", { ascending: false })
    .limit(ROWS)
    .abortSignal(signal)
    .throwOnError();
  if (signal.aborted) return;
  element("no-audit-entries").hidden = data.length > 0;
  drawList(element("audit-entries"), data, {
    key: (entry) => entry.id,
    make: () => copyOf("audit-row"),
    draw: (item, { action, user_id: profileId, created_at: createdAt }) => {
      fill(item, { what: `${nameOf(profileId) ?? "The system"}: ${action}`, when: momentOf(createdAt) });
    },
  });
}
