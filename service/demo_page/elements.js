// DOM functions that the modules of the page share. Data becomes text, never markup.

export const element = (id) => document.getElementById(id);

/**
 * A copy of a template's only element.
 * @returns {any} because its content depends on the page
 */
export const cloneTemplate = (templateId) =>
  /** @type {HTMLTemplateElement} */ (element(templateId)).content.firstElementChild.cloneNode(true);

/** Whether a checkbox is ticked. */
export const isTicked = (id) => /** @type {HTMLInputElement} */ (element(id)).checked;

/** Sets an element's text. "alert" is visible; "status" is read only by screen readers. */
export function setText(id, text) {
  element(id).textContent = text;
}

/** Sets the text of the descendants with these data-slot names. */
export function fill(parent, texts) {
  for (const [slot, text] of Object.entries(texts)) parent.querySelector(`[data-slot="${slot}"]`).textContent = text;
}

/** Updates a list to show `rows` in order. `key(row)` identifies an item, `make(row)` creates it, `draw` updates it. */
export function drawList(list, rows, { key, make, draw }) {
  const existing = new Map([...list.children].map((item) => [item.dataset.key, item]));
  rows.forEach((row, position) => {
    const item = existing.get(key(row)) ?? make(row);
    existing.delete(key(row));
    item.dataset.key = key(row);
    draw(item, row);
    // Only items out of place are moved, because a moved element loses the focus.
    if (list.children[position] !== item) list.insertBefore(item, list.children[position] ?? null);
  });
  for (const item of existing.values()) item.remove();
}

export function initialsOf(name) {
  const words = name.match(/[\p{L}\p{N}]+/gu) ?? ["?"];
  return (words[0][0] + (words.length > 1 ? words.at(-1)[0] : "")).toUpperCase();
}

const timeFormat = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "numeric",
  minute: "2-digit",
});

export const formatTime = (timestamp) => timeFormat.format(new Date(timestamp));
