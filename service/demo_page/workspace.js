// One organization on the page: its projects, members and audit log, their live updates, and the person's permissions.

import { showAuditLog } from "./audit_log.js";
import { drawList, element, isTicked, setText } from "./elements.js";
import { Members } from "./members.js";
import { ProjectList } from "./project_list.js";
import { Projects } from "./projects.js";
import { Refresh } from "./refresh.js";

const MAX_HIGHLIGHTED = 20;

export class Workspace {
  #live;
  #organization; // as start_session() returns it
  #profileId;
  #onAccess;
  #closing = new AbortController();
  #projects;
  #changes = []; // not drawn yet
  #list;
  #members;
  #refresh;

  /** `onAccess()` runs when the person's access may have changed. Call start_session(), then `updateAccess()`. */
  constructor({ supabase, live, organization, profileId, onAccess }) {
    const { id } = organization;
    const { signal } = this.#closing;
    this.#live = live;
    this.#organization = organization;
    this.#profileId = profileId;
    this.#onAccess = onAccess;
    this.#projects = new Projects(supabase, id, (change) => this.#projectsChanged(change), signal);
    this.#members = new Members(supabase, id, profileId, signal);
    this.#refresh = {
      projects: new Refresh(() => this.#projects.reload(), showReadFailure, clearReadFailure),
      members: new Refresh(() => this.#members.read(), showReadFailure, clearReadFailure),
      audit: new Refresh(() => showAuditLog(supabase, id, signal), showReadFailure, clearReadFailure),
    };
    this.#listenToPage();
    this.updateAccess(organization);
  }

  get organizationId() {
    return this.#organization.id;
  }

  /** Applies the person's current permissions: shows the allowed actions, joins the readable topics, reads the data. */
  updateAccess(organization) {
    this.#organization = organization;
    this.#drawAccess();
    this.#drawProjects();
    const topics = this.#topics();
    this.#live.leaveOthers(Object.keys(topics));
    for (const [topic, listeners] of Object.entries(topics)) {
      this.#live.join(topic, { onRefused: this.#onAccess, ...listeners });
    }
    this.#refresh.members.ask();
    this.#refreshProjects();
  }

  close() {
    this.#closing.abort();
    for (const refresh of Object.values(this.#refresh)) refresh.stop();
    this.#live.leaveOthers([]);
    for (const list of ["projects", "members", "audit-entries"]) element(list).replaceChildren();
    setText("alert", "");
  }

  /** The topics that the person may read: functions/4_realtime/broadcast.sql, policies/realtime.messages.sql. */
  #topics() {
    const name = `org:${this.#organization.id}`;
    const topics = {};
    if (this.#has("projects:read")) {
      const onBroadcast = (payload) => this.#projectChanged(payload);
      topics[`${name}:projects:read`] = { onSubscribed: () => this.#refreshProjects(), onBroadcast };
    }
    if (this.#has("members:read")) {
      const onBroadcast = (payload) => this.#memberChanged(payload);
      topics[`${name}:members:read`] = { onSubscribed: () => this.#refreshMembers(), onBroadcast };
      const onPresence = (keys) => this.#members.setPresent(keys);
      topics[`${name}:presence`] = { presenceKey: this.#profileId, onPresence };
    }
    return topics;
  }

  #refreshProjects() {
    if (this.#has("projects:read")) this.#refresh.projects.ask();
    this.#refreshAudit();
  }

  #refreshMembers() {
    this.#refresh.members.ask();
    this.#refreshAudit();
  }

  /** The audit trail itself is not broadcast. Each broadcast change is recorded there in the same transaction. */
  #refreshAudit() {
    if (this.#has("audit:read")) this.#refresh.audit.ask();
  }

  #projectChanged(payload) {
    this.#projects.receive(payload);
    this.#refreshAudit();
  }

  #memberChanged(payload) {
    this.#refreshAudit();
    if (payload.table !== "organization_memberships") return;
    this.#refresh.members.ask();
    if (this.#members.isOwn(payload)) this.#onAccess();
  }

  /** Draws once per frame, even if one statement changed many rows. */
  #projectsChanged(change) {
    this.#changes.push(change);
    if (this.#changes.length === 1) requestAnimationFrame(() => this.#showChanges());
  }

  #showChanges() {
    const changes = this.#changes.splice(0).filter(Boolean);
    if (this.#closing.signal.aborted) return;
    this.#drawProjects();
    for (const { id } of changes.slice(-MAX_HIGHLIGHTED)) this.#list.highlight(id);
    if (changes.length > 1) setText("status", `${changes.length} projects have changed.`);
    if (changes.length !== 1) return;
    const [{ before, after }] = changes;
    setText("status", `${(after ?? before).title} was ${after ? (before ? "changed" : "added") : "deleted"}.`);
  }

  // --- the person's actions

  #listenToPage() {
    const listen = (id, event, listener) => {
      element(id).addEventListener(event, listener, { signal: this.#closing.signal });
    };
    this.#list = new ProjectList(element("projects"), {
      rename: ({ id }, title) => this.#write("projects:update", () => this.#projects.update(id, { title })),
      setStatus: ({ id }, status) => this.#write("projects:update", () => this.#projects.update(id, { status })),
      delete: ({ id }) => this.#write("projects:delete", () => this.#projects.delete(id)),
    });
    listen("create", "submit", async (event) => {
      event.preventDefault();
      const form = event.target;
      const title = form.elements.title.value.trim();
      if (await this.#write("projects:create", () => this.#projects.create(title))) form.reset();
    });
    listen("more", "click", () => this.#projects.more().catch(showReadFailure));
    listen("offer-all", "change", () => {
      this.#drawAccess();
      this.#drawProjects();
    });
  }

  /** Runs a write and shows a refusal. Returns whether a row was written. */
  async #write(permission, write) {
    const { name } = this.#organization;
    const lacks = ` This requires the permission ${permission}, which you do not have in ${name}.`;
    const reason = this.#has(permission) ? "" : lacks;
    let rows = 0;
    let refusal = "";
    try {
      rows = await write();
      // Row level security raises an error only for inserts. An update or delete does not find forbidden rows.
      if (!rows) refusal = `The database changed no row.${reason || " Someone else may have deleted it."}`;
    } catch (error) {
      refusal = `The database refused${error.code ? ` (${error.code})` : ""}: ${error.message}.${reason}`;
    }
    if (this.#closing.signal.aborted) return false;
    setText("alert", refusal);
    if (rows) this.#refreshAudit();
    if (this.#live.state !== "live") this.#refresh.projects.ask(); // no broadcast will arrive
    return rows > 0;
  }

  // --- drawing

  #has(permission) {
    return this.#organization.permissions.includes(permission);
  }

  #showsAction = (permission) => isTicked("offer-all") || this.#has(permission);

  #drawAccess() {
    const { name, role, permissions, limited_by: limit } = this.#organization;
    element("role").textContent = role;
    element("limited").hidden = limit !== "second_factor";
    element("limited").textContent =
      `This session can only read: ${name} requires a second factor of its owners and admins.`;
    drawPermissions(permissions);
    element("audit").hidden = !this.#has("audit:read");
    element("projects-card").hidden = !this.#has("projects:read");
    element("create").hidden = !this.#showsAction("projects:create");
  }

  #drawProjects() {
    const { rows, hasMore, isLoaded } = this.#projects;
    const list = element("projects");
    const hadFocus = list.contains(document.activeElement);
    this.#list.draw(rows, this.#showsAction);
    if (hadFocus && !list.contains(document.activeElement)) element("projects-title").focus(); // its row is gone
    element("project-count").textContent = isLoaded
      ? hasMore
        ? `Newest ${rows.length}`
        : `${rows.length} in total`
      : "";
    element("no-projects").hidden = !isLoaded || rows.length > 0;
    element("more").hidden = !hasMore;
  }
}

/** A line for each resource: "projects: create, read". */
function drawPermissions(permissions) {
  const actions = new Map();
  for (const permission of permissions) {
    const [resource, action] = permission.split(":");
    actions.set(resource, [...(actions.get(resource) ?? []), action]);
  }
  drawList(element("permissions"), [...actions], {
    key: ([resource]) => resource,
    make: () => document.createElement("li"),
    draw: (item, [resource, allowed]) => (item.textContent = `${resource}: ${allowed.join(", ")}`),
  });
}

function showReadFailure(error) {
  setText("alert", `The database could not be read: ${error.message}`);
}

function clearReadFailure() {
  setText("alert", "");
}
