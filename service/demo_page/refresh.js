// Reading again whenever something says that what is shown may be old.

const RETRY = [1000, 2000, 5000, 10000]; // milliseconds

/**
 * Makes `read` safe to ask for at any moment: one run at a time; asked meanwhile, it runs once more; failed, it is tried again,
 * and `onFailure(error)` says why.
 */
export class Refresh {
  #read;
  #onFailure;
  #asked = false;
  #running = false;
  #failures = 0;
  #timer = null;
  #stopped = false;

  constructor(read, onFailure) {
    this.#read = read;
    this.#onFailure = onFailure;
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
