/** The list of conversations: by age, searched, renamed, deleted. */

import { note } from "./announce.js";
import { on } from "./bus.js";
import { open, removeConversation, rename, shown, startNew, writing } from "./conversations.js";
import { byId, h, iconButton } from "./dom.js";
import { setSidebar } from "./frame.js";
import { t } from "./language.js";
import { openMenu } from "./menu.js";
import { findTurns } from "./search.js";
import { openTransfer } from "./transfer_dialog.js";
import { saveConversation } from "./transfer.js";

/** @typedef {import("./types.js").Conversation} Conversation */

const DAY = 86_400_000;
const MAX_ROWS = 400;

/**
 * What the search found in the turns, by conversation; null: nothing is searched.
 *
 * @type {Map<string, string> | null}
 */
let found = null;
let query = "";
let renamed = "";
let timer = 0;
let limit = MAX_ROWS;

/** Brings the list to life. */
export function mountSidebar() {
  byId("new-chat").addEventListener("click", () => {
    startNew();
    byId("prompt").focus();
  });
  byId("open-transfer").addEventListener("click", openTransfer);
  const search = byId("search");
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = window.setTimeout(runSearch, 150);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !search.value) return;
    event.preventDefault();
    search.value = "";
    runSearch();
  });
  on("focus-search", () => {
    setSidebar(true);
    search.focus();
    search.select();
  });
  on("rename", (id) => {
    setSidebar(true);
    startRename(id);
  });
  for (const type of ["list", "open", "language", "busy"]) on(type, draw);
}

async function runSearch() {
  const wanted = byId("search").value.trim();
  query = wanted;
  limit = MAX_ROWS;
  if (!wanted) {
    found = null;
    draw();
    return;
  }
  const hits = await findTurns(wanted, () => wanted !== query);
  if (wanted !== query) return;
  found = hits;
  draw();
}

/** Those that match what is searched. */
function matching() {
  if (!found) return shown.list;
  const small = query.toLowerCase();
  return shown.list.filter(({ id, title }) => found?.has(id) || title.toLowerCase().includes(small));
}

function draw() {
  if (renamed && byId("conversations").contains(document.activeElement)) return;
  const host = byId("conversations");
  const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("[data-testid=conversation]"))
    ?.dataset.id;
  const top = host.scrollTop;
  const list = matching();
  const groups = new Map();
  for (const each of list.slice(0, limit)) {
    const name = found ? "sidebar.found" : ageOf(each.updated);
    groups.set(name, [...(groups.get(name) ?? []), each]);
  }
  const parts = [...groups].map(([name, members], n) =>
    h(
      "section",
      { "aria-labelledby": `age-${n}` },
      h("h2", { id: `age-${n}`, class: "age", t: name }),
      h("ul", { class: "rows" }, ...members.map(row)),
    ),
  );
  if (!list.length) parts.push(h("p", { class: "hint nothing", t: found ? "sidebar.notFound" : "sidebar.nothing" }));
  if (list.length > limit) parts.push(moreButton(list.length - limit));
  host.replaceChildren(...parts);
  host.scrollTop = top;
  if (focused) host.querySelector(`[data-id="${focused}"] a`)?.focus();
}

/** @param {number} n */
function moreButton(n) {
  return h("button", {
    type: "button",
    class: "quiet-button",
    t: ["sidebar.more", { n }],
    on: {
      click: () => {
        limit += MAX_ROWS;
        draw();
      },
    },
  });
}

/** @param {number} time */
function ageOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "age.today";
  if (time >= today - DAY) return "age.yesterday";
  if (time >= today - 7 * DAY) return "age.week";
  return time >= today - 30 * DAY ? "age.month" : "age.older";
}

