// The projects of one organization: the list that is kept current, and the writes. It draws nothing.

const PAGE_ROWS = 10;
const COLUMNS = "id, title, status, created_at";

export class Projects {
  #organizationId;
  #rows;
  /** @type {Client} */
  #supabase;

  /**
   * `listeners` are those of follow().
   * @param {BallastClient} ballast
   */
  constructor(ballast, organizationId, listeners) {
    this.#supabase = ballast.supabase;
    this.#organizationId = organizationId;
    this.#rows = ballast.follow("projects", { organizationId, columns: COLUMNS, pageSize: PAGE_ROWS, ...listeners });
  }

  get rows() {
    return this.#rows;
  }

  // These writes do not change rows here: the broadcast does that, in every window.

  create(title) {
    return this.#write(this.#table.insert({ title, organization_id: this.#organizationId }));
  }

  update(id, values) {
    return this.#write(this.#table.update(values).eq("id", id));
  }

  delete(id) {
    return this.#write(this.#table.delete().eq("id", id));
  }

  get #table() {
    return this.#supabase.from("projects");
  }

  /** Returns how many rows were written. RLS raises an error for an insert, but only hides rows from other writes. */
  async #write(statement) {
    const { data } = await statement.select("id").throwOnError();
    return data.length;
  }
}
