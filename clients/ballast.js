// The client of Ballast, for browsers and React Native. It imports nothing and needs no build step. docs/clients.md
// explains how a front end takes it. ballast.d.ts is generated from the types in its comments.

const EVENTS = ["INSERT", "UPDATE", "DELETE"];
const RETRY_DELAYS = [1000, 2000, 5000, 10000]; // milliseconds
const REJOIN_DELAYS = [200, ...RETRY_DELAYS];
const HEARTBEAT_MS = 15_000; // supabase-js asks Clerk for a token with each heartbeat; tokens live 60 s
const MAX_ROWS = 1000; // Supabase returns at most this many rows

/**
 * The part of Clerk's client that is needed: `window.Clerk`, or what `useClerk()` returns.
 * @typedef {object} Clerk
 * @property {{ getToken(): Promise<string | null> } | null} [session]
 * @property {{ id: string } | null} [organization] the active organization
 * @property {(params: { organization: string }) => Promise<void> | void} setActive
 */

/**
 * @typedef {object} Organization
 * @property {string} id
 * @property {string} clerk_org_id
 * @property {string | null} name
 * @property {string | null} slug
 * @property {string} role
 * @property {string[]} permissions what the person may do now
 * @property {boolean} mfa_required
 * @property {"second_factor" | null} limited_by why the permissions are fewer than the role's
 */

/**
 * What start_session() returns, and which organization is the current one.
 * @typedef {object} Session
 * @property {Profile} profile
 * @property {boolean} second_factor
 * @property {Organization[]} organizations
 * @property {Organization | null} organization null if the person belongs to none
 */

/**
 * @typedef {object} Profile
 * @property {string} id
 * @property {string} clerk_user_id
 * @property {string | null} email
 * @property {string | null} full_name
 * @property {string | null} avatar_url
 * @property {string | null} current_organization_id
 * @property {any} preferences
 */

/** @typedef {"connecting" | "live" | "lost"} LiveState */

/**
 * @typedef {object} Broadcast
 * @property {string} table
 * @property {"INSERT" | "UPDATE" | "DELETE"} operation
 * @property {any} record the row, or null if it was deleted
 * @property {any} old_record the primary key of a deleted row
 */

/**
 * @typedef {object} Listener
 * @property {(broadcast: Broadcast) => void} [onBroadcast] runs for each change that the database broadcasts
 * @property {() => void} [onSubscribed] runs after each join: read again then, because nothing is repeated
 * @property {() => void} [onRefused] runs when Realtime closes or refuses the topic: a permission may be lost
 * @property {(keys: string[]) => void} [onPresence]
 * @property {string} [presenceKey]
 */

/**
 * @template Row
 * @typedef {object} FollowOptions
 * @property {string} organizationId our id, not Clerk's
 * @property {(rows: Rows<Row>, change?: { id: string, before?: Row, after?: Row }) => void} onChange runs after each
 *   query, and after each broadcast with its change
 * @property {(error: any) => void} [onError] runs when a query fails, before it is repeated
 * @property {() => void} [onRecovery] runs when a query succeeds again
 * @property {() => void} [onRefused] runs when Realtime closes or refuses the topic. Call session() then
 * @property {string} [permission] the permission of the topic; `<table>:read` if it is not given
 * @property {string} [columns] must include `id` and `created_at`. With an embedded table, each broadcast causes a query
 * @property {Record<string, string | number | boolean>} [where] only rows with these values
 * @property {number} [pageSize] how many rows are read first, and how many more() adds
 */

/**
 * The type that `ballast types` generates.
 * @typedef {{ public: { Tables: Record<string, { Row: any }> } }} AnyDatabase
 */

/**
 * @typedef {object} Settings
 * @property {typeof import("@supabase/supabase-js").createClient} createClient supabase-js' own function
 * @property {string} supabaseUrl
 * @property {string} publishableKey never a secret key
 * @property {string} [serviceUrl] the origin of the service; without it, the page's own
 * @property {(state: LiveState) => void} [onLive] runs when the state of the worst channel changes
 */

/**
 * Creates the client of the person who is signed in at Clerk. Create it once, and close it when they sign out.
 * @template {AnyDatabase} [Database=any]
 * @param {Clerk} clerk
 * @param {Settings} settings
 * @returns {BallastClient<Database>}
 */
