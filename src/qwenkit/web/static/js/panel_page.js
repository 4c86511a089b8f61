/** The page itself: looks, language, keys. */

import { callJson } from "./api.js";
import { emit } from "./bus.js";
import { labelled } from "./dialog.js";
import { h, say, textButton } from "./dom.js";
import { openKeyDialog } from "./key_dialog.js";
import { preferredLanguage, setLanguage } from "./language.js";
import { contextOf, modelFor, models } from "./models.js";
import { preferences, setPreferences } from "./preferences.js";
import { shown } from "./conversations.js";

const THEMES = /** @type {const} */ (["auto", "light", "dark"]);

/** @returns {{ el: HTMLElement, show: () => void }} */
export function pageTab() {
  const theme = themeField();
  const language = languageField();
  const enter = h("input", { type: "checkbox", testid: "enter-sends" });
  enter.addEventListener("change", () => {
    setPreferences({ enterSends: enter.checked });
    emit("settings");
  });
  const key = textButton("key.open", "key-open", () => openKeyDialog(false), { icon: "key" });
  const server = h("p", { class: "hint", testid: "server-info", dir: "auto" });
  const serverTitle = h("h3", { class: "block-title", t: "page.server" });
  const el = h(
    "div",
    { class: "stack" },
    theme.el,
    labelled("page.language", language),
    h("label", { class: "check" }, enter, h("span", { t: "page.enter" })),
    h("div", { class: "block" }, serverTitle, server, h("div", { class: "button-row" }, key)),
  );
  return {
    el,
    show() {
      theme.show();
      language.value = preferences.language;
      enter.checked = preferences.enterSends;
      showServer(server);
    },
  };
}

function themeField() {
  const radios = THEMES.map((value) => {
    const input = h("input", { type: "radio", name: "theme", value, class: "sr-only", testid: `theme-${value}` });
    input.addEventListener("change", () => setPreferences({ theme: value }));
    return { input, el: h("label", { class: "segment" }, input, h("span", { t: `page.${value}` })) };
  });
  const legend = h("legend", { class: "field-label", t: "page.theme" });
  const row = h("div", { class: "segment-row" }, ...radios.map((each) => each.el));
  return {
    el: h("fieldset", { class: "segments" }, legend, row),
    show() {
      for (const { input } of radios) input.checked = input.value === preferences.theme;
    },
  };
}

function languageField() {
  const field = h(
    "select",
    { class: "select wide", testid: "language" },
    h("option", { value: "", t: "page.browser" }),
    h("option", { value: "en", text: "English", lang: "en" }),
    h("option", { value: "zh", text: "简体中文", lang: "zh-Hans" }),
  );
  field.addEventListener("change", () => {
    setPreferences({ language: field.value });
    setLanguage(field.value || preferredLanguage());
  });
  return field;
}

let version = "";

/** @param {HTMLElement} el */
async function showServer(el) {
  if (!version && !models.error) version = String((await callJson("version").catch(() => null))?.version ?? "");
  const model = modelFor(shown.current.model);
  if (!model) say(el, "text", "empty.offline");
  else say(el, "text", ["page.serverAbout", { version, model, n: contextOf(model) ?? 0 }]);
}
