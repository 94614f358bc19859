// Embedded tables: refuses relationships that Lite finds and PostgREST does not.
//
// Example: a comment refers to an invoice and to its author. Lite takes comments for a junction and embeds authors in
// invoices. PostgREST does so only if the primary key of comments holds both references.

/** Throws PGRST200 for the first embedded table of `query` that PostgREST would not relate to the table `from`. */
export function checkEmbeddings(from, query, catalog) {
  for (const [name, { from: target = name, hint }] of Object.entries(query.join ?? {})) {
    const isTable = [from, target].every((each) => catalog.tables.some((table) => table.name === each));
    if (!isTable) continue; // a view, or a column that names the relationship
    if (!isRelated(from, target, hint, catalog)) throw notRelated(from, target, hint);
    const embedded = query.select?.find((each) => each[name]?.select)?.[name];
    if (embedded) checkEmbeddings(target, embedded, catalog);
  }
}

function isRelated(from, target, hint, { foreign_keys, primary_keys }) {
  const references = groupColumns(foreign_keys);
  const direct = references.filter((key) => [key.from, key.to].sort().join() === [from, target].sort().join());
  // A hint is the name of a constraint or of a junction, or the only column of a key.
  const isColumn = hint && !direct.some(({ name }) => name === hint) && direct.some(({ columns }) => columns.includes(hint));
  if (isColumn) return direct.some(({ columns }) => columns.length === 1 && columns[0] === hint);
  if (hint || direct.length) return true;
  return references.some((near) => near.to === from && references.some((far) => far.to === target && joins(near, far, primary_keys)));
}

// The catalog has a row for each column of a foreign key.
function groupColumns(foreignKeys) {
  const references = {};
  for (const { table, ref_table: to, foreign_key_name: name, column } of foreignKeys)
    (references[`${table} ${name}`] ??= { from: table, to, name, columns: [] }).columns.push(column);
  return Object.values(references);
}

function joins(near, far, primaryKeys) {
  const primary = primaryKeys.find((each) => each.table === near.from)?.columns ?? [];
  return near.from === far.from && near !== far && [...near.columns, ...far.columns].every((column) => primary.includes(column));
}

function notRelated(from, target, hint) {
  const using = hint ? ` using the hint '${hint}'` : "";
  const body = {
    code: "PGRST200",
    details: `Searched for a foreign key relationship between '${from}' and '${target}'${using} in the schema 'public', but no matches were found.`,
    hint: null,
    message: `Could not find a relationship between '${from}' and '${target}' in the schema cache`,
  };
  return Object.assign(new Error(JSON.stringify(body)), { code: "PGRST", detail: JSON.stringify({ status: 400, headers: {} }) });
}
