/** Tells screen readers what happened, and everyone else in a note that goes away. */

import { byId, h, iconButton } from "./dom.js";
import { t } from "./language.js";

/** Says something to screen readers only. @param {string} key @param {Record<string, any>} [values] */
export function announce(key, values) {
  const region = byId("announcer");
  region.textContent = "";
  // A change is read, not a text that was there already.
  setTimeout(() => (region.textContent = t(key, values)), 50);
}

/**
 * Shows a note.
 *
 * @param {string | [string, Record<string, any>]} text
 * @param {{ action?: string, run?: () => void, isError?: boolean }} [options] one thing that can be done about it
 */
export function note(text, { action, run, isError = false } = {}) {
  const close = () => {
    clearTimeout(timer);
    el.remove();
  };
  const button =
    action &&
    h("button", {
      type: "button",
      class: "text-button",
      t: action,
      testid: "note-action",
      on: {
        click: () => {
          close();
          run?.();
        },
      },
    });
  const el = h(
    "div",
    { class: `note${isError ? " note-error" : ""}`, testid: "note", role: isError ? "alert" : "status" },
    h("span", { t: text, dir: "auto" }),
    button,
    iconButton("close", "dialog.close", () => close()),
  );
  const host = byId("notes");
  while (host.childElementCount > 2) host.firstElementChild.remove();
  const timer = setTimeout(close, isError || action ? 10_000 : 4000);
  // A dialog hides what is outside it.
  (document.querySelector("dialog[open] .notes-here") ?? host).append(el);
}
