// The Data API of the local stack: Supabase's own Lite, embedded, made to answer as hosted PostgREST does.
//
// `lite start` is not used: it records itself in supabase_migrations, re-creates auth.* and grants at every start.
// The embedded App only reads the catalog and runs the statements of its callers, as the role their token names.
//
// What remains different, so that nothing of ours may rely on it: integers above 2^53 lose digits, a string that holds
// JSON is parsed when it is inserted into a json column, Prefer: missing=default and tx=rollback are ignored, DELETE
// ignores limit, count=planned counts exactly, there are no aggregates, EXPLAIN plans or OpenAPI description.
//
// Environment: PORT, DATABASE_URL (as authenticator), CATALOG_URL (as postgres), JWT_SECRET (shared with the gateway),
// CLERK_ISSUER. API keys are the gateway's business; what arrives here carries a token or is anonymous.
import { serve } from "@hono/node-server";
import { App } from "@supabase/lite";
import { connect } from "./connection.mjs";
import { requestContext } from "./request.mjs";
import { tokenVerification } from "./tokens.mjs";

const { PORT, DATABASE_URL, CATALOG_URL, JWT_SECRET, CLERK_ISSUER } = process.env;

const app = new App({
  connection: await connect({ url: DATABASE_URL, catalogUrl: CATALOG_URL }),
  api: { schemas: ["public"], max_rows: 1000 },
  // Nobody signs up here: Clerk is the only way in.
  auth: { enabled: true, jwt_secret: JWT_SECRET, enable_signup: false },
  db: { driver: "postgres", migrations: { enabled: false } },
  options: {
    server: {
      apiKeys: false,
      disableStudio: true,
      middlewares: [requestContext, tokenVerification({ secret: JWT_SECRET, issuer: CLERK_ISSUER })],
    },
  },
});

// Lite also has /_system, which prints its configuration: nothing but the two APIs is served.
const served = /^\/(rest|auth)\/v1(\/|$)/;

const server = serve({
  port: Number(PORT),
  hostname: "127.0.0.1",
  fetch: (request) =>
    served.test(new URL(request.url).pathname) ? app.fetch(request) : new Response("Not Found", { status: 404 }),
});

for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => server.close(() => process.exit(0)));
