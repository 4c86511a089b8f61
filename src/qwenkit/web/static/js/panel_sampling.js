/** How the model chooses its words. An empty field means: as the model itself says. */

import { setSettings, shown } from "./conversations.js";
import { h, textButton } from "./dom.js";
import { models } from "./models.js";

/** @typedef {{ name: string, min: number, max: number, step: number, slider?: boolean }} Control */

/** @type {Control[]} */
const CONTROLS = [
  { name: "temperature", min: 0, max: 2, step: 0.05, slider: true },
  { name: "top_p", min: 0, max: 1, step: 0.01, slider: true },
  { name: "top_k", min: 0, max: 1000, step: 1 },
  { name: "repetition_penalty", min: 0.5, max: 2, step: 0.01, slider: true },
  { name: "max_tokens", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

/** @returns {{ el: HTMLElement, show: () => void }} */
export function samplingTab() {
  const controls = CONTROLS.map(control);
  const thinking = h("input", { type: "checkbox", testid: "set-thinking" });
  thinking.addEventListener("change", () => setSettings({ thinking: thinking.checked }));
  const think = h(
    "label",
    { class: "check" },
    thinking,
    h(
      "span",
      { class: "check-text" },
      h("span", { t: "sampling.thinking" }),
      h("span", { class: "hint", t: "sampling.thinkingHint" }),
    ),
  );
  const none = Object.fromEntries(CONTROLS.map(({ name }) => [name, null]));
  const reset = textButton("sampling.reset", "sampling-reset", () => setSettings(none));
  const el = h(
    "div",
    { class: "stack" },
    h("p", { class: "hint", t: "sampling.about" }),
    ...controls.map((each) => each.el),
    think,
    h("div", { class: "button-row" }, reset),
  );
  return {
    el,
    show() {
      const { settings } = shown.current;
      for (const each of controls) each.show(settings[each.name]);
      think.hidden = !models.canThink;
      thinking.checked = settings.thinking !== false;
      reset.disabled = CONTROLS.every(({ name }) => settings[name] === null);
    },
  };
}

/** @param {Control} given */
function control({ name, min, max, step, slider }) {
  const range = { min: String(min), max: String(max), step: String(step) };
  const id = `set-${name}`;
  const props = { id, testid: id, class: "field number", inputmode: "decimal", placeholder: "sampling.own" };
  const field = h("input", { type: "number", "aria-describedby": `${id}-hint`, ...props, ...range });
  // The field is for everyone; the bar beside it is for the mouse.
  const hidden = { tabindex: "-1", "aria-hidden": "true" };
  const bar = slider ? h("input", { type: "range", class: "range", ...hidden, ...range }) : null;
  const keep = () => {
    const text = field.value.trim();
    const value = text === "" ? null : Math.min(max, Math.max(min, Number(text)));
    setSettings({ [name]: value === null || Number.isNaN(value) ? null : step === 1 ? Math.round(value) : value });
  };
  field.addEventListener("change", keep);
  bar?.addEventListener("input", () => {
    field.value = bar.value;
    bar.classList.remove("is-unset");
  });
  bar?.addEventListener("change", keep);
  const el = h(
    "div",
    { class: "control" },
    h("div", { class: "control-row" }, h("label", { for: id, class: "control-label", t: `sampling.${name}` }), field),
    bar,
    h("p", { class: "hint", id: `${id}-hint`, t: `sampling.${name}.about` }),
  );
  return {
    el,
    name,
    /** @param {number | null} value */
    show(value) {
      field.value = value === null || value === undefined ? "" : String(value);
      if (!bar) return;
      bar.value = String(value ?? { temperature: 1, top_p: 1, repetition_penalty: 1 }[name]);
      bar.classList.toggle("is-unset", value === null);
    },
  };
}
