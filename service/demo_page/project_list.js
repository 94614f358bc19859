// The list of projects on the page. Rows change in place: focus and a half-typed title survive the changes of others.

import { cloneTemplate, drawList, fill, formatTime } from "./elements.js";

export class ProjectList {
  #list;
  #actions;
  #projects = new Map(); // as last drawn, by id

  /** `actions` are rename(project, title), setStatus(project, status) and delete(project). */
  constructor(list, actions) {
    this.#list = list;
    this.#actions = actions;
  }

  /** `may(permission)` decides which buttons a row has. */
  draw(projects, may) {
    this.#projects = new Map(projects.map((project) => [project.id, project]));
    drawList(this.#list, projects, {
      key: (project) => project.id,
      make: (project) => this.#newItem(project.id),
      draw: (item, project) => drawItem(item, project, may),
    });
  }

  /** Highlights a changed row for a moment. */
  highlight(id) {
    const item = [...this.#list.children].find((each) => each.dataset.key === id);
    item?.classList.remove("changed");
    void item?.offsetWidth; // makes the browser restart the animation
    item?.classList.add("changed");
  }

  #newItem(id) {
    const item = cloneTemplate("project-row");
    const form = item.querySelector("form");
    const project = () => this.#projects.get(id);
    const acts = {
      rename: () => {
        show(item, "renaming");
        form.elements.title.value = project().title;
        form.elements.title.focus();
        form.elements.title.select();
      },
      archive: () => this.#actions.setStatus(project(), project().status === "active" ? "archived" : "active"),
      delete: () => {
        show(item, "deleting");
        item.querySelector('[data-act="confirm"]').focus();
      },
      confirm: () => {
        returnToReading(item, "delete");
        this.#actions.delete(project());
      },
      cancel: () => returnToReading(item, item.dataset.mode === "renaming" ? "rename" : "delete"),
    };
    item.addEventListener("click", ({ target }) => acts[target.dataset.act]?.());
    item.addEventListener("keydown", ({ key }) => {
      if (key === "Escape" && item.dataset.mode !== "reading") acts.cancel();
    });
    item.addEventListener("animationend", () => item.classList.remove("changed"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      returnToReading(item, "rename");
      this.#actions.rename(project(), form.elements.title.value.trim());
    });
    show(item, "reading");
    return item;
  }
}

function drawItem(item, { title, status, created_at: createdAt }, may) {
  const archive = status === "active" ? "Archive" : "Restore";
  fill(item, { title, created: formatTime(createdAt), status, archive });
  item.querySelector("time").dateTime = createdAt;
  item.dataset.status = status;
  for (const [act, label, permission] of [
    ["rename", "Rename", "projects:update"],
    ["archive", archive, "projects:update"],
    ["delete", "Delete", "projects:delete"],
  ]) {
    const button = item.querySelector(`[data-act="${act}"]`);
    button.hidden = !may(permission);
    button.setAttribute("aria-label", `${label} ${title}`);
  }
}

function show(item, mode) {
  item.dataset.mode = mode;
  for (const part of item.querySelectorAll("[data-mode-of]")) part.hidden = part.dataset.modeOf !== mode;
}

function returnToReading(item, act) {
  show(item, "reading");
  item.querySelector(`[data-act="${act}"]`).focus();
}
