/** Where a person writes: text, files, what goes along, and sending or stopping. */

import { countTokens } from "./api.js";
import { note } from "./announce.js";
import { emit, on } from "./bus.js";
import { setSettings, shown } from "./conversations.js";
import { byId, h, icon, iconButton, say } from "./dom.js";
import { MAX_ALL, MAX_FILE, MAX_FILES, readFiles } from "./files.js";
import { isBusy, stop } from "./generation.js";
import { formatBytes } from "./language.js";
import { contextOf, modelFor, models } from "./models.js";
import { preferences } from "./preferences.js";
import { userText } from "./request.js";
import { toolsOf } from "./tools.js";
import { send } from "./turn_actions.js";

/** @typedef {import("./types.js").Attachment} Attachment */

const MAX_COUNTED = 200_000;

/** What was written and not sent, by conversation. @type {Map<string, { text: string, files: Attachment[] }>} */
const drafts = new Map();
/** @type {Attachment[]} */
let files = [];
/** @type {string | null} */
let draftOf = null;
/** @type {HTMLTextAreaElement} */
let prompt;
/** @type {AbortController | null} */
let counting = null;
let countTimer = 0;

/** Brings the composer to life. */
export function mountComposer() {
  prompt = byId("prompt");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  prompt.addEventListener("keydown", onKey);
  prompt.addEventListener("input", changed);
  prompt.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    if (!pasted.length) return;
    event.preventDefault();
    attach(pasted);
  });
  byId("attach").addEventListener("click", () => byId("file-input").click());
  byId("file-input").addEventListener("change", (event) => {
    attach([...event.target.files]);
    event.target.value = "";
  });
  byId("stop").addEventListener("click", () => {
    stop();
    prompt.focus();
  });
  byId("thinking").addEventListener("click", () => setSettings({ thinking: !isThinking() }));
  byId("tools-chip").addEventListener("click", () => emit("panel", "tools"));
  mountDrop();
  on("open", swapDraft);
  on("kept", () => (draftOf = draftKey()));
  on("busy", showBusy);
  for (const type of ["open", "path", "settings", "models", "tools", "language"]) on(type, showAlong);
  showBusy();
}

/** Whether the model is asked to think; where nobody chose, templates with the choice do. */
function isThinking() {
  return shown.current.settings.thinking !== false;
}

function mountDrop() {
  let depth = 0;
  const has = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  const show = (/** @type {boolean} */ isOver) => document.body.classList.toggle("is-dropping", isOver);
  window.addEventListener("dragenter", (event) => has(event) && (depth++, show(true)));
  window.addEventListener("dragleave", (event) => has(event) && --depth <= 0 && ((depth = 0), show(false)));
  window.addEventListener("dragover", (event) => has(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!has(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    if (!document.querySelector("dialog[open]")) attach([...(event.dataTransfer?.files ?? [])]);
  });
}

/** @param {File[]} given */
async function attach(given) {
  const { taken, refused } = await readFiles(given, files);
  files.push(...taken);
  for (const { name, reason } of refused) {
    const values = { name, file: formatBytes(MAX_FILE), all: formatBytes(MAX_ALL), n: MAX_FILES };
    note([`file.${reason}`, values], { isError: true });
  }
  showFiles();
  changed();
  prompt.focus();
}

function showFiles() {
  byId("composer-files").replaceChildren(
    ...files.map((file) =>
      h(
        "span",
        { class: "file-chip", testid: "file-chip" },
        icon("file"),
        h("span", { class: "file-name", text: file.name, dir: "auto" }),
        h("span", { class: "file-size", text: formatBytes(file.size) }),
        iconButton("close", ["file.remove", { name: file.name }], () => {
          files.splice(files.indexOf(file), 1);
          showFiles();
          changed();
          prompt.focus();
        }),
      ),
    ),
  );
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  // The Enter that ends a word of an input method does not send.
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229 || event.altKey) return;
  const isMod = event.ctrlKey || event.metaKey;
  if (event.shiftKey || (!preferences.enterSends && !isMod)) return;
  event.preventDefault();
  submit();
}

function submit() {
  const text = prompt.value;
  if (isBusy() || (!text.trim() && !files.length)) return;
  const sent = files;
  setDraft("", []);
  send(text, sent);
}

/** @param {string} text @param {Attachment[]} given */
export function setDraft(text, given = files) {
  prompt.value = text;
  files = given;
  showFiles();
  changed();
}

function swapDraft() {
  const key = draftKey();
  if (draftOf === key) return;
  if (draftOf !== null) drafts.set(draftOf, { text: prompt.value, files });
  draftOf = key;
  const { text, files: kept } = drafts.get(key) ?? { text: readDraft(key), files: [] };
  setDraft(text, kept);
  showBusy();
}

/** What is being written belongs to a conversation; the one that is not begun yet has no name. */
function draftKey() {
  return shown.isNew ? "" : shown.current.id;
}

/** What was written before the page was loaded anew. @param {string} key */
function readDraft(key) {
  try {
    return sessionStorage.getItem(`qwenkit.draft.${key}`) ?? "";
  } catch {
    return "";
  }
}

function keepDraft() {
  if (draftOf === null) return;
  try {
    const place = `qwenkit.draft.${draftOf}`;
    if (prompt.value) sessionStorage.setItem(place, prompt.value);
    else sessionStorage.removeItem(place);
  } catch {
    // Storage is switched off or full: it lasts as long as the page.
  }
}

function changed() {
  fit();
  const isEmpty = !prompt.value.trim() && !files.length;
  byId("send").disabled = isEmpty;
  keepDraft();
  clearTimeout(countTimer);
  countTimer = window.setTimeout(count, 350);
}

/** Grows with the text where the browser does not do so itself. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, innerHeight * 0.4)}px`;
}

/** Shows how much of the context is used, with what is being written. */
async function count() {
  counting?.abort();
  counting = new AbortController();
  const el = byId("tokens");
  const text = userText(/** @type {any} */ ({ content: prompt.value, attachments: files }));
  const context = contextOf(modelFor(shown.current.model));
  const used = usedTokens();
  let written = 0;
  if (text && text.length <= MAX_COUNTED) written = await countTokens(text, counting.signal).catch(() => -1);
  if (written < 0) return;
  const n = used + written;
  el.hidden = !n || text.length > MAX_COUNTED;
  if (context) say(el, "text", ["composer.tokensOf", { n, all: context }]);
  else say(el, "text", ["composer.tokens", { n }]);
  el.classList.toggle("is-over", Boolean(context && n >= context));
}

/** Tokens up to the last answer that told. */
function usedTokens() {
  const last = shown.tree.path().findLast((turn) => turn.stats?.completion);
  return last ? (last.stats?.prompt ?? 0) + (last.stats?.completion ?? 0) : 0;
}

function showBusy() {
  const busy = isBusy();
  byId("stop").hidden = !busy;
  byId("send").hidden = busy;
  document.body.classList.toggle("is-busy", busy);
  changed();
}

function showAlong() {
  const { settings } = shown.current;
  const thinking = byId("thinking");
  thinking.hidden = !models.canThink;
  thinking.setAttribute("aria-pressed", String(isThinking()));
  const { length } = toolsOf(settings.tools);
  byId("tools-chip").hidden = !length;
  say(byId("tools-chip").lastElementChild, "text", ["composer.tools", { n: length }]);
  say(byId("composer-hint"), "text", preferences.enterSends ? "composer.hint" : "composer.hintMod");
  changed();
}
