// The Data API of the local stack: Supabase's own Lite, embedded, made to answer as hosted PostgREST does.
//
// `lite start` is not used: it records itself in supabase_migrations, re-creates auth.* and grants at every start.
// The embedded App only reads the catalog and runs the statements of its callers, as the role their token names.
//
// What remains different is in docs/local-stack.md: nothing of ours may rely on it.
//
// Environment: PORT, DATABASE_URL (as authenticator), CATALOG_URL (as postgres), JWT_SECRET (shared with the gateway),
// CLERK_ISSUER. API keys are the gateway's business; what arrives here carries a token or is anonymous.
import { createServer } from "node:http";
import { buffer } from "node:stream/consumers";
import { App } from "@supabase/lite";
import { answerAsPostgrest } from "./answer.mjs";
import { connect } from "./connection.mjs";
import { refusal } from "./errors.mjs";
import { requestContext, requestForLite } from "./request.mjs";
import { tokenVerification } from "./tokens.mjs";

const { PORT, DATABASE_URL, CATALOG_URL, JWT_SECRET, CLERK_ISSUER } = process.env;

const app = new App({
  connection: await connect({ url: DATABASE_URL, catalogUrl: CATALOG_URL }),
  // As on hosted projects the extension safeupdate does: nobody changes every row by leaving out the filter.
  api: { schemas: ["public"], max_rows: 1000, pg_safe_update: true },
  // Nobody signs up here: Clerk is the only way in.
  auth: { enabled: true, jwt_secret: JWT_SECRET, enable_signup: false },
  db: { driver: "postgres", migrations: { enabled: false } },
  options: {
    server: {
      apiKeys: false,
      disableStudio: true,
      middlewares: [requestContext, tokenVerification({ secret: JWT_SECRET, issuer: CLERK_ISSUER }), requestForLite],
    },
  },
});

// Lite also has /_system, which prints its configuration: nothing but the two APIs is served.
const SERVED = /^\/(rest|auth)\/v1(\/|$)/;
const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const LONGEST_HEAD = 128 * 1024; // bytes of a request's first line and headers: long lists in URLs

async function answer(incoming) {
  const { method, headers } = incoming;
  const url = new URL(`http://127.0.0.1:${PORT}${incoming.url}`);
  if (!SERVED.test(url.pathname)) return new Response("Not Found", { status: 404 });
  if (!METHODS.includes(method))
    return answerAsPostgrest(incoming, refusal(405, "PGRST117", `Unsupported HTTP method: ${method}`));
  const body = await buffer(incoming);
  const mayHaveBody = !["GET", "HEAD"].includes(method);
  const request = new Request(url, { method, headers, body: mayHaveBody && body.length ? body : undefined });
  const response = await app.fetch(request);
  return url.pathname.startsWith("/rest/") ? answerAsPostgrest(request, response) : response;
}

// No adapter of Hono's: those invent a Content-Type for empty answers.
const server = createServer({ maxHeaderSize: LONGEST_HEAD }, async (incoming, outgoing) => {
  const response = await answer(incoming).catch((error) => {
    console.error(`${incoming.method}: ${error.name}`); // its message may quote the request
    return refusal(500, "PGRSTX00", "Internal error");
  });
  outgoing.statusCode = response.status;
  outgoing.setHeaders(response.headers);
  outgoing.end(Buffer.from(await response.arrayBuffer()));
});
server.listen(Number(PORT), "127.0.0.1");

for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => server.close(() => process.exit(0)));