export function createBallastClient(clerk, settings) {
  return new BallastClient(clerk, settings);
}

/** @template {AnyDatabase} [Database=any] */
export class BallastClient {
  #clerk;
  #serviceUrl;
  #channels;
  #profileId = "";

  /**
   * @param {Clerk} clerk
   * @param {Settings} settings
   */
  constructor(clerk, { createClient, supabaseUrl, publishableKey, serviceUrl = "", onLive = () => {} }) {
    this.#clerk = clerk;
    this.#serviceUrl = serviceUrl;
    /** @type {import("@supabase/supabase-js").SupabaseClient<Database>} */
    this.supabase = /** @type {any} */ (
      createClient(supabaseUrl, publishableKey, {
        accessToken: () => this.getToken(),
        realtime: { heartbeatIntervalMs: HEARTBEAT_MS },
      })
    );
    this.#channels = new Channels(this.supabase, onLive);
  }

  /** Returns a session token with most of its life left, or null if no one is signed in. */
  async getToken() {
    return (await this.#clerk.session?.getToken()) ?? null;
  }

  /**
   * Starts the session, which creates the person's rows if Clerk's webhook is late, and updates `last_seen_at`. Throws
   * the Data API's error; PT403 means that the person is banned or deleted.
   *
   * The current organization is Clerk's active one, else the one that the person selected last, else their first.
   * @returns {Promise<Session>}
   */
  async session() {
    const { data } = await /** @type {any} */ (this.supabase).rpc("start_session").throwOnError();
    const { profile, organizations } = /** @type {Omit<Session, "organization">} */ (data);
    this.#profileId = profile.id;
    const organization =
      organizations.find(({ clerk_org_id: id }) => id === this.#clerk.organization?.id) ??
      organizations.find(({ id }) => id === profile.current_organization_id) ??
      organizations[0] ??
      null;
    if (organization) await this.#activate(organization);
    return { ...data, organization };
  }

  /**
   * Makes an organization the active one at Clerk, and stores the choice for the person's other devices. Call session()
   * before and afterwards.
   * @param {Organization} organization one of the session's
   */
  async switchOrganization(organization) {
    await this.#activate(organization);
    await /** @type {any} */ (this.supabase)
      .from("profiles")
      .update({ current_organization_id: organization.id })
      .eq("id", this.#profileId)
      .throwOnError();
  }

  /** @param {Organization} organization */
  async #activate({ clerk_org_id: id }) {
    if (this.#clerk.organization?.id !== id) await this.#clerk.setActive({ organization: id });
  }

  /**
   * Reads a table's rows of one organization, newest first, and keeps them current until `close()`.
   * @template {string & keyof Database["public"]["Tables"]} Table
   * @template [Row=Database["public"]["Tables"][Table]["Row"]]
   * @param {Table} table it needs the columns `id` and `created_at`, and a broadcast
   * @param {FollowOptions<Row>} options
   * @returns {Rows<Row>}
   */
  follow(table, options) {
    return new Rows(this.supabase, this.#channels, table, options);
  }

  /**
   * Joins the topic of a permission, and rejoins it whenever it is lost. Returns a function that leaves it.
   * @param {string} organizationId
   * @param {string} permission such as "members:read"
   * @param {Listener} listener
   */
  listen(organizationId, permission, listener) {
    return this.#channels.join(`org:${organizationId}:${permission}`, listener);
  }

  /**
   * Shows the person as online, and reports the profile ids of all who are. Each browser states its own, unverified.
   * Requires the permission members:read. Call session() before. Returns a function that ends it.
   * @param {string} organizationId
   * @param {(profileIds: string[]) => void} onPresence
   */
  present(organizationId, onPresence) {
    return this.#channels.join(`org:${organizationId}:presence`, { onPresence, presenceKey: this.#profileId });
  }

  /** @returns {LiveState} */
  get live() {
    return this.#channels.state;
  }

  /**
   * Calls the service with the session token. Throws ServiceError if it refuses.
   * @param {string} path such as "/api/v1/me"
   * @param {RequestInit} [options]
   */
  async request(path, options) {
    const headers = new Headers(options?.headers);
    headers.set("Authorization", `Bearer ${await this.getToken()}`);
    const answer = await fetch(this.#serviceUrl + path, { ...options, headers });
    if (!answer.ok) throw new ServiceError(answer.status, await answer.json().catch(() => ({})));
    return answer;
  }

  /** Leaves all topics and disconnects. The client cannot be used again. */
  async close() {
    await this.#channels.close();
  }
}

/** The service refused a request. `problem` is its answer: application/problem+json. */
export class ServiceError extends Error {
  /**
   * @param {number} status
   * @param {any} problem
   */
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `The service answered ${status}.`);
    this.name = "ServiceError";
    this.status = status;
    this.problem = problem;
  }
}

/**
 * Makes `read` safe to request at any time. Only one run is active; a request meanwhile causes one more run; a failed
 * run is repeated. `onError(error)` runs after each failure, `onRecovery()` after the first success since.
 */
export class Refresh {
  #read;
  #onError;
  #onRecovery;
  #isRequested = false;
  #isRunning = false;
  #isStopped = false;
  #failures = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {() => Promise<unknown>} read
   * @param {(error: any) => void} [onError]
   * @param {() => void} [onRecovery]
   */
  constructor(read, onError = () => {}, onRecovery = () => {}) {
    this.#read = read;
    this.#onError = onError;
    this.#onRecovery = onRecovery;
  }

  async ask() {
    clearTimeout(this.#timer);
    this.#isRequested = true;
    if (this.#isRunning) return;
    this.#isRunning = true;
    while (this.#isRequested && !this.#isStopped) {
      this.#isRequested = false;
      try {
        await this.#read();
        if (this.#failures && !this.#isStopped) this.#onRecovery();
        this.#failures = 0;
      } catch (error) {
        if (this.#isStopped) break;
        this.#timer = setTimeout(() => this.ask(), pickDelay(RETRY_DELAYS, this.#failures++));
        this.#onError(error);
      }
    }
    this.#isRunning = false;
  }

  stop() {
    this.#isStopped = true;
    clearTimeout(this.#timer);
  }
}

/** @template [Row=any] */
export class Rows {
  #supabase;
  #table;
  #options;
  /** @type {Map<string, { row: any, at: number }>} */
  #entries = new Map(); // by id
  /** @type {Row[] | null} */
  #sorted = null;
  /** @type {any} */
  #cursor = null; // the last row of the last page; older rows have not been read
  /** @type {Broadcast[] | null} */
  #received = null; // broadcasts since the current query began
  #tasks = Promise.resolve(); // one query at a time
  #closing = new AbortController();
  #refresh;
  #leave;
  isLoaded = false;

  /**
   * @param {any} supabase
   * @param {Channels} channels
   * @param {string} table
   * @param {FollowOptions<Row>} options
   */
  constructor(supabase, channels, table, options) {
    const { organizationId, columns = "*", pageSize = MAX_ROWS, where, permission = `${table}:read` } = options;
    this.#supabase = supabase;
    this.#table = table;
    this.#options = { ...options, columns, pageSize, where: { organization_id: organizationId, ...where } };
    this.#refresh = new Refresh(() => this.#query(false), options.onError, options.onRecovery);
    this.#leave = channels.join(`org:${organizationId}:${permission}`, {
      onSubscribed: () => this.reload(),
      onBroadcast: (broadcast) => broadcast.table === table && this.#receive(broadcast),
      onRefused: () => {
        this.reload(); // row level security decides what remains
        options.onRefused?.();
      },
    });
    this.reload();
  }

  /** Newest first. The array changes its identity only when its rows change. */
  get rows() {
    this.#sorted ??= [...this.#entries.values()].sort(compare).map(({ row }) => row);
    return this.#sorted;
  }

  /** Whether there are older rows, which more() reads. */
  get hasMore() {
    return this.#cursor !== null;
  }

  /** Reads as many rows again as are held, and at least a page. A failure goes to `onError`. */
  reload() {
    return this.#refresh.ask();
  }

  /** Reads the next page. Throws the Data API's error. */
  async more() {
    if (this.#cursor) await this.#query(true);
  }

  close() {
    this.#closing.abort();
    this.#refresh.stop();
    this.#leave();
  }

  /**
   * Runs one query at a time. A broadcast that arrived meanwhile may be newer than the answer, so it is applied again.
   * If it was older, later broadcasts correct the row, because they arrive in commit order.
   * @param {boolean} isNextPage
   */
  #query(isNextPage) {
    const task = this.#tasks.then(async () => {
      this.#received = [];
      try {
        const { pageSize } = this.#options;
        const wanted = isNextPage ? pageSize : Math.max(pageSize, this.#entries.size);
        const rows = await this.#read(wanted, isNextPage ? this.#cursor : null);
        if (this.#closing.signal.aborted) return;
        if (!isNextPage) this.#entries.clear();
        for (const row of rows.slice(0, wanted)) this.#set(row);
        this.#cursor = rows.length > wanted ? rows[wanted - 1] : null;
        this.#sorted = null;
        for (const broadcast of this.#received) this.#apply(broadcast);
        this.isLoaded = true;
        this.#options.onChange(this);
      } catch (error) {
        if (!this.#closing.signal.aborted) throw error;
      } finally {
        this.#received = null;
      }
    });
    this.#tasks = task.catch(() => {});
    return task;
  }

  /**
   * Rows after `cursor`, one more than wanted if there are more.
   * @param {number} wanted
   * @param {any} cursor
   */
  async #read(wanted, cursor) {
    /** @type {any[]} */
    const rows = [];
    while (rows.length <= wanted) {
      const limit = Math.min(wanted + 1 - rows.length, MAX_ROWS);
      const page = await this.#readPage(limit, rows.at(-1) ?? cursor);
      rows.push(...page);
      if (page.length < limit) break;
    }
    return rows;
  }

  /**
   * Rows of the same time are ordered by id.
   * @param {number} limit
   * @param {any} cursor
   * @returns {Promise<any[]>}
   */
  async #readPage(limit, cursor) {
    let query = this.#supabase.from(this.#table).select(this.#options.columns).match(this.#options.where);
    if (cursor) {
      const { created_at: at, id } = cursor;
      query = query.or(`created_at.lt."${at}",and(created_at.eq."${at}",id.lt.${id})`);
    }
    const { data } = await query
      .order("created_at", { ascending: false })
      .order("id", { ascending: false })
      .limit(limit)
      .abortSignal(this.#closing.signal)
      .throwOnError();
    return data;
  }

  /** @param {Broadcast} broadcast */
  #receive(broadcast) {
    if (this.#options.columns.includes("(")) return void this.reload(); // a broadcast has the table's own columns only
    this.#received?.push(broadcast);
    const change = this.#apply(broadcast);
    if (change) this.#options.onChange(this, change);
  }

  /** @param {Broadcast} broadcast */
  #apply({ record, old_record: key }) {
    const { id } = record ?? key;
    const before = this.#entries.get(id)?.row;
    const isShown = record && this.#matches(record) && !this.#isOnLaterPage(record);
    if (!isShown && !before) return null;
    this.#sorted = null;
    if (isShown) this.#set(record);
    else this.#entries.delete(id);
    return { id, before, after: isShown ? record : undefined };
  }

  /** @param {any} row */
  #set(row) {
    this.#entries.set(row.id, { row, at: toMicroseconds(row.created_at) });
  }

  /** @param {any} row */
  #matches(row) {
    return Object.entries(this.#options.where).every(([column, value]) => row[column] === value);
  }

  /** @param {any} row */
  #isOnLaterPage(row) {
    if (!this.#cursor) return false;
    const place = (/** @type {any} */ each) => ({ row: each, at: toMicroseconds(each.created_at) });
    return compare(place(row), place(this.#cursor)) > 0;
  }
}

/**
 * Newest first.
 * @param {{ row: any, at: number }} a
 * @param {{ row: any, at: number }} b
 */
function compare(a, b) {
  return b.at - a.at || (a.row.id < b.row.id ? 1 : a.row.id > b.row.id ? -1 : 0);
}

/**
 * Converts a Postgres timestamp, which has microseconds and a UTC offset; a Date has only milliseconds.
 * @param {string} timestamp
 */
function toMicroseconds(timestamp) {
  const digits = /\.(\d+)/.exec(timestamp)?.[1] ?? "";
  return Date.parse(timestamp) * 1000 + Number(digits.slice(3).padEnd(3, "0"));
}

/**
 * @param {number[]} delays
 * @param {number} failures
 */
function pickDelay(delays, failures) {
  return delays[Math.min(failures, delays.length - 1)];
}

/** @typedef {{ listeners: Set<Listener>, state: LiveState, closings: number, channel: any, timer: any }} Topic */

/** Keeps private channels joined while they have listeners. Only this class handles how Realtime loses channels. */
class Channels {
  #supabase;
  #onState;
  /** @type {Map<string, Topic>} */
  #topics = new Map();
  /** @type {LiveState} */
  state = "connecting";

  /**
   * @param {any} supabase
   * @param {(state: LiveState) => void} onState
   */
  constructor(supabase, onState) {
    this.#supabase = supabase;
    this.#onState = onState;
  }

  /**
   * Listeners of the same topic share its channel. Returns a function that removes the listener.
   * @param {string} name
   * @param {Listener} listener
   */
  join(name, listener) {
    let topic = this.#topics.get(name);
    if (topic) {
      topic.listeners.add(listener);
      if (topic.state === "live") listener.onSubscribed?.();
    } else {
      topic = { listeners: new Set([listener]), state: "connecting", closings: 0, channel: null, timer: undefined };
      this.#topics.set(name, topic);
      this.#report();
      this.#open(name, topic, listener);
    }
    const { listeners } = topic;
    return () => {
      listeners.delete(listener);
      if (!listeners.size && this.#topics.get(name)?.listeners === listeners) this.#leave(name);
    };
  }

  async close() {
    await Promise.all([...this.#topics.keys()].map((name) => this.#leave(name)));
    await this.#supabase.realtime.disconnect();
  }

  /**
   * @param {string} name
   * @param {Topic} topic
   * @param {Listener} first
   */
  async #open(name, topic, { onPresence, presenceKey }) {
    await this.#supabase.realtime.setAuth(); // a fresh token, not the one of the last heartbeat
    if (this.#topics.get(name) !== topic) return;
    const channel = this.#supabase.channel(name, { config: { private: true, presence: { key: presenceKey } } });
    topic.channel = channel;
    // A channel that is being left still sends events for a moment.
    const isCurrent = () => topic.channel === channel && this.#topics.get(name) === topic;
    const notify = (/** @type {(listener: Listener) => void} */ call) => {
      if (isCurrent()) for (const listener of [...topic.listeners]) call(listener);
    };
    for (const event of EVENTS) {
      channel.on("broadcast", { event }, (/** @type {{ payload: Broadcast }} */ { payload }) => {
        notify((listener) => listener.onBroadcast?.(payload));
      });
    }
    if (onPresence) {
      channel.on("presence", { event: "sync" }, () => {
        notify((listener) => listener.onPresence?.(Object.keys(channel.presenceState())));
      });
    }
    channel.subscribe((/** @type {string} */ status, /** @type {Error | undefined} */ error) => {
      if (!isCurrent()) return;
      topic.state = status === "SUBSCRIBED" ? "live" : "lost";
      this.#report();
      if (status === "SUBSCRIBED") {
        topic.closings = 0;
        if (presenceKey) channel.track({});
        notify((listener) => listener.onSubscribed?.());
      } else if (status === "CLOSED") {
        // Its token has expired, or may no longer read the topic. supabase-js gives the channel up, so open a new one.
        const reopen = () => this.#open(name, topic, { onPresence, presenceKey });
        topic.timer = setTimeout(reopen, pickDelay(REJOIN_DELAYS, topic.closings++));
        notify((listener) => listener.onRefused?.());
      } else {
        // supabase-js rejoins by itself, with the newest token that it has: give it a fresh one.
        this.#supabase.realtime.setAuth();
        if (error?.message.includes("Unauthorized")) notify((listener) => listener.onRefused?.());
      }
    });
  }

  /** @param {string} name */
  #leave(name) {
    const { timer, channel } = /** @type {Topic} */ (this.#topics.get(name));
    this.#topics.delete(name);
    clearTimeout(timer);
    const removal = channel && this.#supabase.removeChannel(channel);
    this.#report();
    return removal;
  }

  #report() {
    const states = [...this.#topics.values()].map((topic) => topic.state);
    const worst = /** @type {const} */ (["lost", "connecting"]).find((bad) => states.includes(bad));
    const state = worst ?? (states.length ? "live" : "connecting");
    if (state === this.state) return;
    this.state = state;
    this.#onState(state);
  }
}
