// Keeps values exact between clients and Postgres: Lite would round numbers and interpret strings.
//
// Example: a client inserts {"amount": 1.10}. JavaScript would turn 1.10 into 1.1, so `markNumbers` makes it the string
// "digits <id> 1.10". `parameter` removes the mark before the statement runs, so Postgres receives 1.10. In the response,
// the numeric 1.10 becomes the same marked string, and `withoutMarks` turns it back into the number 1.10.
import { randomUUID } from "node:crypto";
import { sql } from "kysely";

// JavaScript cannot represent some numbers exactly, so they pass through Lite as marked strings. Marks are random, so
// that a client cannot write one.
const DIGITS = `digits ${randomUUID()} `;
// Lite parses strings that look like numbers, booleans or JSON, unless they start with this mark.
const AS_IS = `as is ${randomUUID()} `;

const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;
// In JSON a marked string becomes a number. Elsewhere, for example in an error message, only the mark is removed.
const MARKED_NUMBER = new RegExp(`(?<!\\\\)"${DIGITS}(-?\\d[\\d.eE+-]*)"|${DIGITS}`, "g");

const isExact = (number) => String(Number(number)) === number;

/** The JSON text with a marked string in place of each number that JavaScript cannot repeat, such as 1.10 or 2^63. */
export const markNumbers = (json) =>
  json.replace(STRING_OR_NUMBER, (token) => (token[0] === '"' || isExact(token) ? token : `"${DIGITS}${token}"`));

/** The URL with a mark before each number that JavaScript would round: in filters, and in arguments of a function. */
export const markLongNumbers = (url) =>
  url.replace(/(?<![\w"-])-?\d[\d.]{15,}(?![\w"-])/g, (number) => encodeURIComponent(AS_IS) + number);

// Example: in ?title=eq.null and ?title=eq."a" PostgREST passes the texts null and "a" to Postgres, with the quotes.
const INTERPRETED = /([?&][^=&]+=(?:not\.)?(?:n?eq|[lg]te?|i?like|isdistinct)\.)(?=(?:null|true|false|(?:%22|")[^&]*)(?:&|$))/g;

/** The URL of a table with a mark before each text in a filter that Lite would interpret. Lists are left as they are. */
export const markTexts = (url) => url.replace(INTERPRETED, (filter) => filter + encodeURIComponent(AS_IS));

/** A number that Postgres printed: a JavaScript number if that is exact, otherwise a marked string. */
const numberOf = (text) =>
  /^-?\d/.test(text) && !isExact(text) ? DIGITS + text : Number.isFinite(Number(text)) ? Number(text) : text;

/** The text (JSON, CSV or a parameter) without marks. */
export const withoutMarks = (text) => text.replace(MARKED_NUMBER, (_, number = "") => number).replaceAll(AS_IS, "");

/** A parameter of a statement as the client wrote it. */
export function parameter(value) {
  if (Array.isArray(value)) return value.map(parameter);
  return typeof value === "string" ? withoutMarks(value) : value;
}

// Stock Lite prints timestamps as `2026-11-22 08:40:06+00`, numerics as strings and bytea as an object.
const isoTimestamp = (text) => text.replace(" ", "T").replace(/([+-]\d\d)$/, "$1:00");
const asIs = (value) => value;
const hexadecimal = (value) => (typeof value === "string" ? value : `\\x${Buffer.from(value).toString("hex")}`);

// A string already is JSON text, so the driver must not encode it again.
const jsonText = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const parseJson = (text) => JSON.parse(markNumbers(text));

/** The types of the driver `postgres`, for Lite's connection. */
export const types = {
  timestamptz: { to: 1184, from: [1184], serialize: asIs, parse: isoTimestamp },
  timestamp: { to: 1114, from: [1114], serialize: asIs, parse: isoTimestamp },
  bigint: { to: 20, from: [20], serialize: String, parse: numberOf },
  numeric: { to: 1700, from: [1700], serialize: String, parse: numberOf },
  float: { to: 701, from: [700, 701], serialize: String, parse: numberOf },
  json: { to: 114, from: [114], serialize: jsonText, parse: parseJson },
  jsonb: { to: 3802, from: [3802], serialize: jsonText, parse: parseJson },
  bytea: { to: 17, from: [17], serialize: hexadecimal, parse: asIs },
};

/**
 * The rows that a client writes, in a form that Lite passes on unchanged. With `columns` every row has these columns: a
 * missing value becomes null, or the column's default.
 */
export function writtenRows(values, { columns, missing, jsonColumns }) {
  const absent = missing === "default" ? sql`default` : null;
  const writeValue = (name, value) => {
    if (value === undefined) return absent;
    if (value === null) return null;
    if (jsonColumns.has(name)) return AS_IS + JSON.stringify(value);
    return typeof value === "string" ? AS_IS + value : value;
  };
  const row = (given) => Object.fromEntries((columns ?? Object.keys(given)).map((name) => [name, writeValue(name, given[name])]));
  return Array.isArray(values) ? values.map((each) => (isRow(each) ? row(each) : each)) : row(values);
}

const isRow = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
