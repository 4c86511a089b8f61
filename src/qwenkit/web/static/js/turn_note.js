/** What is said under an answer that did not come to its end, and what can be done about it. */

import { emit } from "./bus.js";
import { h, icon, textButton } from "./dom.js";
import { canGoOn, goOn, regenerate } from "./turn_actions.js";

/** @param {string} t @param {string} icon @param {string} testid @param {() => void} run */
const button = (t, icon, testid, run) => textButton(t, testid, run, { look: "button small", icon });

/** What to say of an error: nothing was lost where nothing had come. @param {import("./types.js").Turn} turn */
function kindOf({ state, error }) {
  return error?.kind === "network" && state === "failed" ? "unreachable" : error?.kind;
}

/** @param {import("./turn_view.js").Entry} entry @returns {HTMLElement[]} */
export function noteOf(entry) {
  const { turn, isLast } = entry;
  const { state, error } = turn;
  const isSilent = state === "done" && !turn.content.trim() && !turn.calls?.length;
  if (!state || state === "streaming" || (state === "done" && !isSilent)) return [];
  const isError = state === "failed";
  const key = isSilent ? "state.silent" : error ? `error.${kindOf(turn)}` : `state.${state}`;
  const text = h("div", { class: "state-text" }, h("strong", { t: key }));
  if (error?.message && error.kind !== "network")
    text.append(h("span", { class: "state-detail", text: error.message, dir: "auto" }));
  const actions = h("div", { class: "state-actions" });
  if (canGoOn(turn, isLast)) actions.append(button("turn.continue", "forward", "note-continue", () => goOn(turn)));
  if (error?.kind === "key") actions.append(button("key.enter", "key", "note-key", () => emit("key", error)));
  if (isLast && state !== "length") actions.append(button("turn.retry", "redo", "note-retry", () => regenerate(turn)));
  const className = `state${isError ? " state-error" : ""}`;
  return [
    h(
      "div",
      { class: className, testid: "state", "data-state": state, "data-kind": error?.kind },
      icon(isError ? "warning" : "info"),
      text,
      actions,
    ),
  ];
}
