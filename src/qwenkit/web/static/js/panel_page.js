/** The page itself: looks, language, keys. */

import { callJson } from "./api.js";
import { emit } from "./bus.js";
import { labelled } from "./dialog.js";
import { h, icon, say } from "./dom.js";
import { openKeyDialog } from "./key_dialog.js";
import { preferredLanguage, setLanguage } from "./language.js";
import { contextOf, modelFor, models } from "./models.js";
import { preferences, setPreferences } from "./preferences.js";
import { shown } from "./conversations.js";

const THEMES = ["auto", "light", "dark"];

/** @returns {{ el: HTMLElement, show: () => void }} */
export function pageTab() {
  const radios = THEMES.map((value) => {
    const input = h("input", { type: "radio", name: "theme", value, class: "sr-only", testid: `theme-${value}` });
    input.addEventListener("change", () => setPreferences({ theme: value }));
    return { input, el: h("label", { class: "segment" }, input, h("span", { t: `page.${value}` })) };
  });
  const language = h("select", { class: "select wide", testid: "language" },
    h("option", { value: "", t: "page.browser" }), h("option", { value: "en", text: "English", lang: "en" }), h("option", { value: "zh", text: "简体中文", lang: "zh-Hans" }));
  language.addEventListener("change", () => {
    setPreferences({ language: language.value });
    setLanguage(language.value || preferredLanguage());
  });
  const enter = h("input", { type: "checkbox", testid: "enter-sends" });
  enter.addEventListener("change", () => {
    setPreferences({ enterSends: enter.checked });
    emit("settings");
  });
  const key = h("button", { type: "button", class: "button", testid: "key-open", on: { click: () => openKeyDialog(false) } }, icon("key"), h("span", { t: "key.open" }));
  const server = h("p", { class: "hint", testid: "server-info", dir: "auto" });
  const el = h("div", { class: "stack" },
    h("fieldset", { class: "segments" }, h("legend", { class: "field-label", t: "page.theme" }), h("div", { class: "segment-row" }, ...radios.map((each) => each.el))),
    labelled("page.language", language),
    h("label", { class: "check" }, enter, h("span", { t: "page.enter" })),
    h("div", { class: "block" }, h("h3", { class: "block-title", t: "page.server" }), server, h("div", { class: "button-row" }, key)));
  return {
    el,
    show() {
      for (const { input } of radios) input.checked = input.value === preferences.theme;
      language.value = preferences.language;
      enter.checked = preferences.enterSends;
      showServer(server);
    },
  };
}

let version = "";

/** @param {HTMLElement} el */
async function showServer(el) {
  if (!version && !models.error) version = await callJson("version").then((value) => String(value.version), () => "");
  const model = modelFor(shown.current.model);
  if (!model) say(el, "text", "empty.offline");
  else say(el, "text", ["page.serverAbout", { version, model, n: contextOf(model) ?? 0 }]);
}
