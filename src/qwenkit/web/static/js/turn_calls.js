/** Calls of tools: what the model asked for, and what a person answered. */

import { h, icon, say } from "./dom.js";
import { codeBlock, enrich } from "./rich.js";
import { giveResults } from "./turn_actions.js";

/** @typedef {import("./types.js").Turn} Turn */

/** JSON with line ends where it is JSON. @param {string} text */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** @param {string} text */
function isJson(text) {
  try {
    return typeof JSON.parse(text) === "object";
  } catch {
    return false;
  }
}

/**
 * The calls of an answer.
 *
 * @param {Turn} turn
 * @param {Turn[]} results turns of the tools, where they were given
 * @param {Node | null} pager of the variants of the results
 */
export function callsView(turn, results, pager) {
  const calls = turn.calls ?? [];
  const isOpen = turn.state === "streaming";
  const box = h("div", { class: "calls", testid: "calls" });
  for (const [n, call] of calls.entries()) box.append(card(call, results[n] ?? null, n));
  if (isOpen) return box;
  if (results.length < calls.length)
    addForm(
      box,
      turn,
      results.map((r) => r.content),
    );
  else if (results.length) box.append(doneRow(box, turn, results, pager));
  enrich(box);
  return box;
}

/** @param {import("./types.js").Call} call @param {Turn | null} result @param {number} n */
function card(call, result, n) {
  const head = h(
    "div",
    { class: "call-head" },
    icon("tool"),
    h("code", { class: "call-name", text: call.name }),
    h("span", { class: "tag", t: result ? "calls.answered" : "calls.waiting" }),
  );
  const el = h(
    "section",
    { class: "call", testid: "call", "data-name": call.name, label: ["calls.label", { name: call.name }] },
    head,
  );
  el.append(
    h("h3", { class: "field-label", t: "calls.arguments" }),
    codeBlock(pretty(call.arguments), isJson(call.arguments) ? "json" : ""),
  );
  const slot = h("div", { class: "call-result", "data-n": String(n) });
  if (result) {
    const text = pretty(result.content);
    slot.append(
      h("h3", { class: "field-label", t: "calls.result" }),
      codeBlock(text, isJson(result.content) ? "json" : ""),
    );
    slot.dataset.testid = "call-result";
  }
  el.append(slot);
  return el;
}

/**
 * Fields for the results, and a button that sends them.
 *
 * @param {HTMLElement} box
 * @param {Turn} turn
 * @param {string[]} texts
 */
function addForm(box, turn, texts) {
  const slots = [...box.querySelectorAll(".call-result")];
  const fields = slots.map((slot, n) => {
    const id = `result-${turn.id}-${n}`;
    const name = turn.calls?.[n].name ?? "";
    const field = h("textarea", {
      id,
      class: "field mono",
      rows: "3",
      placeholder: "calls.placeholder",
      spellcheck: "false",
      dir: "auto",
      testid: "call-reply",
      value: texts[n] ?? "",
    });
    slot.replaceChildren(h("label", { for: id, class: "field-label", t: ["calls.resultOf", { name }] }), field);
    delete (/** @type {HTMLElement} */ (slot).dataset.testid);
    return field;
  });
  const submit = () =>
    giveResults(
      turn,
      fields.map((field) => field.value),
    );
  const button = h("button", {
    type: "button",
    class: "button primary",
    t: slots.length > 1 ? "calls.sendAll" : "calls.send",
    testid: "call-send",
    on: { click: submit },
  });
  for (const field of fields) {
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
    });
  }
  box.querySelector(".calls-foot")?.remove();
  box.append(h("div", { class: "calls-foot" }, h("span", { class: "hint", t: "calls.hint" }), button));
}

/** @param {HTMLElement} box @param {Turn} turn @param {Turn[]} results @param {Node | null} pager */
function doneRow(box, turn, results, pager) {
  const edit = h(
    "button",
    { type: "button", class: "quiet-button", testid: "call-edit" },
    icon("edit"),
    h("span", { t: "calls.edit" }),
  );
  edit.addEventListener("click", () => {
    addForm(
      box,
      turn,
      results.map((r) => r.content),
    );
    for (const tag of box.querySelectorAll(".tag")) say(/** @type {HTMLElement} */ (tag), "text", "calls.waiting");
    /** @type {HTMLElement | null} */ (box.querySelector("textarea"))?.focus();
  });
  return h("div", { class: "calls-foot" }, pager, edit);
}
