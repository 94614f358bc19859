// Reading again whenever something says that what is shown may be old.

const RETRY = [1000, 2000, 5000, 10000]; // milliseconds

/**
 * Makes `read` safe to ask for at any moment: one run at a time; asked meanwhile, it runs once more; failed, it is
 * tried again. `onFailure(error)` runs after each failure, `onRecovery()` when it succeeds again.
 */
export class Refresh {
  #read;
  #onFailure;
  #onRecovery;
  #asked = false;
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
    this.#asked = true;
    if (this.#running) return;
    this.#running = true;
    while (this.#asked && !this.#stopped) {
      this.#asked = false;
      try {
        await this.#read();
        if (this.#failures && !this.#stopped) this.#onRecovery();
        this.#failures = 0;
      } catch (error) {
        if (this.#stopped) break;
        this.#timer = setTimeout(() => this.ask(), RETRY[Math.min(this.#failures++, RETRY.length - 1)]);
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
