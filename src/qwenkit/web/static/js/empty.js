/** What is shown before anything was said: what one could begin with. */

import { announce } from "./announce.js";
import { on } from "./bus.js";
import { setDraft } from "./composer.js";
import { setSettings, shown } from "./conversations.js";
import { byId, h, icon } from "./dom.js";
import { t } from "./language.js";
import { modelFor, models } from "./models.js";
import { PRESETS } from "./presets.js";

/** Puts the suggestions on the page. */
export function mountEmpty() {
  const host = byId("suggestions");
  for (const preset of PRESETS) host.append(card(preset));
  for (const type of ["settings", "open", "models", "language"]) on(type, show);
}

/** @param {import("./presets.js").Preset} preset */
function card(preset) {
  const text = h(
    "span",
    { class: "suggestion-text" },
    h("strong", { t: `preset.${preset.id}.title` }),
    h("span", { t: `preset.${preset.id}.about` }),
  );
  const button = h(
    "button",
    {
      type: "button",
      class: "suggestion",
      testid: `preset-${preset.id}`,
      "data-preset": preset.id,
      "aria-pressed": "false",
    },
    h("span", { class: "suggestion-icon" }, icon(preset.icon)),
    text,
  );
  button.addEventListener("click", () => pick(preset));
  return button;
}

/** @param {import("./presets.js").Preset} preset */
function pick(preset) {
  const system = t(`preset.${preset.id}.system`);
  const isOn = shown.current.settings.system === system;
  setSettings({ system: isOn ? "" : system });
  setDraft(isOn ? "" : t(`preset.${preset.id}.first`));
  if (!isOn) announce("live.preset");
  byId("prompt").focus();
}

function show() {
  const { system } = shown.current.settings;
  for (const button of byId("suggestions").children) {
    const isOn = system !== "" && system === t(`preset.${button.dataset.preset}.system`);
    button.setAttribute("aria-pressed", String(isOn));
  }
  const model = modelFor(shown.current.model);
  byId("empty-model").textContent = model ?? "";
  byId("offline").hidden = !models.error || models.error.kind === "key";
}
