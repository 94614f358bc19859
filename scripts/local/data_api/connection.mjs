// Lite's connection to Postgres, with overrides that make it behave like PostgREST. A comment explains each override.
import { inspect } from "node:util";
import { createPostgresConnection } from "@supabase/lite/postgres";
import { sql } from "kysely";
import { answerFor } from "./errors.mjs";
import { currentRequest } from "./request.mjs";
import { passValuesUnchanged, readRequestsAsPostgrest, rollBackRefusals } from "./statements.mjs";
import { types } from "./values.mjs";

const POOL_SIZE = 10;

/** Connects as authenticator (`url`) and reads the catalog as postgres (`catalogUrl`). Resolves to Lite's connection. */
export async function connect({ url, catalogUrl }) {
  const connection = createPostgresConnection({ url, postgresOptions: options("data api", POOL_SIZE) });
  readCatalogAs(createPostgresConnection({ url: catalogUrl, postgresOptions: options("data api catalog", 1) }), connection);
  becomeTheCaller(connection);
  answerDatabaseErrors(connection);
  rollBackRefusals(connection);
  readRequestsAsPostgrest(connection);
  passValuesUnchanged(connection);
  await connection.driver.listen("pgrst", () => connection.clearSchemaCache());
  await followPreRequest(connection);
  return connection;
}

const options = (application_name, max) => ({ max, types, onnotice: () => {}, connection: { application_name } });

// Lite reads tables from information_schema, which hides tables without a grant to the role; PostgREST sees all tables.
// Lite also relates tables through those of other schemas, which PostgREST does not expose.
// Only the catalog is read as postgres. The statements of callers never run as postgres.
// A migration may commit while the catalog is read. Then the catalog is read again, so that no stale copy is cached.
function readCatalogAs(catalog, connection) {
  let changes = 0;
  connection.introspect = async (how) => {
    for (;;) {
      const before = changes;
      const introspection = { ...(await catalog.introspect(how)) };
      for (const kind of ["foreign_keys", "primary_keys"])
        introspection[kind] = introspection[kind].filter(({ schema }) => schema === "public");
      if (before === changes) return (connection.introspection = introspection);
      await catalog.clearSchemaCache();
    }
  };
  connection.viewOptionsMetadata = (view, schema) => catalog.viewOptionsMetadata(view, schema);
  connection.clearSchemaCache = async () => {
    changes += 1;
    connection.introspection = undefined;
    await catalog.clearSchemaCache();
  };
}

// Stock Lite grants everything to every role if a table has RLS, skips SET ROLE if none has, and sets request.* only for
// functions. PostgREST always switches to the caller's role, with the statement timeout of that role. It runs reads, and
// functions that are not volatile, in read-only transactions.
function becomeTheCaller(connection) {
  connection.ensureRlsContext = async () => true;
  connection.applyJwtSessionContext = async (transaction) => {
    const request = currentRequest();
    const { claims } = request;
    const { role } = claims;
    const calledFunction = request.path?.match(/^\/rpc\/(\w+)$/)?.[1] ?? "";
    await sql`select
      set_config('transaction_read_only', (${request.method ?? ""} in ('GET', 'HEAD') or coalesce(
        (select bool_and(provolatile <> 'v') from pg_catalog.pg_proc
         where proname = ${calledFunction} and pronamespace = 'public'::regnamespace), false))::text, true),
      set_config('statement_timeout', coalesce(
        (select substr(setting, 19) from pg_catalog.pg_roles, unnest(rolconfig) as setting
         where rolname = ${role} and setting like 'statement\\_timeout=%'),
        current_setting('statement_timeout')), true),
      set_config('timezone', ${request.prefer?.timezone ?? "UTC"}, true),
      set_config('role', ${role}, true),
      set_config('request.jwt.claims', ${JSON.stringify(claims)}, true),
      set_config('request.method', ${request.method ?? ""}, true),
      set_config('request.path', ${request.path ?? ""}, true),
      set_config('request.headers', ${JSON.stringify(request.headers ?? {})}, true)`.execute(transaction);
    if (connection.preRequest) await sql`select ${sql.raw(connection.preRequest)}()`.execute(transaction);
  };
  connection.applyRpcRequestGucs = async (transaction) => {
    await sql`select set_config('response.status', '', true), set_config('response.headers', '', true)`.execute(transaction);
  };
}

// As in PostgREST, the function named by authenticator's setting pgrst.db_pre_request runs as the caller, before
// anything else. A change of the setting takes effect with `notify pgrst, 'reload config'`.
async function followPreRequest(connection) {
  const read = async () => {
    const [setting] = await connection.driver`
      select substr(setting, 22) as name from pg_catalog.pg_roles, unnest(rolconfig) as setting
      where rolname = session_user and setting ~ '^pgrst[.]db_pre_request=[a-z0-9_.]+$'`;
    connection.preRequest = setting?.name;
  };
  await connection.driver.listen("pgrst", (payload) => payload === "reload schema" || read());
  await read();
}

// Stock Lite answers most SQLSTATEs with status 500 and code SUP. An error with code PGRST contains the whole response.
function answerDatabaseErrors(connection) {
  connection.normalizeDbError = (error) => {
    const request = currentRequest();
    const { method, path } = request;
    // Lite logs errors. Their messages may contain personal data, which must not be logged.
    const logAs = (text) => ({ [inspect.custom]: () => `${method} ${path}: ${text}` });
    const answer = answerFor(error, request);
    if (!answer) return Object.assign(error, logAs(error.name));
    const { body, status, headers } = answer;
    return Object.assign(
      new Error(JSON.stringify(body)),
      { code: "PGRST", detail: JSON.stringify({ status, headers }) },
      logAs(`SQLSTATE ${error.code}, answered ${status}`),
    );
  };
}
