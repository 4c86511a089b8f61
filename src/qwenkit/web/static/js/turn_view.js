/** How a turn looks. A turn far away is a plain shell, which is dressed when it comes near. */

import { AnswerView } from "./answer_view.js";
import { h, icon, iconButton, say } from "./dom.js";
import { editForm } from "./turn_edit.js";
import { callsView } from "./turn_calls.js";
import { footOf, pagerOf } from "./turn_foot.js";
import { noteOf } from "./turn_note.js";

/** @typedef {import("./types.js").Turn} Turn @typedef {{ turn: Turn, results: Turn[], isLast: boolean }} Entry */

const LONG = 1800;
const HUGE = 30_000;

/** One turn on the page, with the results of its calls. */
export class TurnView {
  /** @param {Entry} entry */
  constructor(entry) {
    const { turn } = entry;
    this.entry = entry;
    this.isDressed = false;
    this.isEdited = false;
    this.isSlow = false;
    /** How many there were of it when it was last shown. */
    this.variants = 1;
    /** @type {AnswerView | null} */
    this.answer = null;
    /** @type {AnswerView | null} */
    this.thoughts = null;
    const props = {
      class: `turn turn-${turn.role}`,
      testid: "turn",
      "data-role": turn.role,
      "data-id": turn.id,
      tabindex: "-1",
    };
    this.el = h("article", props, h("p", { class: "raw", text: turn.content, dir: "auto" }));
  }

  /** Shows everything. */
  dress() {
    if (this.isDressed) return;
    this.isDressed = true;
    this.el.dataset.dressed = "true";
    this.body = h("div", { class: "turn-body" });
    this.foot = h("div", { class: "turn-foot" });
    const title = h("h2", { class: "sr-only", t: this.entry.turn.role === "user" ? "turn.you" : "turn.model" });
    this.el.replaceChildren(title, this.body, this.foot);
    this.update(this.entry);
  }

  /** Shows a newer state. @param {Entry} entry */
  update(entry) {
    this.entry = entry;
    const { turn } = entry;
    this.el.dataset.state = turn.state ?? "done";
    this.el.dataset.last = String(entry.isLast);
    if (!this.isDressed || this.isEdited) return;
    if (turn.role === "user") this.#showUser(turn);
    else this.#showAnswer(entry);
    footOf(this.foot, entry, () => this.edit());
  }

  /** Lets a person change the words. */
  edit() {
    this.isEdited = true;
    this.el.classList.add("is-edited");
    const { turn } = this.entry;
    const form = editForm(turn, () => {
      this.isEdited = false;
      this.el.classList.remove("is-edited");
      this.answer = this.thoughts = null;
      this.body.replaceChildren();
      this.update(this.entry);
      /** @type {HTMLElement | null} */ (this.foot.querySelector("[data-testid=edit]"))?.focus();
    });
    this.body.replaceChildren(form);
    this.foot.replaceChildren();
    const field = /** @type {HTMLTextAreaElement} */ (form.querySelector("textarea"));
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  /** @param {Turn} turn */
  #showUser(turn) {
    const files = (turn.attachments ?? []).map(fileView);
    const text = h("div", { class: "said", text: turn.content, dir: "auto", testid: "content" });
    const parts = [files.length ? h("div", { class: "files" }, ...files) : null, turn.content ? text : null];
    this.body.replaceChildren(.../** @type {any[]} */ (parts.filter(Boolean)));
    if (turn.content.length > LONG || turn.content.split("\n").length > 24) this.body.append(folder(text));
  }

