/** Building elements. Knows nothing of what they are for. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element. Text is always set as text, never read as markup, and styles are never set.
 *
 * @param {string} tag
 * @param {Record<string, any>} [props] `text`; `t`, `label`, `placeholder` (keys of texts, or [key, values]); `on` (listeners);
 *   everything else is an attribute, where null, undefined and false leave it out
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) setProp(el, name, value);
  for (const child of children) if (child) el.append(child);
  return el;
}

/** @param {HTMLElement} el @param {string} name @param {any} value */
function setProp(el, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === "text") el.textContent = value;
  else if (name === "t") say(el, "text", value);
  else if (name === "label" || name === "placeholder") say(el, name, value);
  else if (name === "on") for (const [type, fn] of Object.entries(value)) el.addEventListener(type, fn);
  else if (name === "testid") el.dataset.testid = value;
  else if (name === "value") /** @type {any} */ (el).value = value;
  else el.setAttribute(name, value === true ? "" : String(value));
}

/** @type {(el: HTMLElement) => void} */
let translate = () => {};

/** Tells how the keys of texts become texts. @param {(el: HTMLElement) => void} fn */
export function setTranslator(fn) {
  translate = fn;
}

/**
 * Gives an element a text that follows the language.
 *
 * @param {HTMLElement} el
 * @param {"text" | "label" | "placeholder"} where
 * @param {string | [string, Record<string, any>]} what
 */
export function say(el, where, what) {
  const [key, values] = Array.isArray(what) ? what : [what, null];
  const name = where === "text" ? "t" : where === "label" ? "tLabel" : "tPlaceholder";
  el.dataset[name] = key;
  if (values) el.dataset[`${name}Values`] = JSON.stringify(values);
  else delete el.dataset[`${name}Values`];
  translate(el);
}

/** An icon of the sprite. @param {string} name @param {string} [extra] more classes */
export function icon(name, extra = "") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `icon ${extra}`.trim());
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button with an icon only.
 *
 * @param {string} name of the icon
 * @param {string | [string, Record<string, any>]} label
 * @param {(event: MouseEvent) => void} onClick
 * @param {Record<string, any>} [props]
 */
export function iconButton(name, label, onClick, props = {}) {
  return h("button", { type: "button", class: "icon-button", label, ...props, on: { click: onClick } }, icon(name));
}

/**
 * A button with words.
 *
 * @param {string} t
 * @param {string} testid
 * @param {() => void} run
 * @param {{ look?: string, icon?: string }} [options] more classes; an icon before the words
 */
export function textButton(t, testid, run, { look = "button", icon: name } = {}) {
  const props = { type: "button", class: look, testid, on: { click: () => run() } };
  return name ? h("button", props, icon(name), h("span", { t })) : h("button", { ...props, t });
}

/** @template {HTMLElement} T @param {string} id @returns {any} */
export function byId(id) {
  return document.getElementById(id);
}

/** A new id, also where the page is not on a secure origin. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

/** Puts text on the clipboard, also where the page is not on a secure origin. @param {string} text */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not allowed: the old way below may be.
    }
  }
  const area = h("textarea", { class: "sr-only", readonly: true, "aria-hidden": "true", value: text });
  const host = document.querySelector("dialog[open]") ?? document.body;
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  host.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Offers a text as a file. @param {string} name @param {string} type @param {string} text */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * Makes one tree like another while keeping the nodes that need no change, and with them selection and place.
 *
 * @param {Node} from what is shown
 * @param {Node} to what should be; is used up
 */
export function morph(from, to) {
  let have = from.firstChild;
  let want = to.firstChild;
  while (want) {
    const next = want.nextSibling;
    if (!have) {
      from.appendChild(want);
    } else if (have.nodeName !== want.nodeName || have.nodeType !== want.nodeType) {
      const after = have.nextSibling;
      from.replaceChild(want, have);
      have = after;
    } else {
      morphNode(have, want);
      have = have.nextSibling;
    }
    want = next;
  }
  while (have) {
    const after = have.nextSibling;
    from.removeChild(have);
    have = after;
  }
}

/** @param {Node} have @param {Node} want */
function morphNode(have, want) {
  if (have.nodeType === Node.TEXT_NODE) {
    if (have.nodeValue !== want.nodeValue) have.nodeValue = want.nodeValue;
    return;
  }
  const a = /** @type {Element} */ (have);
  const b = /** @type {Element} */ (want);
  for (const { name } of [...a.attributes]) if (!b.hasAttribute(name)) a.removeAttribute(name);
  for (const { name, value } of b.attributes) if (a.getAttribute(name) !== value) a.setAttribute(name, value);
  morph(a, b);
}
