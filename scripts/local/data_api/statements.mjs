// Changes the syntax tree, the statements and the values that Lite makes of a request, and rolls back refused changes.
import { checkEmbeddings } from "./embedding.mjs";
import { refusal } from "./errors.mjs";
import { currentRequest } from "./request.mjs";
import { parameter, writtenRows } from "./values.mjs";

class RolledBack extends Error {
  constructor(answer) {
    super("rolled back");
    this.answer = answer;
  }
}

// Stock Lite commits a change although it refuses to return its rows, for example several rows as one object.
const ROLLED_BACK = ["PGRST116", "PGRST124"];

export function rollBackRefusals(connection) {
  const withContext = connection.withContext.bind(connection);
  connection.withContext = async (variables, work, options) => {
    const limit = options?.rpc && limitOnRows();
    if (limit !== undefined && !(await returnsRows(connection, options.rpc))) return needsRows();
    const workOrRollBack = async (transaction) => {
      const answer = withinLimit(await work(transaction), limit);
      if (ROLLED_BACK.includes(await codeOf(answer))) throw new RolledBack(answer);
      return answer;
    };
    try {
      return await withContext(variables, workOrRollBack, options);
    } catch (error) {
      if (error instanceof RolledBack) return error.answer;
      throw error;
    }
  };
}

async function codeOf(answer) {
  const isError = answer instanceof Response && answer.status >= 400 && /json/.test(answer.headers.get("content-type"));
  return isError ? (await answer.clone().json())?.code : undefined;
}

// Stock Lite supports Prefer: max-affected only for tables.
function limitOnRows() {
  const { prefer } = currentRequest();
  return prefer.handling === "strict" && "max-affected" in prefer ? Number(prefer["max-affected"]) : undefined;
}

async function returnsRows(connection, { path }) {
  const { functions } = await connection.introspect({ useCache: true });
  return functions.some(({ schema, name, return_is_setof }) => schema === "public" && path === `/rpc/${name}` && return_is_setof);
}

const needsRows = () =>
  refusal(400, "PGRST128", "Function must return SETOF or TABLE when max-affected preference is used with handling=strict");

function withinLimit(answer, limit) {
  const [, first, last] = /^(\d+)-(\d+)/.exec(answer?.headers?.get("content-range")) ?? [];
  const rows = last === undefined ? 0 : last - first + 1;
  if (limit === undefined || rows <= limit) return answer;
  return refusal(400, "PGRST124", "Query result exceeds max-affected preference constraint", `The query affects ${rows} rows`);
}

const LIKE_ANY_OF = ["$likeAny", "$likeAll", "$ilikeAny", "$ilikeAll"];

// Changes the syntax tree of a request before Lite turns it into SQL.
export function readRequestsAsPostgrest(connection) {
  const onPostgrestAST = connection.onPostgrestAST.bind(connection);
  connection.onPostgrestAST = async (request) => {
    const ast = await onPostgrestAST(request);
    if (ast.join) checkEmbeddings(ast.from, ast, await connection.introspect({ useCache: true }));
    starsAsPercent([ast.where, ast.select]);
    // PostgREST estimates a count only if it is larger than one page.
    if (ast.$meta?.count === "estimated") ast.$meta.count = "exact";
    // Stock Lite counts the rows only if it returns them.
    if (ast.$meta?.cardinality === "one" && ast.$meta.return === "minimal") delete ast.$meta.return;
    // An update without columns changes nothing, so it needs no filter.
    if (ast.type === "update" && ast.values && !Object.keys(ast.values).length) ast.where ??= { $always: false };
    if (ast.where?.$or) ast.where.$or = ast.where.$or.map(await nullCheck(connection, ast));
    if (ast.values && ["insert", "upsert", "update"].includes(ast.type)) {
      const { columns } = await connection.introspect({ useCache: true });
      const isJson = ({ table, schema, type }) =>
        table === ast.from && schema === (ast.schema ?? "public") && /^jsonb?$/.test(type);
      const jsonColumns = new Set(columns.filter(isJson).map(({ name }) => name));
      ast.values = writtenRows(ast.values, { ...ast.$meta, jsonColumns });
    }
    return ast;
  };
}

// Stock Lite supports a null check of an embedded table on its own, but not as an alternative in `or`.
async function nullCheck(connection, ast) {
  const { foreign_keys } = await connection.introspect({ useCache: true });
  const rows = (name) => {
    const embedded = ast.select?.find((each) => each[name]?.select)?.[name];
    const target = ast.join?.[name]?.from ?? name;
    const [key, ...others] = foreign_keys.filter(
      (each) => [each.table, each.ref_table].includes(ast.from) && [each.table, each.ref_table].includes(target),
    );
    if (!embedded || !key || others.length || target === ast.from) return undefined;
    const [inner, outer] = key.table === target ? [key.column, key.ref_column] : [key.ref_column, key.column];
    const where = { ...embedded.where, [inner]: { $eq: { $ref: `${ast.from}.${outer}` } } };
    return { type: "query", schema: ast.schema, from: target, select: [inner], where };
  };
  return function withExists(condition) {
    const [name, test] = Object.entries(condition)[0];
    if (Array.isArray(test)) return { [name]: test.map(withExists) };
    const embedded = test?.$is === null || test?.$isNot === null ? rows(name) : undefined;
    if (!embedded) return condition;
    return test.$is === null ? { $not: { $exists: embedded } } : { $exists: embedded };
  };
}

// Stock Lite accepts `*` as a wildcard in like, but not in like(any), like(all), ilike(any) and ilike(all).
function starsAsPercent(node) {
  for (const [key, value] of Object.entries(node)) {
    if (LIKE_ANY_OF.includes(key)) node[key] = [value].flat().map((each) => String(each).replaceAll("*", "%"));
    else if (value !== null && typeof value === "object") starsAsPercent(value);
  }
}

// Passes each parameter to the driver as the client wrote it. Lite encodes arguments of type json and jsonb as JSON text,
// except strings, so these are encoded here. In a GET request an argument already is JSON text.
export function passValuesUnchanged(connection) {
  const jsonArgument = /("?)(\w+)\1 := \$(\d+)::jsonb?(?![[\w])/g;
  const reserve = connection.driver.reserve;
  connection.driver.reserve = async (...how) => {
    const client = await reserve(...how);
    const unsafe = client.unsafe;
    client.unsafe = (query, values = [], ...rest) => {
      const { body } = currentRequest();
      for (const [, , name, number] of query.matchAll(jsonArgument))
        if (typeof body?.[name] === "string") values[number - 1] = JSON.stringify(body[name]);
      // Stock Lite writes invalid SQL for a row without columns.
      const statement = query.replace(/^(insert into [^(]+) \(\) values \(\)/, "$1 default values");
      return unsafe(statement, values.map(parameter), ...rest);
    };
    return client;
  };
}
