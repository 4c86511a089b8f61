/**
 * Which language the page speaks. Texts are in i18n/; elements name theirs in `data-t`, `data-t-label`, `data-t-
 * placeholder`.
 */

import { emit } from "./bus.js";
import { setTranslator } from "./dom.js";
import { en } from "./i18n/en.js";
import { zh } from "./i18n/zh.js";

/** @type {Record<string, Record<string, string>>} */
const TEXTS = { en, zh };
let current = "en";

/** A text in the language of the page. @param {string} key @param {Record<string, any> | null} [values] */
export function t(key, values) {
  const one = values?.n === 1 ? TEXTS[current][`${key}.one`] : undefined;
  const text = one ?? TEXTS[current][key] ?? en[key] ?? key;
  if (!values) return text;
  return text.replace(/\{(\w+)\}/g, (_, name) => shown(values[name]));
}

/** @param {any} value */
function shown(value) {
  return typeof value === "number" ? formatNumber(value) : String(value ?? "");
}

/** @param {number} value @param {number} [digits] */
export function formatNumber(value, digits = 0) {
  return new Intl.NumberFormat(current, { maximumFractionDigits: digits }).format(value);
}

/** Milliseconds as seconds. @param {number} ms */
export function formatSeconds(ms) {
  const seconds = ms / 1000;
  const digits = seconds < 10 ? 2 : seconds < 100 ? 1 : 0;
  return `${new Intl.NumberFormat(current, { maximumFractionDigits: digits }).format(seconds)} s`;
}

/** @param {number} bytes */
export function formatBytes(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 1024 ** 2) return `${formatNumber(bytes / 1024, 1)} KB`;
  return `${formatNumber(bytes / 1024 ** 2, 1)} MB`;
}

/** The language of the page, `en` or `zh`. */
export function language() {
  return current;
}

/** The language the browser prefers among those there are. */
export function preferredLanguage() {
  const wanted = navigator.languages ?? [navigator.language];
  const found = wanted.map((tag) => tag.toLowerCase().split("-")[0]).find((tag) => tag in TEXTS);
  return found ?? "en";
}

/** Speaks another language. @param {string} name */
export function setLanguage(name) {
  current = name in TEXTS ? name : "en";
  document.documentElement.lang = current === "zh" ? "zh-Hans" : "en";
  document.title = t("app.title");
  const all = document.querySelectorAll("[data-t], [data-t-label], [data-t-placeholder]");
  for (const el of all) translate(/** @type {HTMLElement} */ (el));
  emit("language");
}

/** @param {HTMLElement} el */
function translate(el) {
  const { t: text, tLabel, tPlaceholder } = el.dataset;
  if (text) el.textContent = t(text, values(el.dataset.tValues));
  if (tLabel) {
    const label = t(tLabel, values(el.dataset.tLabelValues));
    el.setAttribute("aria-label", label);
    if (el.matches("button, a, summary")) el.title = label;
  }
  if (tPlaceholder) el.setAttribute("placeholder", t(tPlaceholder, values(el.dataset.tPlaceholderValues)));
}

/** @param {string | undefined} json */
function values(json) {
  return json ? JSON.parse(json) : null;
}

setTranslator(translate);
