// The members of one organization, and which of them are online now.

import { cloneTemplate, drawList, element, fill, initialsOf } from "./elements.js";

// Profiles grant only some columns, so each is named. The hint selects one of the two foreign keys.
const COLUMNS =
  "id, user_id, role, rank_of:roles(rank), profile:profiles!organization_memberships_user_id_fkey(full_name, email)";

export class Members {
  /** @type {Client} */
  #supabase;
  #organizationId;
  #profileId;
  #signal;
  #members = [];
  #present = [];

  /**
   * `profileId` is the signed-in person. After `signal` is aborted, nothing is drawn.
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
    this.#members = data.map(({ id, user_id: profileId, role, rank_of: { rank }, profile }) => {
      return { id, profileId, role, rank, name: profile?.full_name ?? profile?.email ?? "A member" };
    });
    this.#members.sort((a, b) => b.rank - a.rank || a.name.localeCompare(b.name));
    this.#draw();
  }

  /** Each browser states its own profile id, unverified: that is good enough for a dot next to a name. */
  setPresent(profileIds) {
    this.#present = profileIds;
    this.#draw();
  }

  /** Whether a broadcast is about the signed-in person's membership. */
  isOwn({ record, old_record: key }) {
    const own = this.#members.find((member) => member.profileId === this.#profileId);
    return record ? record.user_id === this.#profileId : key.id === own?.id;
  }

  #draw() {
    const isOnline = (member) => this.#present.includes(member.profileId);
    element("present-count").textContent = `${this.#members.filter(isOnline).length} online`;
    drawList(element("members"), this.#members, {
      key: (member) => member.id,
      make: () => cloneTemplate("member-row"),
      draw: (item, member) => {
        const notes = [member.profileId === this.#profileId && "You", isOnline(member) && "online"];
        const { name, role } = member;
        fill(item, { name, role, initials: initialsOf(name), notes: notes.filter(Boolean).join(", ") });
        item.classList.toggle("present", isOnline(member));
      },
    });
  }
}
