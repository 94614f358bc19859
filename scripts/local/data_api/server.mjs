// The Data API of the local stack: embeds Supabase Lite, and makes it answer as hosted PostgREST does.
//
// `lite start` is not used: it writes to supabase_migrations, and creates auth.* and grants at every start.
// The embedded App only reads the catalog and runs the statements of its callers, as the role of their token.
//
// docs/local-stack.md lists the remaining differences: no code of this repository may rely on them.
//
// Environment: PORT, DATABASE_URL (as authenticator), CATALOG_URL (as postgres), JWT_SECRET (shared with the gateway),
// CLERK_ISSUER. The gateway checks the API keys; a request here has a token or is anonymous.
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
  // Like the extension safeupdate on hosted projects: refuses updates and deletions without a filter.
  api: { schemas: ["public"], max_rows: 1000, pg_safe_update: true },
  // Users sign up at Clerk only.
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

// Only the two APIs are served: Lite also has /_system, which prints its configuration.
const SERVED = /^\/(rest|auth)\/v1(\/|$)/;
const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const LONGEST_HEAD = 128 * 1024; // bytes of a request's first line and headers; URLs may contain long lists

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

// Hono's adapters are not used: they add a Content-Type to empty responses.
const server = createServer({ maxHeaderSize: LONGEST_HEAD }, async (incoming, outgoing) => {
  const response = await answer(incoming).catch((error) => {
    console.error(`${incoming.method}: ${error.name}`); // the message may quote the request, so it is not logged
    return refusal(500, "PGRSTX00", "Internal error");
  });
  outgoing.statusCode = response.status;
  outgoing.setHeaders(response.headers);
  outgoing.end(Buffer.from(await response.arrayBuffer()));
});
server.listen(Number(PORT), "127.0.0.1");

for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => server.close(() => process.exit(0)));
