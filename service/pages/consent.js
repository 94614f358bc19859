// A consent banner for any page. docs/personal-data.md explains how to use it.
//   <script src="https://api.example.com/consent.js" defer data-categories="analytics,marketing" data-version="1"></script>
// Nothing is stored before the visitor chooses. Then localStorage has "consent": {version, at, choices}.
(() => {
  const KEY = "consent";
  const { src, dataset } = document.currentScript;
  const { categories = "", version = "1", privacy = "/legal/privacy" } = dataset;
  const names = categories.split(",").map((name) => name.trim()).filter((name) => name && name !== "essential");
  const ABOUT = {
    essential: "Sign-in, and this choice. Always on.",
    analytics: "How this site is used.",
    marketing: "Advertising and its effect.",
  };
  const style = new CSSStyleSheet();
  style.replaceSync(`
    :host { all: initial !important; --surface: #fff; --text: #16191d; --muted: #596068; --line: #868e96;
      --accent: #0f766e; --ink: #fff; --link: #0b5f58; }
    @media (prefers-color-scheme: dark) {
      :host { --surface: #1d2125; --text: #eceef0; --muted: #a0a8b0; --line: #7b848d; --accent: #2dd4bf;
        --ink: #04201d; --link: #5eead4; }
    }
    @media print { :host { display: none !important; } }
    * { box-sizing: border-box; }
    [hidden] { display: none !important; }
    .dialog { position: fixed; z-index: 2147483647; right: 16px; bottom: 16px; width: min(400px, 100% - 32px);
      max-height: calc(100dvh - 32px); overflow: auto; padding: 20px; border-radius: 14px; background: var(--surface);
      color: var(--text); font: 15px/1.5 system-ui, sans-serif; border: 1px solid #8885;
      box-shadow: 0 12px 40px #0004; }
    h2 { margin: 0 0 4px; font-size: 17px; }
    p { margin: 0 0 16px; color: var(--muted); }
    a { color: var(--link); }
    fieldset { margin: 0 0 16px; padding: 0; border: 0; }
    label { display: flex; justify-content: space-between; align-items: center; gap: 16px; padding: 8px 0; font-weight: 500; }
    small { display: block; color: var(--muted); font-size: 13px; font-weight: 400; }
    input { appearance: none; flex: none; position: relative; width: 38px; height: 22px; margin: 0; border-radius: 99px;
      background: var(--line); forced-color-adjust: none; }
    input::after { content: ""; position: absolute; inset: 3px auto 3px 3px; width: 16px; border-radius: 50%;
      background: var(--surface); }
    input:checked { background: var(--accent); }
    input:checked::after { translate: 16px; }
    input:disabled { opacity: .5; }
    .equal { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
    button { padding: 9px 12px; border: 1px solid var(--accent); border-radius: 10px; background: var(--accent);
      color: var(--ink); font: inherit; font-weight: 600; cursor: pointer; }
    .choose { width: 100%; margin-top: 10px; border-color: var(--line); background: none; color: var(--text); }
    :focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
    .status { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
    @media (prefers-reduced-motion: no-preference) {
      .dialog { animation: rise .2s; }
      @keyframes rise { from { opacity: 0; translate: 0 8px; } }
    }
  `);

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const makeButton = (text, onclick) => Object.assign(make("button", { type: "button" }, text), { onclick });

  function makeSwitch(name, attributes) {
    const input = make("input", { type: "checkbox", role: "switch", ...attributes });
    const about = ABOUT[name] ? [make("small", {}, ABOUT[name])] : [];
    fieldset.append(make("label", {}, make("span", {}, name[0].toUpperCase() + name.slice(1), ...about), input));
    return input;
  }

  /** The stored answer; null if it is missing, malformed or of another version, or storage is blocked. */
  function readAnswer() {
    try {
      const found = JSON.parse(localStorage.getItem(KEY));
      return found.version === version && Object(found.choices) === found.choices ? found : null;
    } catch {
      return null;
    }
  }

  let answer = readAnswer();
  let opener = null;

  const allows = (name) => name === "essential" || (names.includes(name) && answer?.choices?.[name] === true);
  const byName = (value) => Object.fromEntries(names.map((name) => [name, value(name)]));
  const choices = () => byName(allows);
  const notify = () => document.dispatchEvent(new CustomEvent(KEY, { detail: choices() }));

  function decide(choice) {
    answer = { version, at: new Date().toISOString(), choices: byName(choice) };
    try {
      localStorage.setItem(KEY, JSON.stringify(answer));
    } catch {
      // Storage is blocked: the answer applies to this page only.
    }
    close();
    status.textContent = "Your choice is saved.";
    notify();
  }

  function show(expanded) {
    for (const name of names) switches[name].checked = allows(name);
    expand(expanded);
    dialog.hidden = false;
    status.textContent = "";
  }

  function expand(expanded) {
    fieldset.hidden = !expanded;
    choose.textContent = expanded ? "Save my choice" : "Choose";
  }

  function close() {
    dialog.hidden = true;
    opener?.focus();
    opener = null;
  }

  /** Shows the current choice and takes the focus. Escape returns the focus. */
  function open(from) {
    if (from !== host) opener = from;
    show(answer !== null);
    dialog.focus();
  }

  const fieldset = make("fieldset", { "aria-label": "Your choices" });
  makeSwitch("essential", { checked: "", disabled: "" });
  const switches = byName((name) => makeSwitch(name));
  const choose = makeButton("", () => {
    if (!fieldset.hidden) return decide((name) => switches[name].checked);
    expand(true);
    switches[names[0]]?.focus();
  });
  choose.className = "choose";
  const refuse = makeButton("Refuse all", () => decide(() => false));
  const accept = makeButton("Accept all", () => decide(() => true));
  const link = make("a", { href: new URL(privacy, src).href }, "Privacy policy");
  const dialog = make(
    "div",
    { class: "dialog", role: "dialog", "aria-labelledby": "title", "aria-describedby": "text", tabindex: "-1", hidden: "" },
    make("h2", { id: "title" }, "Your privacy"),
    make("p", { id: "text" }, "We store what this site needs to work. We store anything else only if you agree. ", link),
    fieldset,
    make("div", { class: "equal" }, refuse, accept),
    choose,
  );
  dialog.addEventListener("keydown", ({ key }) => key === "Escape" && (answer ? close() : opener?.focus()));

  const status = make("p", { class: "status", role: "status" });
  const host = make("div", { lang: "en" });
  const root = host.attachShadow({ mode: "open" });
  root.adoptedStyleSheets = [style];
  root.append(dialog, status);
  document.body.prepend(host); // so that Tab reaches it first

  document.addEventListener("click", (event) => {
    const from = event.target.closest?.("[data-consent-open]");
    if (!from) return;
    event.preventDefault(); // it may be a link
    open(from);
  });
  addEventListener("storage", ({ key }) => {
    if (key !== KEY && key !== null) return;
    answer = readAnswer(); // the visitor has chosen in another tab
    if (answer) close();
    notify();
  });
  window.consent = { allows, open: () => open(document.activeElement), get choices() { return choices(); } };

  if (answer) {
    // By then all scripts listen.
    if (document.readyState === "complete") notify();
    else addEventListener("load", notify);
  } else if (names.length) {
    show(false);
    // Screen readers announce a status only if its element existed before the text.
    setTimeout(() => {
      if (!dialog.hidden) status.textContent = "Please make your privacy choices at the top of the page.";
    }, 500);
  }
})();
