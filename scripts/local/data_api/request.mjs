// What the database may know about the HTTP request: PostgREST publishes it as request.method, .path and .headers.
import { AsyncLocalStorage } from "node:async_hooks";

const requests = new AsyncLocalStorage();

/** The request being answered: {method, path, headers, body, claims}; an empty object outside of one. */
export const currentRequest = () => requests.getStore() ?? {};

/** Hono middleware: remembers the request while it is answered. `body` is for functions only; tokens.mjs adds `claims`. */
export async function requestContext(context, next) {
  const { method, path, raw } = context.req;
  const isFunctionCall = method === "POST" && path.startsWith("/rest/v1/rpc/");
  const request = {
    method,
    path: path.replace(/^\/rest\/v1/, ""),
    headers: Object.fromEntries(raw.headers),
    body: isFunctionCall ? await parsed(raw) : undefined,
  };
  await requests.run(request, next);
}

async function parsed(raw) {
  try {
    return await raw.clone().json();
  } catch {
    return undefined; // Lite answers malformed bodies itself.
  }
}
