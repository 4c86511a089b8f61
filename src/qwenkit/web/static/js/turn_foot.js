/** The line under a turn: its variants, what can be done with it, and how the answer was made. */

import { choose, shown } from "./conversations.js";
import { h, icon, iconButton, say } from "./dom.js";
import { isBusy } from "./generation.js";
import { formatNumber, formatSeconds } from "./language.js";
import { openMenu } from "./menu.js";
import { copyText } from "./dom.js";
import { answerTurn, canGoOn, deleteTurn, forkFrom, goOn, regenerate } from "./turn_actions.js";

/** @typedef {import("./types.js").Turn} Turn @typedef {import("./turn_view.js").Entry} Entry */

/** @param {HTMLElement} foot @param {Entry} entry @param {() => void} edit */
export function footOf(foot, entry, edit) {
  const { turn } = entry;
  if (turn.state === "streaming") {
    foot.replaceChildren();
    return;
  }
  const pager = pagerOf(turn, "turn.variant");
  const actions = h("div", { class: "turn-actions" }, ...buttons(entry, edit));
  const stats = turn.role === "assistant" ? statsOf(turn) : null;
  foot.replaceChildren(.../** @type {any[]} */ ([pager, actions, stats].filter(Boolean)));
}

/** @param {Entry} entry @param {() => void} edit */
function buttons({ turn, isLast }, edit) {
  const list = [copyAction(turn)];
  const whenFree = (/** @type {() => void} */ run) => () => !isBusy() && run();
  list.push(iconButton("edit", "turn.edit", whenFree(edit), { testid: "edit" }));
  if (turn.role === "assistant") {
    list.push(iconButton("redo", "turn.regenerate", () => regenerate(turn), { testid: "regenerate" }));
    // Where it was cut, the note above offers this.
    if (turn.edited && turn.state === "done" && canGoOn(turn, isLast))
      list.push(iconButton("forward", "turn.continue", () => goOn(turn), { testid: "continue" }));
  } else if (isLast) {
    list.push(iconButton("redo", "turn.answer", () => answerTurn(turn), { testid: "answer" }));
  }
  const more = iconButton(
    "more",
    "turn.more",
    () =>
      openMenu(more, [
        { icon: "branch", label: "turn.fork", run: () => forkFrom(turn), testid: "fork" },
        { icon: "trash", label: "turn.delete", run: () => deleteTurn(turn), isDanger: true, testid: "delete" },
      ]),
    { testid: "more", "aria-haspopup": "menu", "aria-expanded": "false" },
  );
  list.push(more);
  return list;
}

/** @param {Turn} turn */
function copyAction(turn) {
  const button = iconButton(
    "copy",
    "turn.copy",
    async () => {
      const done = await copyText(turn.content);
      button.firstElementChild.replaceWith(icon(done ? "check" : "copy"));
      say(button, "label", done ? "code.copied" : "code.notCopied");
      setTimeout(() => {
        button.firstElementChild.replaceWith(icon("copy"));
        say(button, "label", "turn.copy");
      }, 1600);
    },
    { testid: "copy-turn" },
  );
  return button;
}

/** Pages through the variants of a turn; null where there is one only. @param {Turn} turn @param {string} label */
export function pagerOf(turn, label) {
  const all = shown.tree.variants(turn);
  if (all.length < 2) return null;
  const at = all.findIndex((each) => each.id === turn.id);
  const go = (/** @type {number} */ step) => () => {
    const to = all[at + step];
    if (!to) return;
    choose(to);
    refocus(to.id, step > 0 ? "variant-next" : "variant-previous");
  };
  const count = h("span", { class: "pager-count", testid: "variant", text: `${at + 1} / ${all.length}` });
  const props = { class: "pager", role: "group", label: [label, { at: at + 1, all: all.length }], testid: "pager" };
  return h(
    "div",
    props,
    iconButton("left", "turn.previous", go(-1), { testid: "variant-previous", disabled: at === 0 }),
    count,
    iconButton("right", "turn.next", go(1), { testid: "variant-next", disabled: at === all.length - 1 }),
  );
}

/**
 * Gives the focus to the same button of the variant that is shown now.
 *
 * @param {string} id
 * @param {string} testid
 */
function refocus(id, testid) {
  const pager = document.querySelector(`[data-testid="turn"][data-id="${CSS.escape(id)}"] [data-testid="pager"]`);
  const same = pager?.querySelector(`[data-testid="${testid}"]:enabled`) ?? pager?.querySelector("button:enabled");
  /** @type {HTMLElement | null | undefined} */ (same)?.focus({ preventScroll: true });
}

/** @param {Turn} turn */
function statsOf(turn) {
  const { prompt, completion, first } = turn.stats ?? {};
  const parts = [];
  if (turn.edited) parts.push(h("span", { t: "stats.edited" }));
  if (completion) parts.push(h("span", { t: ["stats.tokens", { n: completion }], testid: "stat-tokens" }));
  const speed = speedOf(turn.stats ?? {});
  if (speed) parts.push(h("span", { t: ["stats.speed", { n: formatNumber(speed, 1) }], testid: "stat-speed" }));
  if (first !== undefined)
    parts.push(h("span", { t: ["stats.first", { time: formatSeconds(first) }], testid: "stat-first" }));
  if (prompt) parts.push(h("span", { t: ["stats.prompt", { n: prompt }], testid: "stat-prompt" }));
  if (turn.model) parts.push(h("span", { text: turn.model, class: "stat-model", dir: "auto" }));
  return parts.length ? h("div", { class: "stats", testid: "stats" }, ...parts) : null;
}

/**
 * Tokens a second, from the first one on; over the whole time where all came at once, as from a proxy that held them
 * back.
 *
 * @param {import("./types.js").Stats} stats
 */
export function speedOf({ completion = 0, first = 0, writing = 0 }) {
  if (completion < 2) return 0;
  return writing > 50 ? ((completion - 1) * 1000) / writing : (completion * 1000) / Math.max(1, first + writing);
}
