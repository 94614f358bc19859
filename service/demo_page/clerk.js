// The part of Clerk's client API that a page with Supabase needs, for the stand-in. With Clerk's own client, the rest
// of the page stays the same. Each tab has its own session, so two tabs can be two people.

const STORAGE_KEY = "clerk-session";

export class ClerkError extends Error {
  constructor({ code, message }) {
    super(message);
    this.code = code;
  }
}

export class Clerk {
  /** {user_id, name, organization_id, second_factor}, or null if no one is signed in. */
  #stored = JSON.parse(sessionStorage.getItem(STORAGE_KEY));
  #token = null;
  #request = null;

  constructor(issuer) {
    this.issuer = issuer;
  }

  get user() {
    return this.#stored && { id: this.#stored.user_id, fullName: this.#stored.name };
  }

  get organization() {
    return this.#stored?.organization_id ? { id: this.#stored.organization_id } : null;
  }

  get session() {
    return this.#stored && { getToken: () => this.#getToken() };
  }

  /** All people that one can sign in as. Only the stand-in has this: at Clerk, people prove who they are. */
  async listPeople() {
    const response = await fetch(`${this.issuer}/stand-in/people`);
    return (await readAnswer(response)).people;
  }

  signIn({ user, organization, secondFactor }) {
    this.#store({ user_id: user.id, name: user.fullName, organization_id: organization, second_factor: secondFactor });
  }

  signOut() {
    this.#store(null);
  }

  /** New tokens name this organization as the active one. */
  setActive({ organization }) {
    this.#store({ ...this.#stored, organization_id: organization });
  }

  #store(session) {
    this.#stored = session;
    this.#token = null;
    this.#request = null; // a request in flight is for the previous session
    sessionStorage.setItem(STORAGE_KEY, JSON.stringify(session));
  }

  /**
   * A session token with at least a third of its life left. For Clerk's 60 s that is 20 s, more than the 15 s after
   * which supabase-js asks again. Concurrent callers share one request.
   */
  async #getToken() {
    if (!this.#stored) return null;
    if (this.#token && performance.now() < this.#token.renewAt) return this.#token.jwt;
    this.#request ??= this.#renew();
    return await this.#request;
  }

  async #renew() {
    const session = this.#stored;
    try {
      const token = await this.#issue(session);
      if (session !== this.#stored) return await this.#getToken(); // the session has changed meanwhile
      this.#token = token;
      return token.jwt;
    } catch (error) {
      if (session !== this.#stored) return await this.#getToken();
      if (error.code === "resource_not_found" && session.organization_id) {
        this.setActive({ organization: null }); // as Clerk does: the person has left the active organization
        return await this.#getToken();
      }
      // The old token stays in use until it expires, so a short outage of Clerk signs no one out.
      if (this.#token && performance.now() < this.#token.endsAt) return this.#token.jwt;
      throw error;
    } finally {
      if (session === this.#stored) this.#request = null;
    }
  }

  async #issue({ user_id, organization_id, second_factor }) {
    const response = await fetch(`${this.issuer}/stand-in/tokens`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ user_id, organization_id, second_factor }),
    });
    const { token, claims } = await readAnswer(response);
    const life = (claims.exp - claims.iat) * 1000; // not exp alone: this machine's clock may be wrong
    return { jwt: token, renewAt: performance.now() + (life * 2) / 3, endsAt: performance.now() + life };
  }
}

async function readAnswer(response) {
  const answer = await response.json();
  if (!response.ok) throw new ClerkError(answer.errors[0]);
  return answer;
}
