// The projects of one organization: pages of rows from the Data API, kept current by broadcasts. Draws nothing.

const PAGE_ROWS = 10;
const MAX_ROWS = 999; // Supabase answers with 1,000 at most; one more row than we show says whether there are more
const COLUMNS = "id, title, status, created_at";

export class Projects {
  /** @type {Client} */
  #supabase;
  #organizationId;
  #onChange;
  #rows = new Map(); // by id
  #cursor = null; // the last row of the last page; older rows have not been asked for
  #arrived = null; // broadcasts since the query under way began
  #tasks = Promise.resolve(); // one query at a time
  isLoaded = false;
  #signal;

  /**
   * `onChange(change)` runs after each query, and after each broadcast with what it changed: {id, before, after}.
   * After `signal` answers are forgotten: the page shows another organization.
   * @param {Client} supabase
   */
  constructor(supabase, organizationId, onChange, signal) {
    this.#supabase = supabase;
    this.#organizationId = organizationId;
    this.#onChange = onChange;
    this.#signal = signal;
  }

  /** Newest first. */
  get rows() {
    return [...this.#rows.values()].sort(newestFirst);
  }

  get hasMore() {
    return this.#cursor !== null;
  }

  /** Reads anew as many rows as are shown. Throws what the Data API answers. */
  reload() {
    return this.#query(async () => {
      const wanted = Math.min(Math.max(PAGE_ROWS, this.#rows.size), MAX_ROWS);
      const page = await this.#read(wanted, null);
      this.#rows.clear();
      this.#take(page, wanted);
      this.isLoaded = true;
    });
  }

  /** Reads the next page. Throws what the Data API answers. */
  loadMore() {
    return this.#query(async () => {
      if (this.#cursor) this.#take(await this.#read(PAGE_ROWS, this.#cursor), PAGE_ROWS);
    });
  }

  /** A broadcast about a project: `record`, or for a deletion the key in `old_record`. */
  receive(broadcast) {
    this.#arrived?.push(broadcast);
    const change = this.#apply(broadcast);
    if (change) this.#onChange(change);
  }

  // What follows changes no row here: the broadcast does, in every window alike.

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

  /** Returns how many rows were written. Row level security raises for an insert, and hides rows from the others. */
  async #write(statement) {
    const { data } = await statement.select("id").throwOnError();
    return data.length;
  }

  /**
   * Runs one query after the other. What was broadcast meanwhile may be newer than the answer: it is applied again on
   * top. Where it was older, the broadcasts that follow make up for it, since they come in the order of commits.
   */
  #query(read) {
    const task = this.#tasks.then(async () => {
      if (this.#signal.aborted) return;
      this.#arrived = [];
      try {
        await read();
        for (const broadcast of this.#arrived) this.#apply(broadcast);
        this.#onChange();
      } catch (error) {
        if (!this.#signal.aborted) throw error;
      } finally {
        this.#arrived = null;
      }
    });
    this.#tasks = task.catch(() => {});
    return task;
  }

  /** Rows behind `cursor`, one more than `limit` if there are more. Those of one moment are ordered by their ids. */
  async #read(limit, cursor) {
    let query = this.#table.select(COLUMNS).eq("organization_id", this.#organizationId);
    if (cursor) {
      const { created_at: at, id } = cursor;
      query = query.or(`created_at.lt."${at}",and(created_at.eq."${at}",id.lt.${id})`);
    }
    const { data } = await query
      .order("created_at", { ascending: false })
      .order("id", { ascending: false })
      .limit(limit + 1)
      .abortSignal(this.#signal)
      .throwOnError();
    this.#signal.throwIfAborted();
    return data;
  }

  #take(rows, limit) {
    for (const row of rows.slice(0, limit)) this.#rows.set(row.id, row);
    this.#cursor = rows.length > limit ? rows[limit - 1] : null;
  }

  #apply({ record, old_record: key }) {
    const id = (record ?? key).id;
    const before = this.#rows.get(id);
    // A row behind the cursor comes with its page.
    const isShown = record && !(this.#cursor && newestFirst(record, this.#cursor) > 0);
    if (!isShown && !before) return null;
    if (isShown) this.#rows.set(id, record);
    else this.#rows.delete(id);
    return { id, before, after: isShown ? record : undefined };
  }
}

function newestFirst(a, b) {
  return microseconds(b.created_at) - microseconds(a.created_at) || (a.id < b.id ? 1 : a.id > b.id ? -1 : 0);
}

/** A timestamp of Postgres has microseconds, and the offset of the session that wrote it; a Date has milliseconds. */
function microseconds(timestamp) {
  const digits = /\.(\d+)/.exec(timestamp)?.[1] ?? "";
  return Date.parse(timestamp) * 1000 + Number(digits.slice(3).padEnd(3, "0"));
}
