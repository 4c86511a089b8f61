/** The system prompt with its presets. */

import { setSettings, shown } from "./conversations.js";
import { labelled } from "./dialog.js";
import { h, icon, textButton } from "./dom.js";
import { t } from "./language.js";
import { PRESETS } from "./presets.js";

/** @returns {{ el: HTMLElement, show: () => void }} */
export function promptTab() {
  const { field, isPending } = promptField();
  const presets = PRESETS.map(presetButton);
  const clear = () => setSettings({ system: "" });
  const clearButton = textButton("prompt.clear", "system-clear", clear, { look: "quiet-button" });
  const el = h(
    "div",
    { class: "stack" },
    labelled("panel.system", field, "prompt.hint"),
    h("div", { class: "button-row tight" }, clearButton),
    h("h3", { class: "block-title", t: "prompt.presets" }),
    h("div", { class: "presets" }, ...presets.map(({ button }) => button)),
  );
  return {
    el,
    show() {
      const { system } = shown.current.settings;
      if (field.value !== system && !isPending()) field.value = system;
      clearButton.hidden = !system;
      for (const { id, button } of presets) {
        button.setAttribute("aria-pressed", String(system === t(`preset.${id}.system`)));
      }
    },
  };
}

/** A field that keeps what is written after a short while. */
function promptField() {
  const props = { class: "field", testid: "system", rows: "9", dir: "auto", placeholder: "prompt.placeholder" };
  const field = h("textarea", props);
  let timer = 0;
  let isPending = false;
  const keep = () => {
    clearTimeout(timer);
    isPending = false;
    setSettings({ system: field.value });
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    isPending = true;
    timer = window.setTimeout(keep, 250);
  });
  field.addEventListener("blur", () => isPending && keep());
  return { field, isPending: () => isPending };
}

/** @param {import("./presets.js").Preset} preset */
function presetButton({ id, icon: name }) {
  const words = h(
    "span",
    { class: "preset-text" },
    h("strong", { t: `preset.${id}.title` }),
    h("span", { class: "hint", t: `preset.${id}.about` }),
  );
  const props = { type: "button", class: "preset", testid: `system-preset-${id}`, "aria-pressed": "false" };
  const button = h("button", props, icon(name), words);
  button.addEventListener("click", () => setSettings({ system: t(`preset.${id}.system`) }));
  return { id, button };
}
