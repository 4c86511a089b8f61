/** Dialogs: one shape for all. Focus, Escape and the page behind are the browser's. */

import { h, iconButton } from "./dom.js";

/**
 * Opens a dialog; it is gone when it closes.
 *
 * @param {object} given
 * @param {string | [string, any]} given.title
 * @param {string} given.testid
 * @param {Node[]} given.body
 * @param {Node[]} [given.buttons]
 * @param {string} [given.size] "wide"
 * @param {() => void} [given.onClose]
 * @returns {HTMLDialogElement}
 */
export function openDialog({ title, testid, body, buttons = [], size = "", onClose }) {
  document.querySelector(`dialog[data-testid="${testid}"]`)?.remove();
  const id = `${testid}-title`;
  const close = iconButton("close", "dialog.close", () => dialog.close(), { testid: `${testid}-close` });
  const dialog = h(
    "dialog",
    { class: `dialog ${size}`.trim(), testid, "aria-labelledby": id },
    h("header", { class: "dialog-head" }, h("h2", { id, t: title }), close),
    h("div", { class: "dialog-body" }, ...body),
    h("div", { class: "notes-here" }),
    buttons.length > 0 && h("footer", { class: "dialog-foot" }, ...buttons),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose?.();
  });
  // A press on what is around the dialog closes it; one that only ends there does not.
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  /** @type {HTMLElement | null} */ (dialog.querySelector("[autofocus]"))?.focus();
  return dialog;
}

/**
 * A field with its label and, below it, a line that explains it.
 *
 * @param {string | [string, any]} label
 * @param {HTMLElement} field
 * @param {string} [hint]
 */
export function labelled(label, field, hint) {
  field.id ||= `field-${field.dataset.testid}`;
  const about = hint ? h("p", { class: "hint", id: `${field.id}-hint`, t: hint }) : null;
  if (about) field.setAttribute("aria-describedby", about.id);
  return h("div", { class: "labelled" }, h("label", { for: field.id, class: "field-label", t: label }), field, about);
}
