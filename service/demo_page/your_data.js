// The person's own data: downloads a copy and requests erasure, through the service.

import { element, setText } from "./elements.js";

const INTRODUCTION = "Download all data about you, or erase your account.";
const CONFIRMATION = "erase my account";

/** Works until `signal` is aborted. `onErased()` runs once the person is hidden and being erased. */
export function showYourData(ballast, signal, onErased) {
  const acts = {
    download: () => download(ballast),
    erase: () => askConfirmation(true),
    cancel: () => askConfirmation(false),
    confirm: async () => {
      await erase(ballast);
      onErased();
      element("receipt").focus();
    },
  };
  askConfirmation(false);
  setText("your-data-message", INTRODUCTION);
  element("receipt").hidden = true;
  for (const [name, act] of Object.entries(acts)) {
    const button = document.querySelector(`:is(#your-data, #erasing) [data-act="${name}"]`);
    button.addEventListener("click", () => carryOut(button, act), { signal });
  }
}

async function carryOut(button, act) {
  button.disabled = true;
  try {
    await act();
  } catch (error) {
    askConfirmation(false);
    setText("your-data-message", error.message);
  } finally {
    button.disabled = false;
  }
}

function askConfirmation(isErasing) {
  element("your-data").hidden = isErasing;
  element("erasing").hidden = !isErasing;
  if (isErasing) /** @type {HTMLElement} */ (element("erasing").querySelector("[data-act=cancel]")).focus();
}

async function download(ballast) {
  const answer = await call(ballast, "/api/v1/gdpr/export", { headers: { Accept: "application/zip" } });
  const url = URL.createObjectURL(await answer.blob());
  const name = answer.headers.get("Content-Disposition").match(/filename="(.+)"/)[1];
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  URL.revokeObjectURL(url);
  setText("your-data-message", `${name} was downloaded.`);
}

async function erase(ballast) {
  const body = JSON.stringify({ confirmation: CONFIRMATION });
  const headers = { "Content-Type": "application/json" };
  const answer = await call(ballast, "/api/v1/gdpr/erasure", { method: "POST", headers, body });
  const { receipt } = await answer.json();
  element("receipt").hidden = false;
  setText("receipt", `Your account is being erased. Your receipt is ${receipt}`);
}

/** Calls the service. If it refuses, throws its reason and the organizations that have no other owner. */
async function call(ballast, path, options) {
  try {
    return await ballast.request(path, options);
  } catch (error) {
    const owned = (error.problem?.organizations ?? []).map(({ name }) => `You are the only owner of ${name}.`);
    throw new Error([...owned, error.message].join(" "));
  }
}
