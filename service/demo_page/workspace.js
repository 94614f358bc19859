// One organization on the page: its projects, its members and who is here, its audit log; and what this person may do there.

import { copyOf, drawList, element, fill, initialsOf, momentOf, say } from "./elements.js";
import { ProjectList } from "./project_list.js";
import { Projects } from "./projects.js";
import { Refresh } from "./refresh.js";

const AUDIT_ROWS = 8;
const ROLES = ["owner", "admin", "member", "viewer"];

export class Workspace {
  #supabase;
  #live;
  #organization; // as start_session() returns it
  #profileId;
  #onAccess;
  #closing = new AbortController();
  #projects;
  #list;
  #refresh;
  #members = [];
  #present = new Set(); // profile ids
  #failing = false;

  /** `onAccess()` runs when this person's access may have changed: call start_session() and then `permit()`. */
  constructor({ supabase, live, organization, profileId, onAccess }) {
    this.#supabase = supabase;
    this.#live = live;
    this.#organization = organization;
    this.#profileId = profileId;
    this.#onAccess = onAccess;
    this.#projects = new Projects(supabase, organization.id, (change) => this.#projectsChanged(change));
    this.#refresh = {
      projects: this.#refreshing(() => this.#projects.reload()),
      members: this.#refreshing(() => this.#readMembers()),
      audit: this.#refreshing(() => this.#readAuditLog()),
    };
    this.#listenToPage();
    this.permit(organization);
  }

  get organizationId() {
    return this.#organization.id;
  }

  /** Shows what the person may do now, and listens to what they may read now. */
  permit(organization) {
    this.#organization = organization;
    this.#drawAccess();
    this.#drawProjects();
    const { id } = organization;
    const topics = {
      [`org:${id}`]: this.#topic("projects", (broadcast) => this.#projects.receive(broadcast)),
      ...(this.#has("members:read") && { [`org:${id}:members:read`]: this.#topic("members", (each) => this.#membershipChanged(each)) }),
      ...(this.#has("audit:read") && { [`org:${id}:audit:read`]: this.#topic("audit", () => this.#refresh.audit.ask()) }),
      [`org:${id}:presence`]: this.#presenceTopic(),
    };
    this.#live.keep(Object.keys(topics));
    for (const [topic, options] of Object.entries(topics)) this.#live.join(topic, options);
    element("audit").hidden = !this.#has("audit:read");
    this.readAgain();
  }

  /** Reads everything anew. */
  readAgain() {
    this.#refresh.projects.ask();
    this.#refresh.members.ask();
    if (this.#has("audit:read")) this.#refresh.audit.ask();
  }

  close() {
    this.#closing.abort();
    this.#projects.close();
    for (const refresh of Object.values(this.#refresh)) refresh.stop();
    this.#live.keep([]);
    for (const list of ["projects", "members", "audit-entries"]) element(list).replaceChildren();
    say("alert", "");
  }

  // --- what the database tells

  /** A topic on which the database broadcasts. Whoever joins it reads first what was written before. */
  #topic(subject, receive) {
    return {
      listen: (channel) => {
        for (const event of ["INSERT", "UPDATE", "DELETE"]) {
          channel.on("broadcast", { event }, ({ payload }) => receive(payload));
        }
      },
      onSubscribed: () => this.#refresh[subject].ask(),
      onRefused: this.#onAccess,
    };
  }

  /** Everybody says here that they are there: which profile they are is their own word, for names and dots it is enough. */
  #presenceTopic() {
    return {
      config: { presence: { key: this.#profileId } },
      listen: (channel) => {
        channel.on("presence", { event: "sync" }, () => {
          this.#present = new Set(Object.keys(channel.presenceState()));
          this.#drawMembers();
        });
      },
      onSubscribed: (channel) => channel.track({}),
      onRefused: this.#onAccess,
    };
  }

  #membershipChanged({ table, record, old_record: key }) {
    if (table !== "organization_memberships") return;
    this.#refresh.members.ask();
    const mine = this.#members.find((member) => member.user_id === this.#profileId);
    if (record ? record.user_id === this.#profileId : key.id === mine?.id) this.#onAccess();
  }

  async #readMembers() {
    const { data } = await this.#supabase
      .from("organization_memberships")
      .select("id, user_id, role, profile:profiles!organization_memberships_user_id_fkey(full_name, email)")
      .eq("organization_id", this.#organization.id)
      .abortSignal(this.#closing.signal)
      .throwOnError();
    if (this.#closing.signal.aborted) return;
    this.#members = data.map((member) => ({ ...member, name: member.profile?.full_name ?? member.profile?.email ?? "Somebody" }));
    this.#members.sort((a, b) => ROLES.indexOf(a.role) - ROLES.indexOf(b.role) || a.name.localeCompare(b.name));
    this.#drawMembers();
  }

  async #readAuditLog() {
    const { data } = await this.#supabase
      .from("audit_logs")
      .select("id, action, resource_type, user_id, created_at")
      .eq("organization_id", this.#organization.id)
      .order("created_at", { ascending: false })
      .limit(AUDIT_ROWS)
      .abortSignal(this.#closing.signal)
      .throwOnError();
    if (this.#closing.signal.aborted) return;
    element("no-audit-entries").hidden = data.length > 0;
    drawList(element("audit-entries"), data, {
      key: (entry) => entry.id,
      make: () => copyOf("audit-row"),
      draw: (item, entry) => {
        const who = this.#members.find((member) => member.user_id === entry.user_id)?.name ?? "The system";
        fill(item, { what: `${who}: ${entry.action}`, when: momentOf(entry.created_at) });
      },
    });
  }

  /** A Refresh that tells when its reading fails, and no longer once it succeeds. */
  #refreshing(read) {
    return new Refresh(
      async () => {
        await read();
        if (this.#failing) say("alert", "");
        this.#failing = false;
      },
      (error) => {
        this.#failing = true;
        say("alert", `The database could not be read: ${error.message} Trying again.`);
      },
    );
  }

  // --- what the person does

  #listenToPage() {
    const options = { signal: this.#closing.signal }; // closing the workspace takes its listeners away
    this.#list = new ProjectList(element("projects"), {
      rename: ({ id }, title) => this.#write("projects:update", () => this.#projects.update(id, { title })),
      setStatus: ({ id }, status) => this.#write("projects:update", () => this.#projects.update(id, { status })),
      delete: async ({ id }) => {
        if (await this.#write("projects:delete", () => this.#projects.delete(id))) element("projects-title").focus();
      },
    });
    const form = element("create");
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const title = form.elements.title.value.trim();
      if (await this.#write("projects:create", () => this.#projects.create(title))) form.reset();
    }, options);
    element("more").addEventListener("click", () => this.#projects.more().catch((error) => say("alert", error.message)), options);
    element("offer-all").addEventListener("change", () => {
      this.#drawAccess();
      this.#drawProjects();
    }, options);
  }

  /** Runs a write and says what became of it. Returns whether a row was written. */
  async #write(permission, write) {
    const { name } = this.#organization;
    const needed = this.#has(permission) ? "" : ` It needs the permission ${permission}, which you do not have in ${name} now.`;
    try {
      const rows = await write();
      // Row level security raises for an insert only. Rows that one may not update or delete are not there for the statement.
      say("alert", rows ? "" : `The database changed no row.${needed || " Perhaps somebody was faster."}`);
      if (this.#live.state !== "live") this.#refresh.projects.ask(); // nobody will tell us
      return rows > 0;
    } catch (error) {
      say("alert", `The database refused${error.code ? ` (${error.code})` : ""}: ${error.message}.${needed}`);
      return false;
    }
  }

  // --- what the page shows

  #has(permission) {
    return this.#organization.permissions.includes(permission);
  }

  #offers = (permission) => element("offer-all").checked || this.#has(permission);

  #drawAccess() {
    const { name, role, permissions, limited_by: limit } = this.#organization;
    element("role").textContent = role;
    element("limited").hidden = limit !== "second_factor";
    element("limited").textContent =
      `This session reads only: ${name} asks its owners and admins for a second factor, and this session has none. Sign in with it to write.`;
    drawList(element("permissions"), permissions, {
      key: (permission) => permission,
      make: () => document.createElement("li"),
      draw: (item, permission) => (item.textContent = permission),
    });
    element("create").hidden = !this.#offers("projects:create");
  }

  #projectsChanged(change) {
    this.#drawProjects();
    if (!change) return;
    const { id, before, after } = change;
    this.#list.mark(id);
    say("status", `${(after ?? before).title} was ${after ? (before ? "changed" : "added") : "deleted"}.`);
  }

  #drawProjects() {
    const { rows, hasMore, isLoaded } = this.#projects;
    this.#list.draw(rows, this.#offers);
    element("project-count").textContent = hasMore ? `The newest ${rows.length}` : isLoaded ? `${rows.length} in all` : "";
    element("no-projects").hidden = !isLoaded || rows.length > 0;
    element("more").hidden = !hasMore;
  }

  #drawMembers() {
    element("present-count").textContent = `${this.#members.filter(({ user_id: id }) => this.#present.has(id)).length} here now`;
    drawList(element("members"), this.#members, {
      key: (member) => member.id,
      make: () => copyOf("member-row"),
      draw: (item, { user_id: id, name, role }) => {
        const here = this.#present.has(id);
        const presence = [id === this.#profileId && "You", here && "here now"].filter(Boolean).join(", ");
        fill(item, { name, role, initials: initialsOf(name), presence });
        item.classList.toggle("present", here);
      },
    });
  }
}
