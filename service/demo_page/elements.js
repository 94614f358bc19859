// What the parts of the page share. Data becomes text, never markup.

export const element = (id) => document.getElementById(id);

/**
 * A copy of a template's one element.
 * @returns {any} for what is in it only the page says
 */
export const copyOf = (templateId) =>
  /** @type {HTMLTemplateElement} */ (element(templateId)).content.firstElementChild.cloneNode(true);

/** Whether a checkbox is ticked. */
export const isTicked = (id) => /** @type {HTMLInputElement} */ (element(id)).checked;

/** Shows a text in "alert", or tells it to screen readers in "status". */
export function showText(where, text) {
  element(where).textContent = text;
}

/** Puts text into the descendants that are marked with data-slot. */
export function fill(parent, texts) {
  for (const [slot, text] of Object.entries(texts)) parent.querySelector(`[data-slot="${slot}"]`).textContent = text;
}

/** Makes the items of a list those of `rows`, in that order: told apart by `key(row)`, made and drawn by the others. */
export function drawList(list, rows, { key, make, draw }) {
  const there = new Map([...list.children].map((item) => [item.dataset.key, item]));
  rows.forEach((row, position) => {
    const item = there.get(key(row)) ?? make(row);
    there.delete(key(row));
    item.dataset.key = key(row);
    draw(item, row);
    // Only what is out of place moves: whoever is moved loses the focus.
    if (list.children[position] !== item) list.insertBefore(item, list.children[position] ?? null);
  });
  for (const item of there.values()) item.remove();
}

export function initialsOf(name) {
  const words = name.match(/[\p{L}\p{N}]+/gu) ?? ["?"];
  return (words[0][0] + (words.length > 1 ? words.at(-1)[0] : "")).toUpperCase();
}

const moment = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "numeric",
  minute: "2-digit",
});

export const momentOf = (timestamp) => moment.format(new Date(timestamp));
