/**
 * What a person chose for this browser: looks, language, key, habits. Kept in localStorage; knows nothing of
 * conversations.
 */

const PLACE = "qwenkit.preferences";
const KEY_PLACE = "qwenkit.key";

/**
 * @typedef {object} Preferences
 * @property {"auto" | "light" | "dark"} theme
 * @property {string} language "" as the browser says
 * @property {boolean} enterSends
 * @property {string | null} model
 * @property {Partial<import("./types.js").Settings>} settings what new conversations begin with
 */

/** @type {Preferences} */
export const preferences = { theme: "auto", language: "", enterSends: true, model: null, settings: {} };

/** @param {Storage | undefined} storage @param {string} place */
function read(storage, place) {
  try {
    return storage?.getItem(place) ?? null;
  } catch {
    return null; // storage is switched off
  }
}

/** @param {() => void} write */
function attempt(write) {
  try {
    write();
  } catch {
    // Storage is switched off or full: the choice lasts as long as the page.
  }
}

/** Takes what was kept, as far as it makes sense. */
export function loadPreferences() {
  let kept = {};
  try {
    kept = JSON.parse(read(window.localStorage, PLACE) ?? "{}") ?? {};
  } catch {
    // Not ours: begin anew.
  }
  if (["auto", "light", "dark"].includes(kept.theme)) preferences.theme = kept.theme;
  if (["", "en", "zh"].includes(kept.language)) preferences.language = kept.language;
  if (typeof kept.enterSends === "boolean") preferences.enterSends = kept.enterSends;
  if (typeof kept.model === "string") preferences.model = kept.model;
  if (kept.settings && typeof kept.settings === "object") preferences.settings = kept.settings;
}

/** @param {Partial<Preferences>} changes */
export function setPreferences(changes) {
  Object.assign(preferences, changes);
  attempt(() => localStorage.setItem(PLACE, JSON.stringify(preferences)));
  applyTheme();
}

const DARK = "(prefers-color-scheme: dark)";

/** Shows the theme that was chosen. */
export function applyTheme() {
  const { theme } = preferences;
  const isDark = theme === "dark" || (theme === "auto" && window.matchMedia(DARK).matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  const sheet = /** @type {HTMLLinkElement} */ (document.getElementById("dark"));
  sheet.media = theme === "auto" ? DARK : isDark ? "all" : "not all";
  for (const meta of document.querySelectorAll('meta[name="theme-color"]')) {
    const isFor = /** @type {HTMLMetaElement} */ (meta).content === "#191816";
    meta.setAttribute(
      "media",
      theme === "auto" ? `(prefers-color-scheme: ${isFor ? "dark" : "light"})` : isFor === isDark ? "all" : "not all",
    );
  }
}

let heldKey = "";

/** The API key, "" where there is none. */
export function apiKey() {
  if (!heldKey) heldKey = read(window.sessionStorage, KEY_PLACE) ?? read(window.localStorage, KEY_PLACE) ?? "";
  return heldKey;
}

/** Whether the key outlives this tab. */
export function isKeyKept() {
  return read(window.localStorage, KEY_PLACE) !== null;
}

/** @param {string} key "" forgets it @param {boolean} keep also when the browser is closed */
export function setApiKey(key, keep) {
  heldKey = key;
  attempt(() => {
    localStorage.removeItem(KEY_PLACE);
    sessionStorage.removeItem(KEY_PLACE);
    if (key) (keep ? localStorage : sessionStorage).setItem(KEY_PLACE, key);
  });
}
