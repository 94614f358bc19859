// A consent banner for any page, without dependencies:
//   <script src="https://api.example.com/consent.js" defer data-categories="analytics,marketing" data-version="1"
//     data-privacy="/legal/privacy"></script>
// Before an answer nothing is stored, and consent.allows("analytics") is false. The answer is kept in localStorage under
// "consent" as {version, at, choices}; another data-version asks again. Other scripts listen to the event "consent" of the
// document, whose detail is the choices. Elements with data-consent-open show the dialog again.
(() => {
  const KEY = "consent";
  const { categories = "", version = "1", privacy } = document.currentScript.dataset;
  const names = categories.split(",").map((name) => name.trim()).filter(Boolean);
  const style = new CSSStyleSheet();
  style.replaceSync(`
    :host { all: initial; --surface: #fff; --text: #16191d; --muted: #596068; --line: #868e96; --accent: #0b5f58; --ink: #fff; }
    @media (prefers-color-scheme: dark) {
      :host { --surface: #1d2125; --text: #eceef0; --muted: #a0a8b0; --line: #7b848d; --accent: #5eead4; --ink: #04201d; }
    }
    [role="dialog"] { position: fixed; z-index: 2147483647; inset: auto 16px 16px auto; box-sizing: border-box;
      width: min(420px, calc(100vw - 32px)); max-height: calc(100vh - 32px); overflow: auto; padding: 20px; border-radius: 14px;
      background: var(--surface); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
      box-shadow: 0 0 0 1px rgb(0 0 0 / 12%), 0 12px 40px rgb(0 0 0 / 22%); }
    [hidden] { display: none !important; }
    h2 { margin: 0 0 6px; font-size: 17px; line-height: 1.3; }
    p { margin: 0 0 14px; color: var(--muted); }
    a { color: var(--accent); }
    label { display: flex; justify-content: space-between; gap: 16px; padding: 8px 0; text-transform: capitalize; }
    input { width: 20px; height: 20px; margin: 0; accent-color: var(--accent); }
    fieldset { margin: 0 0 12px; padding: 0; border: 0; }
    .equal { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
    button { padding: 10px 12px; border: 1px solid var(--line); border-radius: 9px; background: none; color: inherit;
      font: inherit; font-weight: 600; cursor: pointer; }
    .equal button { border-color: var(--accent); background: var(--accent); color: var(--ink); }
    [role="status"] { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); }
    .wide { width: 100%; margin-top: 10px; }
    :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
    @media (prefers-reduced-motion: no-preference) {
      [role="dialog"] { animation: rise 0.2s ease-out; }
      @keyframes rise { from { opacity: 0; transform: translateY(8px); } }
    }
  `);

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  /** What was answered, or null: for another version, when somebody wrote nonsense there, or where storage is blocked. */
  function kept() {
    try {
      const answer = JSON.parse(localStorage.getItem(KEY));
      return answer.version === version && typeof answer.choices === "object" ? answer : null;
    } catch {
      return null;
    }
  }

  let answer = kept();
  let opener = null;

  const choices = () => Object.fromEntries(names.map((name) => [name, answer?.choices?.[name] === true]));
  const tell = () => document.dispatchEvent(new CustomEvent(KEY, { detail: choices() }));

  function decide(allowed) {
    answer = { version, at: new Date().toISOString(), choices: Object.fromEntries(names.map((name) => [name, allowed(name)])) };
    try {
      localStorage.setItem(KEY, JSON.stringify(answer));
    } catch {
      // Blocked: the answer holds until the page is left, and is asked for again.
    }
    close();
    status.textContent = "Your choice is saved.";
    tell();
  }

  const switches = new Map(names.map((name) => [name, make("input", { type: "checkbox" })]));
  const options = make(
    "fieldset", { hidden: true },
    make("label", {}, "Essential, always on", make("input", { type: "checkbox", checked: true, disabled: true })),
    ...names.map((name) => make("label", {}, name, switches.get(name))),
  );
  const choose = make("button", { type: "button", className: "wide", onclick: () => (options.hidden ? expand() : save()) });
  const save = () => decide((name) => switches.get(name).checked);
  const dialog = make(
    "div", { hidden: true, tabIndex: -1 },
    make("h2", { id: "title" }, "Your privacy"),
    make(
      "p", { id: "text" }, "We store what this site needs to work. Anything else only if you agree. ",
      ...(privacy ? [make("a", { href: privacy }, "More about it")] : []),
    ),
    options,
    make(
      "div", { className: "equal" },
      make("button", { type: "button", onclick: () => decide(() => false) }, "Refuse all"),
      make("button", { type: "button", onclick: () => decide(() => true) }, "Accept all"),
    ),
    choose,
  );
  for (const input of options.querySelectorAll("input")) input.setAttribute("role", "switch");
  for (const [name, value] of [["role", "dialog"], ["aria-labelledby", "title"], ["aria-describedby", "text"]]) {
    dialog.setAttribute(name, value);
  }
  dialog.addEventListener("keydown", ({ key }) => key === "Escape" && answer && close());
  const status = make("p");
  status.setAttribute("role", "status");

  function expand() {
    options.hidden = false;
    choose.textContent = "Save my choice";
    (switches.values().next().value ?? choose).focus();
  }

  function show() {
    options.hidden = true;
    choose.textContent = "Choose";
    choose.hidden = !names.length;
    for (const [name, input] of switches) input.checked = choices()[name];
    dialog.hidden = false;
  }

  function close() {
    dialog.hidden = true;
    opener?.focus();
    opener = null;
  }

  function open() {
    opener = document.activeElement;
    show();
    dialog.focus();
  }

  const host = make("div");
  const root = host.attachShadow({ mode: "open" });
  root.adoptedStyleSheets = [style];
  root.append(dialog, status);
  document.body.prepend(host); // first to be reached with the keyboard
  document.addEventListener("click", ({ target }) => target.closest?.("[data-consent-open]") && open());
  window.consent = { open, get choices() { return choices(); }, allows: (name) => name === "essential" || choices()[name] === true };
  if (answer) {
    tell();
  } else {
    show();
    status.textContent = "This site asks for your privacy choices, at the top of the page.";
  }
})();