/** @param {Conversation} conversation */
function row(conversation) {
  const { id, title } = conversation;
  const isShown = !shown.isNew && id === shown.current.id;
  const isWritten = [...writing.values()].some((turn) => turn.conversation === id);
  const el = h("li", { class: "row", testid: "conversation", "data-id": id });
  if (renamed === id) {
    el.append(renameField(conversation));
    return el;
  }
  const link = h(
    "a",
    { href: `#/c/${id}`, class: "row-link", testid: "conversation-link", "aria-current": isShown ? "page" : null },
    h("span", { class: "row-title", text: title || t("sidebar.untitled"), dir: "auto" }),
  );
  const excerpt = found?.get(id);
  if (excerpt) link.append(h("span", { class: "row-excerpt", dir: "auto" }, ...marked(excerpt)));
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(id);
  });
  link.addEventListener("keydown", (event) => onRowKey(event, conversation));
  const more = iconButton("more", ["sidebar.moreOf", { title }], () => openMenu(more, items(conversation)), {
    testid: "conversation-more",
    class: "icon-button row-more",
    "aria-haspopup": "menu",
    "aria-expanded": "false",
  });
  el.append(link);
  if (isWritten) el.append(h("span", { class: "row-busy", role: "img", label: "sidebar.busy" }));
  el.append(more);
  return el;
}

/** An excerpt with what was searched marked. @param {string} text @returns {(string | Node)[]} */
function marked(text) {
  const at = text.toLowerCase().indexOf(query.toLowerCase());
  if (at < 0) return [text];
  return [text.slice(0, at), h("mark", { text: text.slice(at, at + query.length) }), text.slice(at + query.length)];
}

/** @param {KeyboardEvent} event @param {Conversation} conversation */
function onRowKey(event, conversation) {
  const links = [...byId("conversations").querySelectorAll("a")];
  const at = links.indexOf(/** @type {any} */ (event.currentTarget));
  const to = { ArrowDown: at + 1, ArrowUp: at - 1 }[event.key];
  if (to !== undefined) links[Math.max(0, Math.min(links.length - 1, to))].focus();
  else if (event.key === "F2") startRename(conversation.id);
  else if (event.key === "Delete") remove(conversation);
  else return;
  event.preventDefault();
}

/** @param {Conversation} conversation */
function items(conversation) {
  return [
    { icon: "edit", label: "sidebar.rename", run: () => startRename(conversation.id), testid: "rename" },
    {
      icon: "down",
      label: "sidebar.json",
      run: () => saveConversation(conversation.id, "json"),
      testid: "export-json",
    },
    {
      icon: "file",
      label: "sidebar.markdown",
      run: () => saveConversation(conversation.id, "markdown"),
      testid: "export-markdown",
    },
    {
      icon: "trash",
      label: "sidebar.delete",
      run: () => remove(conversation),
      isDanger: true,
      testid: "delete-conversation",
    },
  ];
}

/** @param {Conversation} conversation */
async function remove({ id, title }) {
  const undo = await removeConversation(id);
  byId("new-chat").focus();
  note(["note.deleted", { title: title || t("sidebar.untitled") }], { action: "note.undo", run: undo });
}

/** @param {string} id */
function startRename(id) {
  renamed = "";
  /** @type {HTMLElement | null} */ (document.activeElement)?.blur();
  renamed = id;
  draw();
  const field = byId("conversations").querySelector("input");
  field?.focus();
  field?.select();
}

/** @param {Conversation} conversation */
function renameField({ id, title }) {
  const field = h("input", {
    class: "field row-field",
    testid: "rename-field",
    label: "sidebar.newName",
    maxlength: "200",
    dir: "auto",
    value: title,
  });
  const finish = (/** @type {boolean} */ isKept) => {
    if (renamed !== id) return;
    renamed = "";
    const name = field.value.trim();
    if (isKept && name && name !== title) rename(id, name);
    else draw();
  };
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.preventDefault();
    event.stopPropagation();
    finish(event.key === "Enter");
    byId("conversations").querySelector(`[data-id="${id}"] a`)?.focus();
  });
  field.addEventListener("blur", () => finish(true));
  return field;
}
