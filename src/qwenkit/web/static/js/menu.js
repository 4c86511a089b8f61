/** A menu under a button, for mouse, touch and keys. */

import { h, icon } from "./dom.js";

/** @typedef {{ icon: string, label: string, run: () => void, isDanger?: boolean, testid?: string }} Item */

/** @type {(() => void) | null} */
let closeOpen = null;

/** Opens a menu; a second call on the same button closes it. @param {HTMLElement} button @param {Item[]} items */
export function openMenu(button, items) {
  const wasOpen = button.getAttribute("aria-expanded") === "true";
  closeOpen?.();
  if (wasOpen) return;
  const entries = items.map((item) => entry(item, button));
  const menu = h("div", { class: "menu", role: "menu", testid: "menu" }, ...entries);
  (button.closest("dialog, aside, main") ?? document.body).append(menu);
  place(menu, button);
  button.setAttribute("aria-expanded", "true");
  menu.addEventListener("keydown", (event) => onKey(event, entries, button));
  const outside = (event) => !menu.contains(event.target) && !button.contains(event.target) && close();
  const close = () => {
    menu.remove();
    button.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside, true);
    window.removeEventListener("resize", close);
    document.removeEventListener("scroll", close, true);
    closeOpen = null;
  };
  closeOpen = close;
  document.addEventListener("pointerdown", outside, true);
  document.addEventListener("scroll", close, true);
  window.addEventListener("resize", close);
  entries[0].focus({ preventScroll: true });
}

/** @param {Item} item @param {HTMLElement} button */
function entry(item, button) {
  const className = `menu-item${item.isDanger ? " danger" : ""}`;
  const run = () => {
    closeOpen?.();
    button.focus({ preventScroll: true });
    item.run();
  };
  const props = {
    type: "button",
    class: className,
    role: "menuitem",
    tabindex: "-1",
    testid: item.testid,
    on: { click: run },
  };
  return h("button", props, icon(item.icon), h("span", { t: item.label }));
}

/** @param {KeyboardEvent} event @param {HTMLElement[]} entries @param {HTMLElement} button */
function onKey(event, entries, button) {
  const at = entries.indexOf(/** @type {any} */ (document.activeElement));
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
  if (event.key === "Escape" || event.key === "Tab") {
    event.preventDefault();
    event.stopPropagation();
    closeOpen?.();
    button.focus();
  } else if (to !== undefined) {
    event.preventDefault();
    entries[(to + entries.length) % entries.length].focus();
  }
}

/** @param {HTMLElement} menu @param {HTMLElement} button */
function place(menu, button) {
  const { left, right, top, bottom } = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const x = left + width > innerWidth - 8 ? Math.max(8, right - width) : left;
  const y = bottom + 4 + height > innerHeight - 8 ? Math.max(8, top - height - 4) : bottom + 4;
  menu.style.left = `${x}px`;
  menu.style.top = `${y}px`;
}
