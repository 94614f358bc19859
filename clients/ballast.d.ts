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
export function createBallastClient<Database extends AnyDatabase = any>(clerk: Clerk, settings: Settings): BallastClient<Database>;
/** @template {AnyDatabase} [Database=any] */
export class BallastClient<Database extends AnyDatabase = any> {
    /**
     * @param {Clerk} clerk
     * @param {Settings} settings
     */
    constructor(clerk: Clerk, { createClient, supabaseUrl, publishableKey, serviceUrl, onLive }: Settings);
    /** @type {import("@supabase/supabase-js").SupabaseClient<Database>} */
    supabase: import("@supabase/supabase-js").SupabaseClient<Database>;
    /** Returns a session token with most of its life left, or null if no one is signed in. */
    getToken(): Promise<string | null>;
    /**
     * Starts the session, which creates the person's rows if Clerk's webhook is late, and updates `last_seen_at`. Throws
     * the Data API's error; PT403 means that the person is banned or deleted.
     *
     * The current organization is Clerk's active one, else the one that the person selected last, else their first.
     * @returns {Promise<Session>}
     */
    session(): Promise<Session>;
    /**
     * Makes an organization the active one at Clerk, and stores the choice for the person's other devices. Call session()
     * before and afterwards.
     * @param {Organization} organization one of the session's
     */
    switchOrganization(organization: Organization): Promise<void>;
    /**
     * Reads a table's rows of one organization, newest first, and keeps them current until `close()`.
     * @template {string & keyof Database["public"]["Tables"]} Table
     * @template [Row=Database["public"]["Tables"][Table]["Row"]]
     * @param {Table} table it needs the columns `id` and `created_at`, and a broadcast
     * @param {FollowOptions<Row>} options
     * @returns {Rows<Row>}
     */
    follow<Table extends string & keyof Database["public"]["Tables"], Row = Database["public"]["Tables"][Table]["Row"]>(table: Table, options: FollowOptions<Row>): Rows<Row>;
    /**
     * Joins the topic of a permission, and rejoins it whenever it is lost. Returns a function that leaves it.
     * @param {string} organizationId
     * @param {string} permission such as "members:read"
     * @param {Listener} listener
     */
    listen(organizationId: string, permission: string, listener: Listener): () => void;
    /**
     * Shows the person as online, and reports the profile ids of all who are. Each browser states its own, unverified.
     * Requires the permission members:read. Call session() before. Returns a function that ends it.
     * @param {string} organizationId
     * @param {(profileIds: string[]) => void} onPresence
     */
    present(organizationId: string, onPresence: (profileIds: string[]) => void): () => void;
    /** @returns {LiveState} */
    get live(): LiveState;
    /**
     * Calls the service with the session token. Throws ServiceError if it refuses.
     * @param {string} path such as "/api/v1/me"
     * @param {RequestInit} [options]
     */
    request(path: string, options?: RequestInit): Promise<Response>;
    /** Leaves all topics and disconnects. The client cannot be used again. */
    close(): Promise<void>;
    #private;
}
/** The service refused a request. `problem` is its answer: application/problem+json. */
export class ServiceError extends Error {
    /**
     * @param {number} status
     * @param {any} problem
     */
    constructor(status: number, problem: any);
    status: number;
    problem: any;
}
/**
 * Makes `read` safe to request at any time. Only one run is active; a request meanwhile causes one more run; a failed
 * run is repeated. `onError(error)` runs after each failure, `onRecovery()` after the first success since.
 */
export class Refresh {
    /**
     * @param {() => Promise<unknown>} read
     * @param {(error: any) => void} [onError]
     * @param {() => void} [onRecovery]
     */
    constructor(read: () => Promise<unknown>, onError?: (error: any) => void, onRecovery?: () => void);
    ask(): Promise<void>;
    stop(): void;
    #private;
}
/** @template [Row=any] */
export class Rows<Row = any> {
    /**
     * @param {any} supabase
     * @param {Channels} channels
     * @param {string} table
     * @param {FollowOptions<Row>} options
     */
    constructor(supabase: any, channels: Channels, table: string, options: FollowOptions<Row>);
    isLoaded: boolean;
    /** Newest first. The array changes its identity only when its rows change. */
    get rows(): Row[];
    /** Whether there are older rows, which more() reads. */
    get hasMore(): boolean;
    /** Reads as many rows again as are held, and at least a page. A failure goes to `onError`. */
    reload(): Promise<void>;
    /** Reads the next page. Throws the Data API's error. */
    more(): Promise<void>;
    close(): void;
    #private;
}
/**
 * The part of Clerk's client that is needed: `window.Clerk`, or what `useClerk()` returns.
 */
