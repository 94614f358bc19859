// The projects of one organization: pages of rows from the Data API, kept current by broadcasts. It draws nothing.

const PAGE_ROWS = 10;
const MAX_ROWS = 999; // Supabase returns at most 1,000 rows; we request one extra row to find out if there are more
const COLUMNS = "id, title, status, created_at";

export class Projects {
  /** @type {Client} */
  #supabase;
  #organizationId;
  #onChange;
  #rows = new Map(); // by id
  #cursor = null; // the last row of the last page; older rows have not been read
  #received = null; // broadcasts since the current query began
  #tasks = Promise.resolve(); // one query at a time
  isLoaded = false;
  #signal;

  /**
   * `onChange(change)` runs after each query, and after each broadcast with its change: {id, before, after}. Once
   * `signal` is aborted, answers are ignored, because the page shows another organization.
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

  /** Reads as many rows again as are shown. Throws the Data API's error. */
  reload() {
    return this.#query(async () => {
      const wanted = Math.min(Math.max(PAGE_ROWS, this.#rows.size), MAX_ROWS);
      const page = await this.#read(wanted, null);
      this.#rows.clear();
      this.#addPage(page, wanted);
      this.isLoaded = true;
    });
  }

  /** Reads the next page. Throws the Data API's error. */
  more() {
    return this.#query(async () => {
      if (this.#cursor) this.#addPage(await this.#read(PAGE_ROWS, this.#cursor), PAGE_ROWS);
    });
  }

  /** Applies a broadcast about a project: `record`, or the key in `old_record` for a deletion. */
  receive(broadcast) {
    this.#received?.push(broadcast);
    const change = this.#apply(broadcast);
    if (change) this.#onChange(change);
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

  /**
   * Runs one query at a time. A broadcast that arrived meanwhile may be newer than the answer, so it is applied again.
   * If it was older, later broadcasts correct the row, because they arrive in commit order.
   */
  #query(read) {
    const task = this.#tasks.then(async () => {
      if (this.#signal.aborted) return;
      this.#received = [];
      try {
        await read();
        for (const broadcast of this.#received) this.#apply(broadcast);
        this.#onChange();
      } catch (error) {
        if (!this.#signal.aborted) throw error;
      } finally {
        this.#received = null;
      }
    });
    this.#tasks = task.catch(() => {});
    return task;
  }

  /** Rows after `cursor`, one more than `limit` if there are more. Rows of the same time are ordered by id. */
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

  #addPage(rows, limit) {
    for (const row of rows.slice(0, limit)) this.#rows.set(row.id, row);
    this.#cursor = rows.length > limit ? rows[limit - 1] : null;
  }

  #apply({ record, old_record: key }) {
    const id = (record ?? key).id;
    const before = this.#rows.get(id);
    // A row after the cursor comes with its page.
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

/** Converts a Postgres timestamp, which has microseconds and a UTC offset; a Date has only milliseconds. */
function microseconds(timestamp) {
  const digits = /\.(\d+)/.exec(timestamp)?.[1] ?? "";
  return Date.parse(timestamp) * 1000 + Number(digits.slice(3).padEnd(3, "0"));
}
