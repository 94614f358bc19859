// What a person may ask of the service about themselves: a copy of their data, and their erasure.

import { element, showText } from "./elements.js";

const EXPLANATION = "A copy of all that is held of you, or an end of it.";
const CONFIRMATION = "erase my account";

/** Works until `signal` comes. `onErased()` runs when nobody of that name is here any more. */
export function offerYourData(clerk, signal, onErased) {
  const acts = {
    download: () => download(clerk),
    erase: () => ask(true),
    keep: () => ask(false),
    confirm: async () => {
      await erase(clerk);
      onErased();
      element("receipt").focus();
    },
  };
  ask(false);
  showText("your-data-told", EXPLANATION);
  element("receipt").hidden = true;
  for (const [name, act] of Object.entries(acts)) {
    const button = document.querySelector(`:is(#your-data, #erasing) [data-act="${name}"]`);
    button.addEventListener("click", () => runAction(button, act), { signal });
  }
}

async function runAction(button, act) {
  button.disabled = true;
  try {
    await act();
  } catch (error) {
    ask(false);
    showText("your-data-told", error.message);
  } finally {
    button.disabled = false;
  }
}

function ask(isErasing) {
  element("your-data").hidden = isErasing;
  element("erasing").hidden = !isErasing;
  if (isErasing) /** @type {HTMLElement} */ (element("erasing").querySelector("[data-act=keep]")).focus();
}

async function download(clerk) {
  const answer = await call(clerk, "/api/v1/gdpr/export", { headers: { Accept: "application/zip" } });
  const url = URL.createObjectURL(await answer.blob());
  const name = answer.headers.get("Content-Disposition").match(/filename="(.+)"/)[1];
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  URL.revokeObjectURL(url);
  showText("your-data-told", `${name} is on its way.`);
}

async function erase(clerk) {
  const body = JSON.stringify({ confirmation: CONFIRMATION });
  const headers = { "Content-Type": "application/json" };
  const answer = await call(clerk, "/api/v1/gdpr/erasure", { method: "POST", headers, body });
  const { receipt } = await answer.json();
  element("receipt").hidden = false;
  showText("receipt", `You are being erased. Your receipt is ${receipt}`);
}

/** The service's answer. Throws what it says when it refuses, and which organizations are in the way. */
async function call(clerk, path, { headers, ...how }) {
  const token = await clerk.session.getToken();
  const answer = await fetch(path, { ...how, headers: { ...headers, Authorization: `Bearer ${token}` } });
  if (answer.ok) return answer;
  const { detail, organizations = [] } = await answer.json();
  throw new Error([...organizations.map(({ name }) => `You are the only owner of ${name}.`), detail].join(" "));
}
