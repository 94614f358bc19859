// PostgREST's response to each SQLSTATE, from its source (`mapSQLtoHTTP`) and documentation ("Errors: HTTP Status Codes").

const BY_CODE = { 23503: 409, 23505: 409, 25006: 405, 53400: 500, "57P01": 503, P0001: 400, "42883": 404, "42P01": 404, "42P17": 500 };

const BY_CLASS = {
  "08": 503, "09": 500, "0L": 403, "0P": 403, 21: 500, 25: 500, 28: 403, "2D": 500, 38: 500, 39: 500, "3B": 500, 40: 500,
  53: 503, 54: 500, 55: 500, 57: 500, 58: 500, F0: 500, HV: 500, P0: 500, XX: 500,
};

/**
 * The response to a database error of the request: {status, headers, body}. Undefined for other errors, and for the codes
 * PGRST and PTxxx: with them SQL sets its own response, and Lite handles them itself.
 */
export function answerFor(error, request) {
  const code = error?.code;
  if (typeof code !== "string" || !/^[0-9A-Z]{5}$/.test(code) || code === "PGRST" || code.startsWith("PT")) return undefined;
  const status = statusOf(error, request.claims?.role ?? "anon");
  const headers = status === 401 ? { "WWW-Authenticate": "Bearer" } : {};
  return { status, headers, body: bodyOf(error, request) };
}

/** An error response in PostgREST's format. */
export const refusal = (status, code, message, details = null) =>
  Response.json({ code, details, hint: null, message }, { status });

function statusOf({ code, message }, role) {
  if (code === "21000" && message.endsWith("requires a WHERE clause")) return 400; // safeupdate
  if (code === "42501") return role === "anon" ? 401 : 403;
  if (code === "22023" && /^role.*does not exist$/s.test(message)) return 401; // the token's role
  return BY_CODE[code] ?? BY_CLASS[code.slice(0, 2)] ?? 400;
}

function bodyOf(error, request) {
  const { code, detail = null, hint = null, message } = error;
  // PostgREST passes the JSON to Postgres, whose JSON parser reports the escape.
  if (code === "22021" && !["GET", "HEAD"].includes(request.method)) {
    const details = "\\u0000 cannot be converted to text.";
    return { code: "22P05", details, hint: null, message: "unsupported Unicode escape sequence" };
  }
  return { code, details: detail, hint, message: withRelation(error, request) ?? message };
}

// PostgREST writes the columns of a query with their table or function. Errors inside a function have a `where`.
function withRelation({ message, where }, { method, path }) {
  const column = /^column "([^"]+)" does not exist$/.exec(message)?.[1];
  const isInsert = method === "POST" && !path.startsWith("/rpc/");
  if (column && !where && !isInsert) return `column ${path.split("/").at(-1)}.${column} does not exist`;
}
