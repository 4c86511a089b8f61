/** Ready-made system prompts and first questions; their texts are in the language of the page. */

/** @typedef {{ id: string, icon: string }} Preset */

/** What system prompts are good for, as Qwen's release shows it. @type {Preset[]} */
export const PRESETS = [
  { id: "role", icon: "mask" },
  { id: "style", icon: "brush" },
  { id: "task", icon: "target" },
  { id: "behaviour", icon: "sliders" },
];
