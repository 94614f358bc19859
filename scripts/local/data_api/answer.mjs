// Responses: gives the responses of Lite the headers and texts of PostgREST.
import { preferences } from "./request.mjs";
import { withoutMarks } from "./values.mjs";

/** Lite's response to the request, changed to what PostgREST would have sent. */
export async function answerAsPostgrest(request, response) {
  const text = withoutMarks(await response.text());
  const headers = new Headers(response.headers);
  headers.delete("content-length");
  if (response.status >= 300) return refuse(response.status, headers, text);
  if (headers.has("content-range")) describe(request, headers);
  if (!text && request.method !== "HEAD") headers.delete("content-type");
  return new Response(request.method === "HEAD" ? null : text || null, { status: response.status, headers });
}

// Sets the headers that Lite omits or writes differently.
function describe(request, headers) {
  const isRead = ["GET", "HEAD"].includes(request.method);
  if (isRead && !request.url.includes("/rest/v1/rpc/")) headers.set("content-location", contentLocation(request));
  if (request.method === "PATCH") headers.set("content-range", rewriteRange(headers.get("content-range")));
  const profile = request.headers.get(isRead ? "accept-profile" : "content-profile");
  if (profile) headers.set("content-profile", profile);
  const applied = listAppliedPreferences(request, headers.get("preference-applied"));
  if (applied) headers.set("preference-applied", applied);
  else headers.delete("preference-applied");
}

function refuse(status, headers, text) {
  const error = /json/.test(headers.get("content-type")) ? JSON.parse(text || "null") : null;
  // A function may set the status of its own response.
  if (!error?.code || !("hint" in error)) return new Response(text || null, { status, headers });
  headers.set("content-type", "application/json; charset=utf-8");
  headers.set("proxy-status", `PostgREST; error=${error.code}`);
  return new Response(JSON.stringify({ ...error, hint: closeHint(error) }), { status, headers });
}

// PostgREST sorts the parameters, has each name once, and encodes more characters than browsers do.
function contentLocation(request) {
  const { pathname, searchParams } = new URL(request.url);
  const query = [...new Set(searchParams.keys())]
    .sort()
    .map((name) => `${encode(name)}=${searchParams.getAll(name).map(encode).join(",")}`)
    .join("&");
  return pathname.replace(/^\/rest\/v1/, "") + (query && `?${query}`);
}

const encode = (text) =>
  encodeURIComponent(text).replace(/[!'()*]/g, (each) => `%${each.charCodeAt(0).toString(16).toUpperCase()}`);

// Lite omits the range of the changed rows when it counts them.
const rewriteRange = (range) => range.replace(/^\*\/([1-9]\d*)$/, (_, count) => `0-${count - 1}/${count}`);

const PREFERENCES = ["resolution", "missing", "return", "count", "handling", "timezone", "max-affected"];

// Lite omits some preferences. `tx` is dropped: clients cannot choose whether the transaction is committed.
function listAppliedPreferences({ method, headers }, appliedByLite) {
  const { tx, ...applied } = preferences(appliedByLite);
  const { count, handling, timezone, "max-affected": limit, return: returned } = preferences(headers.get("prefer"));
  if (applied.count) applied.count = count;
  if (returned === "minimal" && method !== "GET" && method !== "HEAD") applied.return = returned;
  if (["strict", "lenient"].includes(handling)) applied.handling = handling;
  if (timezone) applied.timezone = timezone;
  if (handling === "strict" && limit && !["GET", "HEAD", "PUT"].includes(method)) applied["max-affected"] = limit;
  return PREFERENCES.filter((name) => applied[name])
    .map((name) => `${name}=${applied[name]}`)
    .join(", ");
}

// Lite always suggests a similar name. PostgREST does so only if three quarters of the letters are the same.
function closeHint({ hint, message }) {
  const meant = /^Perhaps you meant (?:the table|to call the function) '?public\.(\w+)'?$/.exec(hint)?.[1];
  const given = /public\.(\w+)/.exec(message)?.[1];
  if (!meant || !given) return hint;
  return 1 - distance(meant, given) / Math.max(meant.length, given.length) >= 0.75 ? hint : null;
}

/** The Levenshtein distance: the number of letters to add, remove or replace. */
function distance(one, other) {
  let row = [...Array(other.length + 1).keys()];
  for (const letter of one) {
    const next = [row[0] + 1];
    for (let i = 0; i < other.length; i++)
      next.push(Math.min(next[i] + 1, row[i + 1] + 1, row[i] + (letter === other[i] ? 0 : 1)));
    row = next;
  }
  return row.at(-1);
}
