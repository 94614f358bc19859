// The latest entries of one organization's audit log.

import { copyOf, drawList, element, fill, momentOf } from "./elements.js";

const ROWS = 8;

/** Reads and draws them, unless `signal` comes first. */
export async function showAuditLog(supabase, organizationId, signal) {
  const { data } = await supabase
    .from("audit_logs")
    .select("id, action, created_at, profile:profiles(full_name)")
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
    draw: (item, { action, created_at: createdAt, profile }) => {
      const who = profile?.full_name ?? "The system, or a former member";
      fill(item, { what: `${who}: ${action}`, when: momentOf(createdAt) });
    },
  });
}
