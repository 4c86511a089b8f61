/** The panel at the side: system prompt, sampling, tools, and the page itself, each on a tab of its own. */

import { on } from "./bus.js";
import { byId, h, iconButton } from "./dom.js";
import { showVeil } from "./frame.js";
import { pageTab } from "./panel_page.js";
import { promptTab } from "./panel_prompt.js";
import { samplingTab } from "./panel_sampling.js";
import { toolsTab } from "./panel_tools.js";

/** @type {Record<string, () => { el: HTMLElement, show: () => void }>} */
const TABS = { prompt: promptTab, sampling: samplingTab, tools: toolsTab, page: pageTab };
/** @type {Map<string, { tab: HTMLElement, sheet: HTMLElement, show: () => void }>} */
const tabs = new Map();
let chosen = "prompt";

/** Puts the panel on the page. */
export function mountPanel() {
  const list = h("div", { class: "tabs", role: "tablist", label: "panel.tabs" });
  const sheets = h("div", { class: "panel-sheets" });
  for (const [name, build] of Object.entries(TABS)) addTab(name, build(), list, sheets);
  byId("panel").append(
    h(
      "div",
      { class: "panel-head" },
      h("h2", { class: "panel-title", t: "panel.title" }),
      iconButton("close", "panel.close", () => setOpen(false), { testid: "panel-close" }),
    ),
    list,
    sheets,
  );
  list.addEventListener("keydown", onKey);
  on("panel", (name) => {
    if (name === null) setOpen(false);
    else if (name) choose(name, true);
    else setOpen(byId("panel").hidden);
  });
  for (const type of ["open", "settings", "tools", "models", "language"]) on(type, showAll);
  window.addEventListener("resize", showVeil);
  choose(chosen, false);
}

/**
 * @param {string} name
 * @param {{ el: HTMLElement, show: () => void }} made
 * @param {HTMLElement} list
 * @param {HTMLElement} sheets
 */
function addTab(name, { el, show }, list, sheets) {
  const tab = h("button", {
    type: "button",
    role: "tab",
    id: `tab-${name}`,
    class: "tab",
    testid: `tab-${name}`,
    "aria-controls": `sheet-${name}`,
    t: `panel.${name}`,
    on: { click: () => choose(name, true) },
  });
  const sheet = h(
    "div",
    { role: "tabpanel", id: `sheet-${name}`, class: "sheet", "aria-labelledby": `tab-${name}`, hidden: true },
    el,
  );
  list.append(tab);
  sheets.append(sheet);
  tabs.set(name, { tab, sheet, show });
}

/** @param {string} name @param {boolean} isOpened */
function choose(name, isOpened) {
  chosen = name;
  for (const [each, { tab, sheet }] of tabs) {
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    sheet.hidden = each !== name;
  }
  if (isOpened) setOpen(true);
}

/** @param {boolean} isOpen */
function setOpen(isOpen) {
  const panel = byId("panel");
  const had = panel.contains(document.activeElement);
  const wasOpen = !panel.hidden;
  panel.hidden = !isOpen;
  byId("panel-open").setAttribute("aria-expanded", String(isOpen));
  document.body.classList.toggle("has-panel", isOpen);
  showVeil();
  if (isOpen && !wasOpen) tabs.get(chosen)?.tab.focus();
  else if (!isOpen && had) byId("panel-open").focus();
}

function showAll() {
  for (const { show } of tabs.values()) show();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const names = [...tabs.keys()];
  const at = names.indexOf(chosen);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(names[(to + names.length) % names.length], false);
  tabs.get(chosen)?.tab.focus();
}
