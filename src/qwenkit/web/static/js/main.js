/** Starts the page: preferences, language, database, then everything that is shown. */

import { note } from "./announce.js";
import { emit, on } from "./bus.js";
import { mountComposer } from "./composer.js";
import { loadList, open, shown, startNew } from "./conversations.js";
import { isKept, openDatabase } from "./database.js";
import { byId } from "./dom.js";
import { mountEmpty } from "./empty.js";
import { mountFrame } from "./frame.js";
import { mountKeyDialog } from "./key_dialog.js";
import { preferredLanguage, setLanguage } from "./language.js";
import { loadModels } from "./models.js";
import { mountPanel } from "./panel.js";
import { applyTheme, loadPreferences, preferences } from "./preferences.js";
import { mountShortcuts } from "./shortcuts.js";
import { mountSidebar } from "./sidebar.js";
import { mountThread } from "./thread.js";
import { loadTools } from "./tools.js";

/** The conversation that the address names. */
function wanted() {
  return /^#\/c\/([\w-]{1,64})$/.exec(location.hash)?.[1] ?? null;
}

async function follow() {
  const id = wanted();
  if (id === shown.current.id) return;
  if (id && (await open(id))) return;
  if (!shown.isNew || shown.tree.turns.size) startNew();
  if (id) history.replaceState(null, "", location.pathname + location.search);
}

/** Lets the address name what is shown. */
function showAddress() {
  const hash = shown.isNew ? "" : `#/c/${shown.current.id}`;
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname + location.search);
}

async function start() {
  loadPreferences();
  applyTheme();
  setLanguage(preferences.language || preferredLanguage());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  mountFrame();
  mountSidebar();
  mountThread();
  mountComposer();
  mountEmpty();
  mountPanel();
  mountKeyDialog();
  mountShortcuts();
  on("unsaved", () => note("note.unsaved", { isError: true }));
  await openDatabase();
  if (!isKept) note("note.notKept", { isError: true });
  loadModels();
  await Promise.all([loadList(), loadTools()]);
  const id = wanted();
  if (!id || !(await open(id))) emit("open");
  on("open", showAddress);
  on("kept", showAddress);
  window.addEventListener("popstate", follow);
  document.documentElement.dataset.ready = "true";
  if (!matchMedia("(pointer: coarse)").matches) byId("prompt").focus();
}

start();