export type Clerk = {
    session?: {
        getToken(): Promise<string | null>;
    } | null | undefined;
    /**
     * the active organization
     */
    organization?: {
        id: string;
    } | null | undefined;
    setActive: (params: {
        organization: string;
    }) => Promise<void> | void;
};
export type Organization = {
    id: string;
    clerk_org_id: string;
    name: string | null;
    slug: string | null;
    role: string;
    /**
     * what the person may do now
     */
    permissions: string[];
    mfa_required: boolean;
    /**
     * why the permissions are fewer than the role's
     */
    limited_by: "second_factor" | null;
};
/**
 * What start_session() returns, and which organization is the current one.
 */
export type Session = {
    profile: Profile;
    second_factor: boolean;
    organizations: Organization[];
    /**
     * null if the person belongs to none
     */
    organization: Organization | null;
};
export type Profile = {
    id: string;
    clerk_user_id: string;
    email: string | null;
    full_name: string | null;
    avatar_url: string | null;
    current_organization_id: string | null;
    preferences: any;
};
export type LiveState = "connecting" | "live" | "lost";
export type Broadcast = {
    table: string;
    operation: "INSERT" | "UPDATE" | "DELETE";
    /**
     * the row, or null if it was deleted
     */
    record: any;
    /**
     * the primary key of a deleted row
     */
    old_record: any;
};
export type Listener = {
    /**
     * runs for each change that the database broadcasts
     */
    onBroadcast?: ((broadcast: Broadcast) => void) | undefined;
    /**
     * runs after each join: read again then, because nothing is repeated
     */
    onSubscribed?: (() => void) | undefined;
    /**
     * runs when Realtime closes or refuses the topic: a permission may be lost
     */
    onRefused?: (() => void) | undefined;
    onPresence?: ((keys: string[]) => void) | undefined;
    presenceKey?: string | undefined;
};
export type FollowOptions<Row> = {
    /**
     * our id, not Clerk's
     */
    organizationId: string;
    /**
     * runs after each
     * query, and after each broadcast with its change
     */
    onChange: (rows: Rows<Row>, change?: {
        id: string;
        before?: Row;
        after?: Row;
    }) => void;
    /**
     * runs when a query fails, before it is repeated
     */
    onError?: ((error: any) => void) | undefined;
    /**
     * runs when a query succeeds again
     */
    onRecovery?: (() => void) | undefined;
    /**
     * runs when Realtime closes or refuses the topic. Call session() then
     */
    onRefused?: (() => void) | undefined;
    /**
     * the permission of the topic; `<table>:read` if it is not given
     */
    permission?: string | undefined;
    /**
     * must include `id` and `created_at`. With an embedded table, each broadcast causes a query
     */
    columns?: string | undefined;
    /**
     * only rows with these values
     */
    where?: Record<string, string | number | boolean> | undefined;
    /**
     * how many rows are read first, and how many more() adds
     */
    pageSize?: number | undefined;
};
/**
 * The type that `ballast types` generates.
 */
export type AnyDatabase = {
    public: {
        Tables: Record<string, {
            Row: any;
        }>;
    };
};
export type Settings = {
    /**
     * supabase-js' own function
     */
    createClient: typeof import("@supabase/supabase-js").createClient;
    supabaseUrl: string;
    /**
     * never a secret key
     */
    publishableKey: string;
    /**
     * the origin of the service; without it, the page's own
     */
    serviceUrl?: string | undefined;
    /**
     * runs when the state of the worst channel changes
     */
    onLive?: ((state: LiveState) => void) | undefined;
};
export type Topic = {
    listeners: Set<Listener>;
    state: LiveState;
    closings: number;
    channel: any;
    timer: any;
};
/** @typedef {{ listeners: Set<Listener>, state: LiveState, closings: number, channel: any, timer: any }} Topic */
/** Keeps private channels joined while they have listeners. Only this class handles how Realtime loses channels. */
declare class Channels {
    /**
     * @param {any} supabase
     * @param {(state: LiveState) => void} onState
     */
    constructor(supabase: any, onState: (state: LiveState) => void);
    /** @type {LiveState} */
    state: LiveState;
    /**
     * Listeners of the same topic share its channel. Returns a function that removes the listener.
     * @param {string} name
     * @param {Listener} listener
     */
    join(name: string, listener: Listener): () => void;
    close(): Promise<void>;
    #private;
}
export {};
