// The latest entries of one organization's audit trail, in plain words.

import { cloneTemplate, drawList, element, fill, formatTime } from "./elements.js";

const ROWS = 8;
const COLUMNS = "id, user_id, actor, impersonator, action, resource_type, resource_id, metadata, changes, created_at";
const ERASED = "erased"; // functions/5_personal_data/erase_content.sql replaces an id by this
const ACTORS = { clerk: "Clerk", service: "The service", system: "The system" };

/**
 * Reads and draws them, unless `signal` is aborted first.
 * @param {Client} supabase
 */
export async function showAuditLog(supabase, organizationId, signal) {
  const { data: entries } = await supabase
    .from("audit_logs")
    .select(COLUMNS)
    .eq("organization_id", organizationId)
    .order("created_at", { ascending: false })
    .order("id", { ascending: false })
    .limit(ROWS)
    .abortSignal(signal)
    .throwOnError();
  const names = await fetchNames(entries, supabase, signal);
  if (signal.aborted) return;
  element("no-audit-entries").hidden = entries.length > 0;
  drawList(element("audit-entries"), entries, {
    key: (entry) => entry.id,
    make: () => cloneTemplate("audit-row"),
    draw: (item, entry) => {
      fill(item, { what: `${nameActor(entry, names)} ${describe(entry, names)}`, when: formatTime(entry.created_at) });
    },
  });
}

/**
 * The names of actors and affected people, by id. The trail outlives people, so it has no foreign keys to embed by.
 * @param {Client} supabase
 */
async function fetchNames(entries, supabase, signal) {
  const ids = entries.flatMap(({ user_id: id, action, metadata }) => [
    id,
    action.startsWith("member.") && metadata.user_id,
  ]);
  const { data } = await supabase
    .from("profiles")
    .select("id, full_name, email")
    .in("id", [...new Set(ids.filter((id) => id && id !== ERASED))])
    .abortSignal(signal)
    .throwOnError();
  return new Map(data.map(({ id, full_name: name, email }) => [id, name ?? email ?? "A member"]));
}

function nameActor({ user_id: id, actor, impersonator }, names) {
  const person = actor ? (ACTORS[actor] ?? actor) : id ? (names.get(id) ?? "A former member") : "An erased person";
  return impersonator ? `${impersonator} (on behalf of ${person})` : person;
}

// Descriptions of specific actions. If one returns nothing, VERBS describes the action.
const ACTIONS = {
  "project.updated": ({ before, after, resource }) =>
    describeRename("project", before.title, after.title) ?? STATUS[after.status]?.(resource),
  "organization.updated": ({ before, after }) => describeRename("organization", before.name, after.name),
  "member.joined": ({ member, role }) => `added ${member} as ${role}`,
  "member.role_changed": ({ member, before, after }) =>
    after.role && `changed the role of ${member} from ${before.role} to ${after.role}`,
  "member.left": ({ member }) => `removed ${member}`,
  "member.removal_requested": ({ member }) => `asked to remove ${member}`,
  "invitation.requested": ({ role }) => `asked to invite a person as ${role}`,
  "invitation.created": ({ role }) => `invited a person as ${role}`,
  "invitation.deleted": ({ role }) => `revoked an invitation as ${role}`,
};
const STATUS = {
  archived: (project) => `archived ${project}`,
  active: (project) => `restored ${project}`,
};
const VERBS = {
  created: ({ resource }) => `created ${resource}`,
  updated: ({ resource, columns }) => `changed ${columns} of ${resource}`,
  deleted: ({ resource }) => `deleted ${resource}`,
};

/** Describes an entry: "renamed project Apollo to Gemini". */
function describe({ action, resource_type: type, resource_id: id, metadata, changes }, names) {
  const { before = {}, after = {}, redacted = [] } = changes ?? {};
  const facts = {
    before,
    after,
    resource: [type, metadata.title ?? metadata.name ?? id].filter(Boolean).join(" "),
    member: names.get(metadata.user_id) ?? "a former member",
    role: metadata.role,
    columns: [...Object.keys(after), ...redacted].map((column) => column.replaceAll("_", " ")).join(", "),
  };
  const verb = changes && VERBS[action.split(".")[1]]; // an entry without changes was logged by a client or the service
  return ACTIONS[action]?.(facts) || verb?.(facts) || `logged ${action} about ${facts.resource}`;
}

function describeRename(type, before, after) {
  return after === undefined ? undefined : `renamed ${type} ${before} to ${after}`;
}
