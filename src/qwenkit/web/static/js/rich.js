/** Code with colours and a copy button, and formulas. The libraries for them are loaded when the first one comes. */

import { copyText, h, icon, say } from "./dom.js";
import { cleanHighlight } from "./markdown.js";

const MAX_COLOURED = 60_000;
const MAX_FORMULA = 4000;

/** @type {any} */
let hljs = null;
/** @type {any} */
let katex = null;
/** @type {Map<string, Promise<any>>} */
const loads = new Map();

/** @param {string} name @returns {Promise<any>} */
function load(name) {
  const path = `../vendor/${name}.js`;
  const start = () => Promise.all([import(path), name === "katex" ? loadStyles() : null]);
  const known = loads.get(name) ?? start().then(([module]) => module.default);
  loads.set(name, known);
  known.catch(() => loads.delete(name)); // offline: try again next time
  return known;
}

/** Shapes of formulas; their fonts come when a sign needs them. */
function loadStyles() {
  const link = h("link", { rel: "stylesheet", href: new URL("../vendor/katex.css", import.meta.url).href });
  return new Promise((resolve) => {
    link.addEventListener("load", resolve);
    link.addEventListener("error", resolve);
    document.head.append(link);
  });
}

/**
 * A block of code.
 *
 * @param {string} text
 * @param {string} language as the model named it
 * @returns {HTMLElement}
 */
export function codeBlock(text, language) {
  const name = language.slice(0, 40);
  const code = h("code", { text: text.replace(/\n$/, "") });
  const head = h(
    "div",
    { class: "code-head" },
    h("span", { class: "code-language", ...(name ? { text: name } : { t: "code.plain" }) }),
    copyButton(() => code.textContent),
  );
  const label = name ? /** @type {[string, any]} */ (["code.label", { name }]) : "code.block";
  const pre = h("pre", { tabindex: "0", role: "group", label, dir: "ltr" }, code);
  return h("div", { class: "code", "data-language": name, testid: "code" }, head, pre);
}

/** Copies what `text` gives when it is pressed. @param {() => string | null} text @param {string} [label] */
export function copyButton(text, label = "code.copy") {
  const button = h(
    "button",
    { type: "button", class: "quiet-button copy", testid: "copy" },
    icon("copy"),
    h("span", { t: label }),
  );
  button.addEventListener("click", async () => {
    const done = await copyText(text() ?? "");
    say(button.lastElementChild, "text", done ? "code.copied" : "code.notCopied");
    button.firstElementChild.replaceWith(icon(done ? "check" : "copy"));
    setTimeout(() => {
      say(button.lastElementChild, "text", label);
      button.firstElementChild.replaceWith(icon("copy"));
    }, 1600);
  });
  return button;
}

/**
 * Replaces the text of an open block by a longer one, at the cost of what is new.
 *
 * @param {Element} block
 * @param {string} text
 */
export function growCode(block, text) {
  const code = /** @type {HTMLElement} */ (block.querySelector("code"));
  const shown = text.replace(/\n$/, "");
  const node = code.firstChild;
  const old = node?.nodeValue ?? "";
  if (node && code.childNodes.length === 1 && shown.startsWith(old)) {
    if (shown.length > old.length) /** @type {Text} */ (node).appendData(shown.slice(old.length));
  } else {
    code.textContent = shown;
  }
}

/** Turns the plain blocks of code inside into those with a head. @param {ParentNode} root */
export function dressCode(root) {
  for (const pre of root.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    if (!code || pre.parentElement?.classList.contains("code")) continue;
    const language = [...code.classList].find((c) => c.startsWith("language-"))?.slice("language-".length) ?? "";
    pre.replaceWith(codeBlock(code.textContent ?? "", language));
  }
}

/**
 * Colours code and draws formulas, once what is needed is there.
 *
 * @param {Element} root
 * @param {boolean} [isOpen] more will come: code waits
 */
export function enrich(root, isOpen = false) {
  const formulas = root.matches(".math") ? [root] : [...root.querySelectorAll(".math:not(.drawn)")];
  if (formulas.length) withLibrary("katex", () => formulas.forEach(drawFormula));
  if (isOpen) return;
  const blocks = root.matches(".code") ? [root] : [...root.querySelectorAll(".code")];
  const named = blocks.filter((block) => /** @type {HTMLElement} */ (block).dataset.language);
  for (const block of named) seen.observe(block);
}

/** Colours are for what is in sight. */
const seen = new IntersectionObserver(
  (entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    for (const block of near) seen.unobserve(block);
    if (near.length) withLibrary("highlight", () => near.forEach(colour));
  },
  { rootMargin: "600px 0px" },
);

/** Does the same for a part of a long text once somebody could see it. @param {Element} part */
export function enrichWhenNear(part) {
  parts.observe(part);
}

const parts = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      parts.unobserve(target);
      enrich(target);
    }
  },
  { rootMargin: "600px 0px" },
);

/** @param {"katex" | "highlight"} name @param {() => void} fn */
function withLibrary(name, fn) {
  if (name === "katex" ? katex : hljs) {
    fn();
    return;
  }
  load(name).then(
    (library) => {
      if (name === "katex") katex = library;
      else hljs = library;
      fn();
    },
    () => {},
  ); // without it, text stays as the model wrote it
}

/** @param {Element} block */
function colour(block) {
  const code = /** @type {HTMLElement} */ (block.querySelector("code"));
  const text = code.textContent ?? "";
  const language = /** @type {HTMLElement} */ (block).dataset.language ?? "";
  if (code.childElementCount || text.length > MAX_COLOURED || !hljs.getLanguage(language)) return;
  const { value } = hljs.highlight(text, { language, ignoreIllegals: true });
  code.replaceChildren(cleanHighlight(value));
}

/** @param {Element} el */
function drawFormula(el) {
  const source = el.textContent ?? "";
  if (el.classList.contains("drawn") || source.length > MAX_FORMULA) return;
  const options = {
    displayMode: el.classList.contains("math-display"),
    output: "htmlAndMathml",
    maxExpand: 300,
    maxSize: 20,
  };
  try {
    katex.render(source, el, { ...options, throwOnError: true, trust: false, strict: "ignore" });
    el.classList.add("drawn");
  } catch {
    el.textContent = source; // shown as it was written
  }
}
