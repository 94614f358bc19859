// Clerk's client as far as a page with Supabase needs it, in Clerk's words: with Clerk's own, the rest stays the same.
// A session is this tab's: another tab may be somebody else.

const SESSION_KEY = "clerk-session";

export class ClerkError extends Error {
  constructor({ code, message }) {
    super(message);
    this.code = code;
  }
}

export class Clerk {
  /** {user_id, name, organization_id, second_factor}, or null when nobody is signed in. */
  #session = JSON.parse(sessionStorage.getItem(SESSION_KEY));
  #token = null;
  #request = null;

  constructor(issuer) {
    this.issuer = issuer;
  }

  get user() {
    return this.#session && { id: this.#session.user_id, fullName: this.#session.name };
  }

  get organization() {
    return this.#session?.organization_id ? { id: this.#session.organization_id } : null;
  }

  get session() {
    return this.#session && { getToken: () => this.#getToken() };
  }

  /** Everybody one can be. Clerk has no such thing: there, people prove who they are. */
  async people() {
    const response = await fetch(`${this.issuer}/stand-in/people`);
    return (await answerOf(response)).people;
  }

  signIn({ user, organization, secondFactor }) {
    this.#keep({ user_id: user.id, name: user.fullName, organization_id: organization, second_factor: secondFactor });
  }

  signOut() {
    this.#keep(null);
  }

  /** Later tokens speak of this organization. */
  setActive({ organization }) {
    this.#keep({ ...this.#session, organization_id: organization });
  }

  #keep(session) {
    this.#session = session;
    this.#token = null;
    this.#request = null; // a request under way is for the session before
    sessionStorage.setItem(SESSION_KEY, JSON.stringify(session));
  }

  /**
   * A session token with at least a third of its life ahead: of Clerk's 60 s that is 20, more than the 15 s after which
   * supabase-js asks again. Callers at the same time share one request.
   */
  async #getToken() {
    if (!this.#session) return null;
    if (this.#token && performance.now() < this.#token.renewAt) return this.#token.jwt;
    this.#request ??= this.#renew();
    return await this.#request;
  }

  async #renew() {
    const session = this.#session;
    try {
      const token = await this.#issue(session);
      if (session !== this.#session) return await this.#getToken(); // meanwhile the session has become another
      this.#token = token;
      return token.jwt;
    } catch (error) {
      if (session !== this.#session) return await this.#getToken();
      if (error.code === "resource_not_found" && session.organization_id) {
        this.setActive({ organization: null }); // as at Clerk: who has left an organization no longer works in it
        return await this.#getToken();
      }
      // The old token serves until its end: a Clerk that is away for a moment signs nobody out.
      if (this.#token && performance.now() < this.#token.endsAt) return this.#token.jwt;
      throw error;
    } finally {
      if (session === this.#session) this.#request = null;
    }
  }

  async #issue({ user_id, organization_id, second_factor }) {
    const response = await fetch(`${this.issuer}/stand-in/tokens`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ user_id, organization_id, second_factor }),
    });
    const { token, claims } = await answerOf(response);
    const life = (claims.exp - claims.iat) * 1000; // not exp itself: this machine's clock may be wrong
    return { jwt: token, renewAt: performance.now() + (life * 2) / 3, endsAt: performance.now() + life };
  }
}

async function answerOf(response) {
  const answer = await response.json();
  if (!response.ok) throw new ClerkError(answer.errors[0]);
  return answer;
}
