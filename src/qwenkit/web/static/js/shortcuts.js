/** What keys do, and the dialog that tells. */

import { emit } from "./bus.js";
import { shown, startNew } from "./conversations.js";
import { openDialog } from "./dialog.js";
import { byId, h } from "./dom.js";
import { isBusy, stop } from "./generation.js";
import { goOn, regenerate } from "./turn_actions.js";

const MOD = /mac|iphone|ipad/i.test(navigator.platform) ? "⌘" : "Ctrl";

/** Keys with what they do; `mod` is Ctrl, or Command on a Mac. */
const SHORTCUTS = [
  { keys: ["Enter"], about: "help.send" },
  { keys: ["Shift", "Enter"], about: "help.line" },
  { keys: ["Esc"], about: "help.stop" },
  { keys: [MOD, "Shift", "O"], about: "help.new", code: "KeyO", run: startNew },
  { keys: [MOD, "Shift", "F"], about: "help.search", code: "KeyF", run: () => emit("focus-search") },
  { keys: [MOD, "Shift", "E"], about: "help.edit", code: "KeyE", run: editLast },
  { keys: [MOD, "Shift", "U"], about: "help.regenerate", code: "KeyU", run: () => withLastAnswer(regenerate) },
  { keys: [MOD, "Shift", "Y"], about: "help.continue", code: "KeyY", run: () => withLastAnswer(goOn) },
  { keys: [MOD, "Shift", "S"], about: "help.sidebar", code: "KeyS", run: () => emit("sidebar") },
  { keys: [MOD, "Shift", ","], about: "help.panel", code: "Comma", run: () => emit("panel") },
  { keys: ["/"], about: "help.focus" },
  { keys: ["?"], about: "help.help" },
];

/** Listens to keys. */
export function mountShortcuts() {
  document.addEventListener("keydown", onKey);
  byId("open-help").addEventListener("click", openHelp);
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  const isMod = event.ctrlKey || event.metaKey;
  if (isMod && event.shiftKey && !event.altKey) {
    const found = SHORTCUTS.find((each) => each.code === event.code);
    if (!found) return;
    event.preventDefault();
    found.run?.();
  } else if (event.key === "Escape" && isBusy()) {
    event.preventDefault();
    stop();
  } else if (!isMod && !isTyping(event.target)) {
    if (event.key === "/") byId("prompt").focus();
    else if (event.key === "?") openHelp();
    else return;
    event.preventDefault();
  }
}

/** @param {EventTarget | null} target */
function isTyping(target) {
  return target instanceof HTMLElement && (target.matches("input, textarea, select") || target.isContentEditable);
}

function editLast() {
  const buttons = byId("turns").querySelectorAll('[data-role="user"] [data-testid="edit"]');
  buttons[buttons.length - 1]?.click();
}

/** @param {(turn: import("./types.js").Turn) => void} run */
function withLastAnswer(run) {
  const last = shown.tree.path().at(-1);
  if (last?.role === "assistant") run(last);
}

/** Shows the keys. */
export function openHelp() {
  const rows = SHORTCUTS.map(({ keys, about }) =>
    h("div", { class: "keys-row" }, h("dt", {}, ...keys.map((key) => h("kbd", { text: key }))), h("dd", { t: about })),
  );
  openDialog({ title: "help.title", testid: "help-dialog", body: [h("dl", { class: "keys" }, ...rows)] });
}
