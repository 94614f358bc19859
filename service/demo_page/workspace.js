// One organization on the page: its projects, members and audit log, their live updates, and the person's permissions.

import { showAuditLog } from "./audit_log.js";
import { Refresh } from "./ballast.js";
import { drawList, element, isTicked, setText } from "./elements.js";
import { Members } from "./members.js";
import { ProjectList } from "./project_list.js";
import { Projects } from "./projects.js";

const MAX_HIGHLIGHTED = 20;

export class Workspace {
  /** @type {BallastClient} */
  #ballast;
  #organization; // as start_session() returns it
  #onAccess;
  #closing = new AbortController();
  #projects = null; // while the person may read them
  #leave = new Map(); // by topic
  #changes = []; // not drawn yet
  #list;
  #members;
  #refresh;

  /** `onAccess()` runs when the person's access may have changed. Call start_session(), then `updateAccess()`. */
  constructor({ ballast, organization, profileId, onAccess }) {
    const { id } = organization;
    const { signal } = this.#closing;
    this.#ballast = ballast;
    this.#organization = organization;
    this.#onAccess = onAccess;
    this.#members = new Members(ballast.supabase, id, profileId, signal);
    this.#refresh = {
      members: new Refresh(() => this.#members.read(), showReadFailure, clearReadFailure),
      audit: new Refresh(() => showAuditLog(ballast.supabase, id, signal), showReadFailure, clearReadFailure),
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
    this.#projects?.rows.reload();
    const topics = this.#topics();
    for (const [topic, leave] of this.#leave) {
      if (topic in topics) continue;
      leave();
      this.#leave.delete(topic);
    }
    for (const [topic, join] of Object.entries(topics)) {
      if (!this.#leave.has(topic)) this.#leave.set(topic, join());
    }
    this.#refresh.members.ask();
    this.#refreshAudit();
  }

  close() {
    this.#closing.abort();
    for (const refresh of Object.values(this.#refresh)) refresh.stop();
    for (const leave of this.#leave.values()) leave();
    for (const list of ["projects", "members", "audit-entries"]) element(list).replaceChildren();
    setText("alert", "");
  }

  /** Functions that join what the person may read. Each returns a function that leaves it. */
  #topics() {
    const { id } = this.#organization;
    return {
      ...(this.#has("projects:read") && { projects: () => this.#followProjects() }),
      ...(this.#has("members:read") && {
        members: () =>
          this.#ballast.listen(id, "members:read", {
            onSubscribed: () => this.#refreshMembers(),
            onBroadcast: (broadcast) => this.#memberChanged(broadcast),
            onRefused: this.#onAccess,
          }),
        presence: () => this.#ballast.present(id, (profileIds) => this.#members.setPresent(profileIds)),
      }),
    };
  }

  #followProjects() {
    const { id } = this.#organization;
    const leave = this.#ballast.listen(id, "projects:read", { onBroadcast: () => this.#refreshAudit() });
    this.#projects = new Projects(this.#ballast, id, {
      onChange: (_, change) => this.#projectsChanged(change),
      onError: showReadFailure,
      onRecovery: clearReadFailure,
      onRefused: this.#onAccess,
    });
    return () => {
      leave();
      this.#projects.rows.close();
      this.#projects = null;
      this.#drawProjects();
    };
  }

  #refreshMembers() {
    this.#refresh.members.ask();
    this.#refreshAudit();
  }

  /** The audit trail itself is not broadcast. Each broadcast change is recorded there in the same transaction. */
  #refreshAudit() {
    if (this.#has("audit:read")) this.#refresh.audit.ask();
  }

  #memberChanged(payload) {
    this.#refreshAudit();
    if (payload.table !== "organization_memberships") return;
    this.#refresh.members.ask();
    if (this.#members.isOwn(payload)) this.#onAccess();
  }

  /** Draws once per frame, even if one statement changed many rows. */
  #projectsChanged(change) {
    this.#refreshAudit();
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
    listen("more", "click", () => this.#projects.rows.more().catch(showReadFailure));
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
    if (this.#ballast.live !== "live") this.#projects?.rows.reload(); // no broadcast will arrive
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
      `This session may do less: ${name} requires a second factor of the role ${role}.`;
    drawPermissions(permissions);
    element("audit").hidden = !this.#has("audit:read");
    element("projects-card").hidden = !this.#has("projects:read");
    element("create").hidden = !this.#showsAction("projects:create");
  }

  #drawProjects() {
    const { rows, hasMore, isLoaded } = this.#projects?.rows ?? { rows: [], hasMore: false, isLoaded: false };
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
