// The members of one organization, and which of them are here now.

import { copyOf, drawList, element, fill, initialsOf } from "./elements.js";

const ROLES = ["owner", "admin", "member", "viewer"];
// Of profiles one names the columns. The hint says which of two foreign keys is meant.
const COLUMNS = "id, user_id, role, profile:profiles!organization_memberships_user_id_fkey(full_name, email)";

export class Members {
  /** @type {Client} */
  #supabase;
  #organizationId;
  #profileId;
  #signal;
  #members = [];
  #present = [];

  /**
   * `profileId` is who looks at the page. After `signal` nothing is drawn.
   * @param {Client} supabase
   */
  constructor(supabase, organizationId, profileId, signal) {
    this.#supabase = supabase;
    this.#organizationId = organizationId;
    this.#profileId = profileId;
    this.#signal = signal;
  }

  async read() {
    const { data } = await this.#supabase
      .from("organization_memberships")
      .select(COLUMNS)
      .eq("organization_id", this.#organizationId)
      .abortSignal(this.#signal)
      .throwOnError();
    if (this.#signal.aborted) return;
    this.#members = data.map(({ id, user_id: profileId, role, profile }) => {
      return { id, profileId, role, name: profile?.full_name ?? profile?.email ?? "Somebody" };
    });
    this.#members.sort((a, b) => ROLES.indexOf(a.role) - ROLES.indexOf(b.role) || a.name.localeCompare(b.name));
    this.#draw();
  }

  /** Who is here says so: which profile they are is their own word, and good enough for a dot next to a name. */
  setPresent(profileIds) {
    this.#present = profileIds;
    this.#draw();
  }

  /** Whether a broadcast is about the membership of who looks at the page. */
  isOwn({ record, old_record: key }) {
    const own = this.#members.find((member) => member.profileId === this.#profileId);
    return record ? record.user_id === this.#profileId : key.id === own?.id;
  }

  #draw() {
    const isHere = (member) => this.#present.includes(member.profileId);
    element("present-count").textContent = `${this.#members.filter(isHere).length} here now`;
    drawList(element("members"), this.#members, {
      key: (member) => member.id,
      make: () => copyOf("member-row"),
      draw: (item, member) => {
        const notes = [member.profileId === this.#profileId && "You", isHere(member) && "here now"];
        const { name, role } = member;
        fill(item, { name, role, initials: initialsOf(name), notes: notes.filter(Boolean).join(", ") });
        item.classList.toggle("present", isHere(member));
      },
    });
  }
}
