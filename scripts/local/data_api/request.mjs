// Requests: rewrites them for Lite, and provides request.method, .path and .headers for the database.
import { AsyncLocalStorage } from "node:async_hooks";
import { refusal } from "./errors.mjs";
import { markLongNumbers, markNumbers, markTexts } from "./values.mjs";

const requests = new AsyncLocalStorage();
const FUNCTION = /^\/rest\/v1\/rpc\/([^/]+)$/;
const SINGLE_PARAMETER = { "text/plain": "text", "text/xml": "xml", "application/octet-stream": "bytea" };

/** The current request: {method, path, headers, prefer, body, claims}; an empty object outside of a request. */
export const currentRequest = () => requests.getStore() ?? {};

/** Hono middleware: sets the current request. tokens.mjs adds `claims`, and `requestForLite` adds `body`. */
export async function requestContext(context, next) {
  const { method, path, raw } = context.req;
  const headers = Object.fromEntries(raw.headers);
  const request = { method, path: path.replace(/^\/rest\/v1/, ""), headers, prefer: preferences(headers.prefer) };
  await requests.run(request, next);
}

/** Hono middleware: rewrites the request so that Lite interprets it as PostgREST does. */
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
  // For a HEAD request Lite would read the arguments of a function from the body. The response's body is dropped later.
  const liteMethod = name && method === "HEAD" ? "GET" : method;
  const url = name ? raw.url : markTexts(raw.url);
  context.req.raw = new Request(markLongNumbers(url), { method: liteMethod, headers, body });
  await next();
}

/** The parsed header Prefer: {handling: "strict", "max-affected": "1", …}. If a name is repeated, the first one counts. */
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

// Throws if the text is not JSON, or contains half of a surrogate pair, which UTF-8 cannot encode.
function jsonForLite(bytes, isFunction) {
  const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  const value = JSON.parse(text, (key, part) => {
    if (!key.isWellFormed() || (typeof part === "string" && !part.isWellFormed())) throw new SyntaxError();
    return part;
  });
  currentRequest().body = value;
  // PostgREST takes a string or a number as a list without rows, and an empty list as no arguments.
  if (!isFunction && (value === null || typeof value !== "object")) return "[]";
  if (isFunction && Array.isArray(value) && !value.length) return "{}";
  return markNumbers(text);
}

// PostgREST passes such a body to a function with a single unnamed parameter of that type. Lite does not support this.
const noFunctionOf = (name, type) =>
  refusal(
    404,
    "PGRST202",
    `Could not find the function public.${name} in the schema cache`,
    `Searched for the function public.${name} with a single unnamed ${type} parameter, but no matches were found in the schema cache.`,
  );
