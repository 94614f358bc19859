// Keeps private channels joined while the page needs them. Only this module handles how Realtime loses channels.

const EVENTS = ["INSERT", "UPDATE", "DELETE"];
const BACKOFF = [200, 1000, 2000, 5000, 10000]; // milliseconds

/**
 * One person's live connection. `onState(state)` runs when its state changes: "connecting", "live" or "lost". The state
 * is that of the worst channel.
 */
export class Live {
  /** @type {Client} */
  #supabase;
  #onState;
  #memberships = new Map(); // by topic
  state = "connecting";

  constructor(supabase, onState) {
    this.#supabase = supabase;
    this.#onState = onState;
  }

  /**
   * Joins a private channel, and rejoins it whenever it is lost.
   *
   * - `onSubscribed()` runs after each join. Read the data again then: earlier broadcasts are not repeated.
   * - `onBroadcast(payload)` runs for each change that the database broadcasts.
   * - `onPresence(keys)` runs when a person joins or leaves. We are present as `presenceKey`.
   * - `onRefused()` runs when Realtime closes or refuses the channel: the person may have lost a permission.
   */
  join(topic, { onSubscribed, onBroadcast, onPresence, presenceKey, onRefused }) {
    if (this.#memberships.has(topic)) return;
    const membership = { state: "connecting", closings: 0, channel: null, timer: null };
    this.#memberships.set(topic, membership);
    this.#report();

    const open = async () => {
      await this.#supabase.realtime.setAuth(); // a fresh token, not the one of the last heartbeat
      if (this.#memberships.get(topic) !== membership) return;
      const channel = this.#supabase.channel(topic, { config: { private: true, presence: { key: presenceKey } } });
      membership.channel = channel;
      // A channel that is being left still sends events for a moment, about an organization that is no longer shown.
      const isCurrent = () => membership.channel === channel && this.#memberships.get(topic) === membership;
      const handleChange = ({ payload }) => isCurrent() && onBroadcast?.(payload);
      const handlePresence = () => isCurrent() && onPresence(Object.keys(channel.presenceState()));
      for (const event of EVENTS) channel.on("broadcast", { event }, handleChange);
      if (onPresence) channel.on("presence", { event: "sync" }, handlePresence);
      channel.subscribe((status, error) => isCurrent() && handleStatus(status, error));
    };

    const handleStatus = (status, error) => {
      membership.state = status === "SUBSCRIBED" ? "live" : "lost";
      this.#report();
      if (status === "SUBSCRIBED") {
        membership.closings = 0;
        if (presenceKey) membership.channel.track({});
        onSubscribed?.();
      } else if (status === "CLOSED") {
        // Its token has expired, or may no longer read the topic. supabase-js gives the channel up, so open a new one.
        membership.timer = setTimeout(open, BACKOFF[Math.min(membership.closings++, BACKOFF.length - 1)]);
        onRefused();
      } else {
        // supabase-js rejoins by itself, with the newest token that it has: give it a fresh one.
        this.#supabase.realtime.setAuth();
        if (error?.message.includes("Unauthorized")) onRefused();
      }
    };

    open();
  }

  /** Leaves all topics except these. */
  leaveOthers(topics) {
    for (const topic of [...this.#memberships.keys()]) {
      if (!topics.includes(topic)) this.#leave(topic);
    }
  }

  #leave(topic) {
    const { timer, channel } = this.#memberships.get(topic);
    this.#memberships.delete(topic);
    clearTimeout(timer);
    if (channel) this.#supabase.removeChannel(channel);
    this.#report();
  }

  #report() {
    const states = [...this.#memberships.values()].map((membership) => membership.state);
    const worst = ["lost", "connecting"].find((bad) => states.includes(bad));
    const state = worst ?? (states.length ? "live" : "connecting");
    if (state === this.state) return;
    this.state = state;
    this.#onState(state);
  }
}
