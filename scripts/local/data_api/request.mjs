// What arrives, before Lite sees it; and what the database may know about it: request.method, .path and .headers.
import { AsyncLocalStorage } from "node:async_hooks";
import { refusal } from "./errors.mjs";
import { markLongNumbers, markNumbers } from "./values.mjs";

const requests = new AsyncLocalStorage();
const FUNCTION = /^\/rest\/v1\/rpc\/([^/]+)$/;
const SINGLE_PARAMETER = { "text/plain": "text", "text/xml": "xml", "application/octet-stream": "bytea" };

/** The request being answered: {method, path, headers, prefer, body, claims}; an empty object outside of one. */
export const currentRequest = () => requests.getStore() ?? {};

/** Hono middleware: remembers the request while it is answered. tokens.mjs adds `claims`, `requestForLite` the `body`. */
export async function requestContext(context, next) {
  const { method, path, raw } = context.req;
  const headers = Object.fromEntries(raw.headers);
  const request = { method, path: path.replace(/^\/rest\/v1/, ""), headers, prefer: preferences(headers.prefer) };
  await requests.run(request, next);
}

/** Hono middleware: gives Lite a request that it understands as PostgREST does. */
export async function requestForLite(context, next) {
  const { method, path, raw } = context.req;
  const { headers } = raw;
  const bytes = await raw.arrayBuffer();
  const type = (headers.get("content-type") ?? "application/json").split(";")[0].trim().toLowerCase();
  const name = FUNCTION.exec(path)?.[1];
  if (name && method === "POST" && type in SINGLE_PARAMETER) return noFunctionOf(name, SINGLE_PARAMETER[type]);
  let body = bytes.byteLength ? bytes : undefined;
  try {
    if (body && type === "application/json") body = jsonForLite(bytes, Boolean(name));
  } catch {
    return refusal(400, "PGRST102", "Empty or invalid json");
  }
  // Lite reads the arguments of a HEAD request to a function from its body. The body of its answer is dropped later.
  const asked = name && method === "HEAD" ? "GET" : method;
  context.req.raw = new Request(markLongNumbers(raw.url), { method: asked, headers, body });
  await next();
}

/** What a header Prefer says: {handling: "strict", "max-affected": "1", …}. The first of each name counts. */
export function preferences(header) {
  const given = (header ?? "").split(",").map((each) => each.trim().split("="));
  const { timezone, ...others } = Object.fromEntries(given.reverse());
  return isTimezone(timezone) ? { ...others, timezone } : others;
}

function isTimezone(name = "") {
  try {
    return /^[A-Z]/i.test(name) && Boolean(new Intl.DateTimeFormat("en", { timeZone: name }));
  } catch {
    return false;
  }
}

// Throws for what is no JSON, and for JSON that no UTF-8 text can hold: half of a surrogate pair.
function jsonForLite(bytes, isFunction) {
  const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  const value = JSON.parse(text, (key, part) => {
    if (!key.isWellFormed() || (typeof part === "string" && !part.isWellFormed())) throw new SyntaxError();
    return part;
  });
  currentRequest().body = value;
  // To PostgREST a string or a number is a list without rows, and an empty list has no arguments.
  if (!isFunction && (value === null || typeof value !== "object")) return "[]";
  if (isFunction && Array.isArray(value) && !value.length) return "{}";
  return markNumbers(text);
}

// Of such a body PostgREST makes the only argument of a function with one unnamed parameter of that type.
const noFunctionOf = (name, type) =>
  refusal(
    404,
    "PGRST202",
    `Could not find the function public.${name} in the schema cache`,
    `Searched for the function public.${name} with a single unnamed ${type} parameter, but no matches were found in the schema cache.`,
  );
