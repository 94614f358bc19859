// Reads again when the shown data may be outdated.

const RETRY_DELAYS = [1000, 2000, 5000, 10000]; // milliseconds

/**
 * Makes `read` safe to request at any time. Only one run is active; a request meanwhile causes one more run; a failed
 * run is retried. `onFailure(error)` runs after each failure, `onRecovery()` after the first success since.
 */
export class Refresh {
  #read;
  #onFailure;
  #onRecovery;
  #requested = false;
  #running = false;
  #failures = 0;
  #timer = null;
  #stopped = false;

  constructor(read, onFailure, onRecovery) {
    this.#read = read;
    this.#onFailure = onFailure;
    this.#onRecovery = onRecovery;
  }

  async ask() {
    clearTimeout(this.#timer);
    this.#requested = true;
    if (this.#running) return;
    this.#running = true;
    while (this.#requested && !this.#stopped) {
      this.#requested = false;
      try {
        await this.#read();
        if (this.#failures && !this.#stopped) this.#onRecovery();
        this.#failures = 0;
      } catch (error) {
        if (this.#stopped) break;
        this.#timer = setTimeout(() => this.ask(), RETRY_DELAYS[Math.min(this.#failures++, RETRY_DELAYS.length - 1)]);
        this.#onFailure(error);
      }
    }
    this.#running = false;
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }
}
