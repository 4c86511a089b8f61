/** The bar at the top, the drawers, and what belongs to the window. */

import { emit, on } from "./bus.js";
import { setModel, shown } from "./conversations.js";
import { byId, h } from "./dom.js";
import { t } from "./language.js";
import { loadModels, modelFor, models } from "./models.js";

const NARROW = window.matchMedia("(max-width: 820px)");

/** Brings the frame to life. */
export function mountFrame() {
  byId("sidebar-open").addEventListener("click", () => setSidebar(!isSidebarOpen()));
  byId("sidebar-close").addEventListener("click", () => setSidebar(false));
  byId("panel-open").addEventListener("click", () => emit("panel"));
  byId("system-chip").addEventListener("click", () => emit("panel", "prompt"));
  byId("offline-retry").addEventListener("click", loadModels);
  byId("veil").addEventListener("click", closeDrawers);
  byId("model").addEventListener("change", (event) => setModel(event.target.value));
  byId("title").addEventListener("dblclick", renameHere);
  NARROW.addEventListener("change", () => setSidebar(!NARROW.matches));
  document.addEventListener(
    "keydown",
    (event) => event.key === "Escape" && isDrawerOpen() && (closeDrawers(), event.preventDefault()),
  );
  on("sidebar", () => setSidebar(!isSidebarOpen()));
  on("open", () => NARROW.matches && setSidebar(false));
  for (const type of ["open", "list", "settings", "language"]) on(type, showTitle);
  for (const type of ["open", "models", "settings", "language"]) on(type, showModels);
  for (const type of ["open", "settings"]) on(type, showSystem);
  window.addEventListener("online", () => models.error && loadModels());
  setSidebar(!NARROW.matches);
}

function isSidebarOpen() {
  return !document.body.classList.contains("no-sidebar");
}

/** A drawer lies over the page. */
function isDrawerOpen() {
  return document.body.classList.contains("has-drawer");
}

/** Marks whether something lies over the page. */
export function showVeil() {
  const isOver = (NARROW.matches && isSidebarOpen()) || (window.innerWidth < 1180 && !byId("panel").hidden);
  document.body.classList.toggle("has-drawer", isOver);
  byId("main").inert = isOver;
}

/** @param {boolean} isOpen */
export function setSidebar(isOpen) {
  const had = byId("sidebar").contains(document.activeElement);
  document.body.classList.toggle("no-sidebar", !isOpen);
  byId("sidebar").inert = !isOpen;
  byId("sidebar-open").setAttribute("aria-expanded", String(isOpen));
  showVeil();
  if (isOpen && NARROW.matches) byId("sidebar-close").focus();
  else if (had && !isOpen) byId("sidebar-open").focus();
}

function closeDrawers() {
  if (NARROW.matches && isSidebarOpen()) setSidebar(false);
  else emit("panel", null);
}

function showTitle() {
  const { title } = shown.current;
  byId("title").textContent = shown.isNew ? t("sidebar.new") : title || t("sidebar.untitled");
  byId("title").classList.toggle("is-new", shown.isNew);
  document.title = !shown.isNew && title ? `${title} · ${t("app.title")}` : t("app.title");
}

function renameHere() {
  if (!shown.isNew) emit("rename", shown.current.id);
}

function showModels() {
  const select = byId("model");
  const bases = models.list.filter((model) => !model.parent);
  const adapters = models.list.filter((model) => model.parent);
  const option = (/** @type {{ id: string }} */ { id }) => h("option", { value: id, text: id });
  const groups = bases.map(option);
  if (adapters.length) groups.push(h("optgroup", {}, ...adapters.map(option)));
  select.replaceChildren(...groups);
  if (adapters.length) select.lastElementChild.setAttribute("label", t("model.adapters"));
  select.value = modelFor(shown.current.model) ?? "";
  select.hidden = !models.list.length;
}

function showSystem() {
  const { system } = shown.current.settings;
  byId("system-chip").hidden = !system.trim();
  byId("system-text").textContent = system.trim().replace(/\s+/g, " ").slice(0, 300);
}
