// The demo page: sign-in and choice of organization. It reads its data directly from Supabase, not through our service.

import { createBallastClient, Refresh } from "./ballast.js";
import { Clerk } from "./clerk.js";
import { cloneTemplate, element, fill, initialsOf, isTicked, setText } from "./elements.js";
import { Workspace } from "./workspace.js";
import { showYourData } from "./your_data.js";

const LIVE_LABELS = { connecting: "Connecting", live: "Live", lost: "Connection lost, reconnecting" };

const config = await (await fetch("/demo/config.json")).json();
const clerk = new Clerk(config.clerk_issuer);
const isStandIn = !config.clerk_issuer.startsWith("https:"); // Clerk itself uses https only

let closeView = () => {};

function show() {
  closeView();
  if (isStandIn) closeView = clerk.session ? showSession() : showSignIn();
  else showRealClerk();
  element("main").focus();
}

function showRealClerk() {
  fill(element("real-clerk"), { issuer: config.clerk_issuer });
  element("real-clerk").hidden = false;
}

function showSignIn() {
  element("sign-in").hidden = false;
  const showOutage = (error) => setText("alert", `Clerk’s stand-in does not answer: ${error.message}`);
  clerk.listPeople().then(drawPeople, showOutage);
  return () => {
    element("sign-in").hidden = true;
    setText("alert", "");
  };
}

function drawPeople(people) {
  const buttons = people.map(({ user_id: id, name, organizations }) => {
    const item = cloneTemplate("person-button");
    const places = organizations.map((each) => `${each.name} (${each.role.replace("org:", "")})`);
    fill(item, { name, initials: initialsOf(name), organizations: places.join(", ") || "no organization" });
    item.querySelector("button").addEventListener("click", () => {
      clerk.signIn({
        user: { id, fullName: name },
        organization: organizations[0]?.organization_id ?? null,
        secondFactor: isTicked("second-factor"),
      });
      show();
    });
    return item;
  });
  element("people").replaceChildren(...buttons);
}

function showSession() {
  const ballast = createBallastClient(clerk, {
    createClient: globalThis.supabase.createClient,
    supabaseUrl: config.supabase_url,
    publishableKey: config.supabase_publishable_key,
    onLive: drawLive,
  });
  const closing = new AbortController();
  let workspace = null;
  let organizations = [];

  const refresh = new Refresh(startSession, showFailure, () => setText("alert", ""));

  async function startSession() {
    const session = await ballast.session();
    if (!closing.signal.aborted) enter(session);
  }

  /** Shows the current organization. */
  function enter({ profile, organization: active, ...session }) {
    organizations = session.organizations;
    drawOrganizations(organizations, active);
    if (workspace && workspace.organizationId === active?.id) {
      workspace.updateAccess(active);
      return;
    }
    close();
    element("workspace").hidden = !active;
    if (!active) {
      setText("alert", "You are not a member of any organization. When you have joined one, sign in again.");
      return;
    }
    workspace = new Workspace({
      ballast,
      organization: active,
      profileId: profile.id,
      onAccess: () => refresh.ask(),
    });
  }

  function close() {
    workspace?.close();
    workspace = null;
    element("workspace").hidden = true;
  }

  function showFailure(error) {
    if (error.code === "PT403") close(); // banned or deleted: hide what was read before
    if (error.code === "resource_not_found") signOut(); // the person no longer exists at Clerk
    setText("alert", error.message);
  }

  async function switchOrganization({ target }) {
    await ballast.switchOrganization(organizations.find((each) => each.id === target.value)).catch(showFailure);
    refresh.ask();
  }

  element("session").hidden = false;
  fill(element("session"), { name: clerk.user.fullName, initials: initialsOf(clerk.user.fullName) });
  element("organization").addEventListener("change", switchOrganization, { signal: closing.signal });
  showYourData(ballast, closing.signal, signOut);
  drawLive(ballast.live);
  refresh.ask();

  return () => {
    closing.abort();
    refresh.stop();
    close();
    ballast.close();
    element("organization").replaceChildren();
    element("session").hidden = true;
  };
}

function signOut() {
  clerk.signOut();
  show();
}

function drawOrganizations(organizations, active) {
  const options = organizations.map(({ name, id }) => new Option(name, id, false, id === active.id));
  element("organization").replaceChildren(...options);
}

function drawLive(state) {
  element("live").dataset.state = state;
  element("live").textContent = LIVE_LABELS[state];
}

element("sign-out").addEventListener("click", signOut);
show();
