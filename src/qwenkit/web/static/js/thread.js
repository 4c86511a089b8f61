/** The conversation on the page: which turns are there, dressed when near, grown once a frame. */

import { announce } from "./announce.js";
import { on } from "./bus.js";
import { shown, writing } from "./conversations.js";
import { byId, h } from "./dom.js";
import { Dresser } from "./dresser.js";
import { Follower } from "./scroll.js";
import { TurnView } from "./turn_view.js";

/** @typedef {import("./types.js").Turn} Turn @typedef {import("./turn_view.js").Entry} Entry */

/** Turns at the end that are dressed at once when a conversation is opened, and those that are there at all. */
const FIRST = 4;
const SHELLS = 60;
/** Turns that are added above at a time. */
const BATCH = 192;
const GROUP = 16;
/** Part of the time that may go into drawing what comes. */
const SHARE = 4;

/** @type {Map<string, TurnView>} */
const views = new Map();
/** @type {Map<string, Turn>} */
const grown = new Map();
/** @type {Follower} */
let follower;
/** @type {Dresser} */
let dresser;
let filling = 0;
let nextFrame = 0;
let earliest = 0;
/** Stands for the conversation whose turns are on the page. */
let drawn = "";

/** The turns that are shown, results with the answer whose calls they answer. @returns {Entry[]} */
function entries() {
  /** @type {Entry[]} */
  const list = [];
  for (const turn of shown.tree.path()) {
    const last = list[list.length - 1];
    if (turn.role === "tool" && last?.turn.role === "assistant") last.results.push(turn);
    else list.push({ turn, results: [], isLast: false });
  }
  if (list.length) list[list.length - 1].isLast = true;
  return list;
}

/** Puts the thread on the page. */
export function mountThread() {
  const box = byId("thread");
  const jump = byId("jump");
  follower = new Follower(box, byId("turns"), (isAtEnd) => (jump.hidden = isAtEnd || !views.size));
  jump.addEventListener("click", () => {
    follower.toEnd();
    byId("prompt").focus();
  });
  dresser = new Dresser(box, byId("turns"), (el) => views.get(el.dataset.id ?? "")?.dress());
  on("open", () => keepingFocus(render));
  on("path", () => keepingFocus(render));
  on("turn", (id) => keepingFocus(() => updateOne(id)));
  on("delta", (turn) => grow(turn));
  on("busy", (turn) => busy(turn));
  setInterval(tellWaiting, 1000);
}

/** Runs what may take the element with the focus away; then the field for the next question has it. @param {() => void} run */
function keepingFocus(run) {
  const host = byId("turns");
  const had = host.contains(document.activeElement);
  run();
  const isLost = had && (!document.activeElement || document.activeElement === document.body);
  if (isLost && !matchMedia("(pointer: coarse)").matches) byId("prompt").focus({ preventScroll: true });
}

/** Makes the page show the path of the tree, keeping what stays. */
function render() {
  const isOther = drawn !== shown.current.id;
  drawn = shown.current.id;
  const list = entries();
  if (isOther) clear();
  const wanted = new Set(list.map(({ turn }) => turn.id));
  for (const [id, view] of views) if (!wanted.has(id)) drop(id, view);
  const host = byId("turns");
  const head = list.findIndex(({ turn }) => views.has(turn.id));
  const start = head < 0 ? Math.max(0, list.length - SHELLS) : head;
  for (const [n, entry] of list.entries()) {
    const view = views.get(entry.turn.id);
    if (view) refresh(view, entry);
    else if (n >= start) lastGroup(host).append(make(entry, n >= list.length - FIRST).el);
  }
  fillAbove(list.slice(0, start));
  dresser.look();
  byId("empty").hidden = list.length > 0;
  document.body.classList.toggle("is-empty", list.length === 0);
  if (isOther || list[list.length - 1]?.turn.state === "streaming") follower.toEnd();
}

/**
 * The group that takes the next turn; what is out of sight is not laid out, group by group.
 *
 * @param {HTMLElement} host
 */
function lastGroup(host) {
  const last = host.lastElementChild;
  if (last && last.childElementCount < GROUP) return last;
  const made = h("div", { class: "group" });
  host.append(made);
  return made;
}

/** Adds the turns above, some at a time; what is in sight stays in place. @param {Entry[]} above */
function fillAbove(above) {
  clearTimeout(filling);
  if (!above.length) return;
  filling = window.setTimeout(() => {
    const batch = above.slice(-BATCH).map((entry) => make(entry, false).el);
    const groups = [];
    for (let n = 0; n < batch.length; n += GROUP)
      groups.push(h("div", { class: "group" }, ...batch.slice(n, n + GROUP)));
    byId("turns").prepend(...groups);
    dresser.look();
    fillAbove(above.slice(0, -BATCH));
  }, 30);
}

/** @param {TurnView} view @param {Entry} entry */
function refresh(view, entry) {
  const { turn, results, isLast } = view.entry;
  const isSame =
    turn === entry.turn &&
    isLast === entry.isLast &&
    results.length === entry.results.length &&
    results.every((result, n) => result === entry.results[n]);
  const variants = shown.tree.variants(turn).length;
  if (!isSame || variants !== view.variants) view.update(entry);
  view.variants = variants;
}

/** @param {Entry} entry @param {boolean} isNear */
function make(entry, isNear) {
  const view = new TurnView(entry);
  view.variants = shown.tree.variants(entry.turn).length;
  views.set(entry.turn.id, view);
  if (isNear) view.dress();
  else view.update(entry);
  return view;
}

/** @param {string} id @param {TurnView} view */
function drop(id, view) {
  const group = view.el.parentElement;
  view.el.remove();
  if (group && !group.childElementCount) group.remove();
  views.delete(id);
}

function clear() {
  clearTimeout(filling);
  views.clear();
  byId("turns").replaceChildren();
}

/** @param {string} id */
function updateOne(id) {
  const turn = shown.tree.turns.get(id);
  if (turn?.role === "tool") {
    render();
    return;
  }
  const view = views.get(id);
  if (!turn || !view) return;
  if (turn.state === "streaming" && view.entry.turn.state === "streaming" && writing.has(id)) grow(turn);
  else view.update({ ...view.entry, turn });
}

/** @param {Turn} turn */
function grow(turn) {
  if (!views.has(turn.id)) return;
  grown.set(turn.id, turn);
  nextFrame ||= requestAnimationFrame(drawGrown);
}

/** Draws what came since the last frame; what is slow to draw is drawn less often. */
function drawGrown() {
  nextFrame = 0;
  const start = performance.now();
  if (start < earliest) {
    nextFrame = requestAnimationFrame(drawGrown);
    return;
  }
  for (const [id, turn] of grown) views.get(id)?.grow(turn);
  grown.clear();
  const cost = performance.now() - start;
  earliest = cost > 4 ? start + SHARE * cost : 0;
}

/** @param {Turn} turn */
function busy(turn) {
  if (turn.conversation !== shown.current.id || writing.has(turn.id)) return;
  grown.delete(turn.id);
  const words = turn.content.trim() ? turn.content.trim().split(/\s+/).length : 0;
  announce(
    turn.state === "failed" || turn.state === "interrupted"
      ? "live.failed"
      : turn.state === "stopped"
        ? "live.stopped"
        : "live.finished",
    { n: words },
  );
}

function tellWaiting() {
  for (const turn of writing.values()) {
    if (!turn.content && !turn.reasoning) views.get(turn.id)?.wait(Math.round((Date.now() - turn.created) / 1000));
  }
}
