// One organization on the page: its parts, what tells them of changes, and what this person may do with them.

import { showAuditLog } from "./audit_log.js";
import { drawList, element, isTicked, showText } from "./elements.js";
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

  /** `onAccess()` runs when the person's access may have changed: ask start_session(), and `permit()` what it says. */
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
      projects: new Refresh(() => this.#projects.reload(), showReadError, clearReadError),
      members: new Refresh(() => this.#members.read(), showReadError, clearReadError),
      audit: new Refresh(() => showAuditLog(supabase, id, signal), showReadError, clearReadError),
    };
    this.#listenToPage();
    this.permit(organization);
  }

  get organizationId() {
    return this.#organization.id;
  }

  /** Shows what the person may do now, listens to what they may read now, and reads it. */
  permit(organization) {
    this.#organization = organization;
    this.#drawAccess();
    this.#drawProjects();
    const topics = this.#topics();
    this.#live.keep(Object.keys(topics));
    for (const [topic, listeners] of Object.entries(topics)) {
      this.#live.join(topic, { onRefused: this.#onAccess, ...listeners });
    }
    this.#refresh.members.ask();
    this.#askProjects();
  }

  close() {
    this.#closing.abort();
    for (const refresh of Object.values(this.#refresh)) refresh.stop();
    this.#live.keep([]);
    for (const list of ["projects", "members", "audit-entries"]) element(list).replaceChildren();
    showText("alert", "");
  }

  /** What to listen to. functions/4_realtime/broadcast.sql broadcasts it, policies/realtime.messages.sql says who may listen. */
  #topics() {
    const name = `org:${this.#organization.id}`;
    const topics = {};
    if (this.#has("projects:read")) {
      const onBroadcast = (payload) => this.#projectChanged(payload);
      topics[`${name}:projects:read`] = { onSubscribed: () => this.#askProjects(), onBroadcast };
    }
    if (this.#has("members:read")) {
      const onBroadcast = (payload) => this.#memberChanged(payload);
      topics[`${name}:members:read`] = { onSubscribed: () => this.#askMembers(), onBroadcast };
      const onPresence = (keys) => this.#members.setPresent(keys);
      topics[`${name}:presence`] = { presenceKey: this.#profileId, onPresence };
    }
    return topics;
  }

  #askProjects() {
    if (this.#has("projects:read")) this.#refresh.projects.ask();
    this.#askAudit();
  }

  #askMembers() {
    this.#refresh.members.ask();
    this.#askAudit();
  }

  /** The audit trail is not broadcast. What is, it records in the same transaction. */
  #askAudit() {
    if (this.#has("audit:read")) this.#refresh.audit.ask();
  }

  #projectChanged(payload) {
    this.#projects.receive(payload);
    this.#askAudit();
  }

  #memberChanged(payload) {
    this.#askAudit();
    if (payload.table !== "organization_memberships") return;
    this.#refresh.members.ask();
    if (this.#members.isOwn(payload)) this.#onAccess();
  }

  /** Draws once a frame, however many changes one statement of somebody's made. */
  #projectsChanged(change) {
    this.#changes.push(change);
    if (this.#changes.length === 1) requestAnimationFrame(() => this.#showChanges());
  }

  #showChanges() {
    const changes = this.#changes.splice(0).filter(Boolean);
    if (this.#closing.signal.aborted) return;
    this.#drawProjects();
    for (const { id } of changes.slice(-MAX_HIGHLIGHTED)) this.#list.highlight(id);
    if (changes.length > 1) showText("status", `${changes.length} projects have changed.`);
    if (changes.length !== 1) return;
    const [{ before, after }] = changes;
    showText("status", `${(after ?? before).title} was ${after ? (before ? "changed" : "added") : "deleted"}.`);
  }

  // --- what the person does

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
    listen("more", "click", () => this.#projects.loadMore().catch(showReadError));
    listen("offer-all", "change", () => {
      this.#drawAccess();
      this.#drawProjects();
    });
  }

  /** Runs a write and says what became of it. Returns whether a row was written. */
  async #write(permission, write) {
    const { name } = this.#organization;
    const lacks = ` It needs the permission ${permission}, which you do not have in ${name} now.`;
    const needed = this.#has(permission) ? "" : lacks;
    let rows = 0;
    let refusal = "";
    try {
      rows = await write();
      // Row level security raises for an insert only. Rows one may not update or delete, the statement does not find.
      if (!rows) refusal = `The database changed no row.${needed || " Perhaps somebody was faster."}`;
    } catch (error) {
      refusal = `The database refused${error.code ? ` (${error.code})` : ""}: ${error.message}.${needed}`;
    }
    if (this.#closing.signal.aborted) return false;
    showText("alert", refusal);
    if (rows) this.#askAudit();
    if (this.#live.state !== "live") this.#refresh.projects.ask(); // nobody else will tell us
    return rows > 0;
  }

  // --- what the page shows

  #has(permission) {
    return this.#organization.permissions.includes(permission);
  }

  #offers = (permission) => isTicked("offer-all") || this.#has(permission);

  #drawAccess() {
    const { name, role, permissions, limited_by: limit } = this.#organization;
    element("role").textContent = role;
    element("limited").hidden = limit !== "second_factor";
    element("limited").textContent =
      `This session reads only: ${name} asks its owners and admins for a second factor, and this session has none.`;
    drawPermissions(permissions);
    element("audit").hidden = !this.#has("audit:read");
    element("projects-card").hidden = !this.#has("projects:read");
    element("create").hidden = !this.#offers("projects:create");
  }

  #drawProjects() {
    const { rows, hasMore, isLoaded } = this.#projects;
    const list = element("projects");
    const hadFocus = list.contains(document.activeElement);
    this.#list.draw(rows, this.#offers);
    if (hadFocus && !list.contains(document.activeElement)) element("projects-title").focus(); // its row is gone
    element("project-count").textContent = isLoaded
      ? hasMore
        ? `Newest ${rows.length}`
        : `${rows.length} in all`
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

function showReadError(error) {
  showText("alert", `The database could not be read: ${error.message}`);
}

function clearReadError() {
  showText("alert", "");
}
