// Keeps private channels joined for as long as the page wants them: the only module that knows how Realtime loses them.

const EVENTS = ["INSERT", "UPDATE", "DELETE"];
const BACKOFF = [200, 1000, 2000, 5000, 10000]; // milliseconds

/**
 * One person's live connection. `onState` hears of each change of its state, which is that of the worst channel:
 * "connecting", "live" or "lost".
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
   * Joins a private channel, and again whenever it was lost.
   *
   * - `onSubscribed()` runs each time it is joined: nobody repeats what was sent before, so read again;
   * - `onBroadcast(payload)` runs for each change that the database broadcasts;
   * - `onPresence(keys)` runs when somebody comes or goes; we are there ourselves as `presenceKey`;
   * - `onRefused()` runs each time Realtime closes or refuses it: perhaps the person has lost a permission.
   */
  join(topic, { onSubscribed, onBroadcast, onPresence, presenceKey, onRefused }) {
    if (this.#memberships.has(topic)) return;
    const membership = { state: "connecting", closings: 0, channel: null, timer: null };
    this.#memberships.set(topic, membership);
    this.#report();

    const open = async () => {
      await this.#supabase.realtime.setAuth(); // the token of now, not that of the last heartbeat
      if (this.#memberships.get(topic) !== membership) return;
      const channel = this.#supabase.channel(topic, { config: { private: true, presence: { key: presenceKey } } });
      membership.channel = channel;
      // A channel that is being left still speaks for a moment: about an organization that no longer shows.
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
        // Its token is too old, or may no longer read the topic. supabase-js has given the channel up: make another.
        membership.timer = setTimeout(open, BACKOFF[Math.min(membership.closings++, BACKOFF.length - 1)]);
        onRefused();
      } else {
        // supabase-js joins again by itself, with the newest token it knows: let it know one of now.
        this.#supabase.realtime.setAuth();
        if (error?.message.includes("Unauthorized")) onRefused();
      }
    };

    open();
  }

  /** Leaves all topics but these. */
  keep(topics) {
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
