/** The system prompt with its presets. */

import { setSettings, shown } from "./conversations.js";
import { labelled } from "./dialog.js";
import { h, icon } from "./dom.js";
import { t } from "./language.js";
import { PRESETS } from "./presets.js";

/** @returns {{ el: HTMLElement, show: () => void }} */
export function promptTab() {
  let timer = 0;
  let isPending = false;
  const keep = () => {
    clearTimeout(timer);
    isPending = false;
    setSettings({ system: field.value });
  };
  const field = h("textarea", { class: "field", testid: "system", rows: "9", dir: "auto", placeholder: "prompt.placeholder" });
  field.addEventListener("input", () => {
    clearTimeout(timer);
    isPending = true;
    timer = window.setTimeout(keep, 250);
  });
  field.addEventListener("blur", () => isPending && keep());
  const presets = PRESETS.map((preset) => {
    const button = h("button", { type: "button", class: "preset", testid: `system-preset-${preset.id}`, "aria-pressed": "false" },
      icon(preset.icon), h("span", { class: "preset-text" }, h("strong", { t: `preset.${preset.id}.title` }), h("span", { class: "hint", t: `preset.${preset.id}.about` })));
    button.addEventListener("click", () => setSettings({ system: t(`preset.${preset.id}.system`) }));
    return { preset, button };
  });
  const clear = h("button", { type: "button", class: "quiet-button", t: "prompt.clear", testid: "system-clear", on: { click: () => setSettings({ system: "" }) } });
  const el = h("div", { class: "stack" }, labelled("panel.system", field, "prompt.hint"), h("div", { class: "button-row tight" }, clear),
    h("h3", { class: "block-title", t: "prompt.presets" }), h("div", { class: "presets" }, ...presets.map(({ button }) => button)));
  return {
    el,
    show() {
      const { system } = shown.current.settings;
      if (field.value.trim() !== system.trim() && !isPending) field.value = system;
      clear.hidden = !system;
      for (const { preset, button } of presets) button.setAttribute("aria-pressed", String(system === t(`preset.${preset.id}.system`)));
    },
  };
}