  /** @param {Entry} entry */
  #showAnswer(entry) {
    const { turn } = entry;
    const isOpen = turn.state === "streaming";
    this.el.setAttribute("aria-busy", String(isOpen));
    const isNew = !this.answer;
    if (isNew) this.#build();
    if (isNew && !isOpen && turn.content.length > HUGE) this.#showSlowly(turn);
    this.grow(turn);
    this.calls.replaceChildren();
    if (turn.calls?.length) {
      const pager = entry.results.length ? pagerOf(entry.results[0], "calls.variant") : null;
      this.calls.replaceChildren(callsView(turn, entry.results, pager));
    }
    this.note.replaceChildren(...noteOf(entry));
  }

  #build() {
    this.reason = h("details", { class: "reasoning", testid: "reasoning", hidden: true });
    this.reasonTitle = h("span", { class: "reasoning-title" });
    this.reasonText = h("div", { class: "markdown reasoning-text", testid: "reasoning-text" });
    this.reason.append(h("summary", {}, icon("thought"), this.reasonTitle, icon("chevron", "fold")), this.reasonText);
    this.thoughts = new AnswerView(this.reasonText);
    this.reason.addEventListener("toggle", () => this.#showThoughts(this.entry.turn));
    this.text = h("div", { class: "markdown", testid: "content" });
    this.answer = new AnswerView(this.text);
    this.waiting = h(
      "div",
      { class: "waiting", hidden: true },
      h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")),
      h("span", { class: "waiting-text" }),
    );
    this.calls = h("div", { class: "turn-calls" });
    this.note = h("div", { class: "turn-note" });
    this.body.replaceChildren(this.reason, this.text, this.waiting, this.calls, this.note);
  }

  /** The plain text stands in until the long one is made. @param {Turn} turn */
  async #showSlowly(turn) {
    const raw = h("p", { class: "raw", text: turn.content, dir: "auto" });
    this.text.replaceWith(raw);
    this.isSlow = true;
    await this.answer?.showSlowly(turn.content);
    this.isSlow = false;
    raw.replaceWith(this.text);
    this.grow(this.entry.turn);
  }

  /** Shows what the model wrote so far. @param {Turn} turn */
  grow(turn) {
    if (!this.answer || this.isEdited) return;
    const isOpen = turn.state === "streaming";
    const isEmpty = !turn.content && !turn.calls?.length;
    const call = turn.calls?.at(-1)?.name;
    this.waiting.hidden = !isOpen || !(call || (isEmpty && !turn.reasoning));
    if (call && isOpen) say(this.waiting.lastElementChild, "text", ["calls.now", { name: call }]);
    this.text.classList.toggle("is-open", isOpen && Boolean(turn.content));
    if (!this.isSlow) this.answer.show(turn.content, isOpen);
    if (!turn.reasoning) return;
    this.reason.hidden = false;
    const isThinking = isOpen && isEmpty;
    this.reason.classList.toggle("is-open", isThinking);
    const tokens = turn.stats?.reasoning;
    say(
      this.reasonTitle,
      "text",
      isThinking ? "reasoning.now" : tokens ? ["reasoning.tokens", { n: tokens }] : "reasoning.done",
    );
    this.#showThoughts(turn);
  }

  /** Thoughts are made when someone looks at them. @param {Turn} turn */
  #showThoughts(turn) {
    if (this.reason.open) this.thoughts?.show(turn.reasoning ?? "", turn.state === "streaming");
  }

  /** Says how long nothing came. @param {number} seconds */
  wait(seconds) {
    const span = this.waiting?.lastElementChild;
    if (!span || this.waiting.hidden || this.entry.turn.calls?.length) return;
    if (seconds < 3) span.textContent = "";
    else say(span, "text", ["waiting.seconds", { n: seconds }]);
  }
}

/** @param {import("./types.js").Attachment} file */
function fileView(file) {
  const size = file.text.split("\n").length;
  return h(
    "details",
    { class: "file", testid: "file" },
    h(
      "summary",
      {},
      icon("file"),
      h("span", { class: "file-name", text: file.name, dir: "auto" }),
      h("span", { class: "file-size", t: ["file.lines", { n: size }] }),
    ),
    h("pre", { tabindex: "0", dir: "ltr" }, h("code", { text: file.text })),
  );
}

/** A button that shows a long text whole. @param {HTMLElement} text */
function folder(text) {
  text.classList.add("is-folded");
  const button = iconButton(
    "chevron",
    "turn.showAll",
    () => {
      const isFolded = text.classList.toggle("is-folded");
      say(button, "label", isFolded ? "turn.showAll" : "turn.showLess");
      button.setAttribute("aria-expanded", String(!isFolded));
    },
    { class: "icon-button unfold", "aria-expanded": "false" },
  );
  return button;
}
