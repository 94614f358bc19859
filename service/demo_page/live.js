// Keeps private channels joined for as long as the page wants them: the only module that knows how Realtime loses them.

const BACKOFF = [200, 1000, 2000, 5000, 10000]; // milliseconds

/**
 * One person's live connection. `onState` hears of each change of its state, which is that of the worst channel:
 * "connecting", "live" or "lost".
 */
export class Live {
  #supabase;
  #onState;
  #memberships = new Map(); // by topic
  #leaving = new Map(); // promises by topic: supabase-js has one channel a topic, also while it is being left
  state = "connecting";

  constructor(supabase, onState) {
    this.#supabase = supabase;
    this.#onState = onState;
  }

  /**
   * Joins a private channel, and again whenever it was lost.
   *
   * - `listen(channel)` binds callbacks to each new channel;
   * - `onSubscribed(channel)` runs each time it is joined: nobody repeats what was sent before, so read again;
   * - `onRefused()` runs each time Realtime closes or refuses it: perhaps the person has lost a permission.
   */
  join(topic, { config = {}, listen, onSubscribed, onRefused }) {
    if (this.#memberships.has(topic)) return;
    const membership = { state: "connecting", closings: 0, channel: null, timer: null };
    this.#memberships.set(topic, membership);
    this.#report();

    const open = async () => {
      await this.#leaving.get(topic);
      await this.#supabase.realtime.setAuth(); // the token of now, not that of the last heartbeat
      if (this.#memberships.get(topic) !== membership) return;
      const channel = this.#supabase.channel(topic, { config: { ...config, private: true } });
      membership.channel = channel;
      listen(channel);
      channel.subscribe((status, error) => {
        if (membership.channel !== channel || this.#memberships.get(topic) !== membership) return;
        membership.state = status === "SUBSCRIBED" ? "live" : "lost";
        this.#report();
        if (status === "SUBSCRIBED") {
          membership.closings = 0;
          onSubscribed(channel);
        } else if (status === "CLOSED") {
          // Its token is too old, or may no longer read the topic. supabase-js has given the channel up: make another.
          membership.timer = setTimeout(open, BACKOFF[Math.min(membership.closings++, BACKOFF.length - 1)]);
          onRefused();
        } else {
          // supabase-js joins again by itself, with the newest token it knows: let it know one of now.
          this.#supabase.realtime.setAuth();
          if (error?.message.includes("Unauthorized")) onRefused();
        }
      });
    };
    open();
  }

  leave(topic) {
    const membership = this.#memberships.get(topic);
    if (!membership) return;
    this.#memberships.delete(topic);
    clearTimeout(membership.timer);
    if (membership.channel) {
      const left = this.#supabase.removeChannel(membership.channel).finally(() => {
        if (this.#leaving.get(topic) === left) this.#leaving.delete(topic);
      });
      this.#leaving.set(topic, left);
    }
    this.#report();
  }

  /** Leaves all topics but these. */
  keep(topics) {
    for (const topic of [...this.#memberships.keys()]) {
      if (!topics.includes(topic)) this.leave(topic);
    }
  }

  #report() {
    const states = [...this.#memberships.values()].map((membership) => membership.state);
    const state = ["lost", "connecting"].find((worse) => states.includes(worse)) ?? (states.length ? "live" : "connecting");
    if (state === this.state) return;
    this.state = state;
    this.#onState(state);
  }
}
