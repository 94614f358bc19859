// The demo page: who one is, and in which organization. Its data comes straight from Supabase, not through our service.

import { Clerk } from "./clerk.js";
import { copyOf, element, fill, initialsOf, isTicked, showText } from "./elements.js";
import { Live } from "./live.js";
import { Refresh } from "./refresh.js";
import { Workspace } from "./workspace.js";
import { offerYourData } from "./your_data.js";

const LIVE = { connecting: "Connecting", live: "Live", lost: "Connection lost, reconnecting" };

const config = await (await fetch("/demo/config.json")).json();
const clerk = new Clerk(config.clerk_issuer);
const isStandIn = !config.clerk_issuer.startsWith("https:"); // Clerk itself answers by https only

let leave = () => {}; // ends what shows now

function show() {
  leave();
  if (isStandIn) leave = clerk.session ? showSession() : showSignIn();
  else showRealClerk();
  element("main").focus();
}

function showRealClerk() {
  fill(element("real-clerk"), { issuer: config.clerk_issuer });
  element("real-clerk").hidden = false;
}

function showSignIn() {
  element("sign-in").hidden = false;
  clerk.people().then(drawPeople, (error) => showText("alert", `Clerk’s stand-in does not answer: ${error.message}`));
  return () => {
    element("sign-in").hidden = true;
    showText("alert", "");
  };
}

function drawPeople(people) {
  const buttons = people.map(({ user_id: id, name, organizations }) => {
    const item = copyOf("person-button");
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
  const supabase = globalThis.supabase.createClient(config.supabase_url, config.supabase_publishable_key, {
    accessToken: () => clerk.session?.getToken() ?? null,
    realtime: { heartbeatIntervalMs: 15_000 }, // with each, supabase-js asks for a token: Clerk's live 60 s
  });
  const live = new Live(supabase, drawLive);
  const closing = new AbortController();
  let workspace = null;

  const refresh = new Refresh(startSession, failed, () => showText("alert", ""));

  async function startSession() {
    const { data: session } = await supabase.rpc("start_session").abortSignal(closing.signal).throwOnError();
    if (!closing.signal.aborted) enter(session);
  }

  /**
   * Shows the active organization, or another one of the person's when they have left it.
   * @param {any} session as start_session() returns it
   */
  function enter({ profile, organizations }) {
    const active = organizations.find((each) => each.clerk_org_id === clerk.organization?.id) ?? organizations[0];
    drawOrganizations(organizations, active);
    if (workspace && workspace.organizationId === active?.id) {
      workspace.permit(active);
      return;
    }
    close();
    element("workspace").hidden = !active;
    if (!active) {
      showText("alert", "You belong to no organization. Once Clerk has told of one, sign in again.");
      return;
    }
    if (clerk.organization?.id !== active.clerk_org_id) clerk.setActive({ organization: active.clerk_org_id });
    workspace = new Workspace({
      supabase,
      live,
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

  function failed(error) {
    if (error.code === "PT403") close(); // banned or deleted: what shows was read before
    if (error.code === "resource_not_found") signOut(); // Clerk no longer knows the person
    showText("alert", error.message);
  }

  function switchOrganization({ target }) {
    clerk.setActive({ organization: target.value });
    refresh.ask();
  }

  element("session").hidden = false;
  fill(element("session"), { name: clerk.user.fullName, initials: initialsOf(clerk.user.fullName) });
  element("organization").addEventListener("change", switchOrganization, { signal: closing.signal });
  offerYourData(clerk, closing.signal, signOut);
  drawLive(live.state);
  refresh.ask();

  return () => {
    closing.abort();
    refresh.stop();
    close();
    supabase.removeAllChannels();
    element("organization").replaceChildren();
    element("session").hidden = true;
  };
}

function signOut() {
  clerk.signOut();
  show();
}

function drawOrganizations(organizations, active) {
  const options = organizations.map(
    ({ name, clerk_org_id: id }) => new Option(name, id, false, id === active.clerk_org_id),
  );
  element("organization").replaceChildren(...options);
}

function drawLive(state) {
  element("live").dataset.state = state;
  element("live").textContent = LIVE[state];
}

element("sign-out").addEventListener("click", signOut);
show();
