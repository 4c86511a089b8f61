/** Shows Markdown that grows: finished blocks stay as they are, only the last ones are made anew. */

import { morph } from "./dom.js";
import { parseBlocks, renderBlocks } from "./markdown.js";
import { codeBlock, dressCode, enrich, enrichWhenNear, growCode } from "./rich.js";

/** Blocks at the end that text still to come may change. */
const OPEN_BLOCKS = 2;
/** Blocks of a long text that are made at a time, and laid out only when they come near. */
const SLICE = 20;
/** About how high a line is, and how many characters it holds, for parts that nobody has seen yet. */
const LINE = 26;
const LINE_LENGTH = 80;
const DIRECTED = "p, h3, h4, h5, h6, ul, ol, table, blockquote";

/** Where headings of an answer begin, below those of the page. */
const TOP_LEVEL = 3;

/** One text on its way. */
export class AnswerView {
  /** What is shown and stays. */
  frozen = "";
  /** Whether nothing more was to come. */
  isWhole = false;
  /** Counts how often it began anew. */
  run = 0;
  /** What definitions were seen. @type {any} */
  env = {};
  /** @type {Element[]} */
  open = [];
  /** Levels of the headings above what comes next, as the text has them; and those after each open block. @type {number[]} */
  outline = [];
  /** @type {number[][]} */
  outlines = [];

  /** @param {HTMLElement} el where it is shown */
  constructor(el) {
    this.el = el;
    /** Where blocks are put: a part of a long text, else the whole. */
    this.host = el;
  }

  #reset() {
    this.run += 1;
    this.frozen = "";
    this.isWhole = false;
    this.env = {};
    this.open = [];
    this.outline = [];
    this.host = this.el;
    this.el.replaceChildren();
  }

  /**
   * Shows a long text that is whole without ever holding the page up.
   *
   * @param {string} text
   * @returns {Promise<void>} when it is there
   */
  async showSlowly(text) {
    this.#reset();
    const { run } = this;
    await nextTask(); // what stands in for it is painted first
    const blocks = parseBlocks(text, this.env);
    for (let n = 0; n < blocks.length; n += SLICE) {
      await nextTask();
      if (this.run !== run) return;
      this.#addPart(blocks.slice(n, n + SLICE), text.slice(blocks[n - 1]?.end ?? 0, blocks[n + SLICE - 1]?.end));
    }
    this.host = this.el;
    this.frozen = text;
    this.isWhole = true;
  }

  /** @param {import("./markdown.js").Block[]} blocks @param {string} text of these */
  #addPart(blocks, text) {
    const part = document.createElement("div");
    part.className = "part";
    const lines = text.split("\n").reduce((sum, line) => sum + 1 + Math.floor(line.length / LINE_LENGTH), 0);
    part.style.containIntrinsicSize = `auto ${lines * LINE}px`;
    this.host = part;
    this.#fit(blocks, false);
    this.#freeze(this.open.length);
    this.el.append(part);
    enrichWhenNear(part);
  }

  /** @param {string} text all of it @param {boolean} isOpen more will come */
  show(text, isOpen) {
    // What was whole and goes on may go on in the middle of a block.
    if (!text.startsWith(this.frozen) || (this.isWhole && (isOpen || text !== this.frozen))) this.#reset();
    // A definition of a link works backwards too: then all is read again at the end.
    if (!isOpen && !this.isWhole && this.frozen && /^ {0,3}\[[^\]]+\]:/m.test(text)) this.#reset();
    this.isWhole = !isOpen;
    this.env.isOpen = isOpen;
    const tail = text.slice(this.frozen.length);
    const blocks = parseBlocks(tail, this.env);
    this.#fit(blocks, isOpen);
    const done = isOpen ? Math.max(0, blocks.length - OPEN_BLOCKS) : blocks.length;
    if (!done) return;
    const closed = this.#freeze(done);
    if (isOpen) for (const el of closed) enrich(el);
    else enrich(this.el);
    this.frozen = isOpen ? text.slice(0, this.frozen.length + blocks[done - 1].end) : text;
  }

  /** Makes the open elements fit the blocks. @param {import("./markdown.js").Block[]} blocks @param {boolean} isOpen */
  #fit(blocks, isOpen) {
    const made = renderBlocks(
      blocks.filter((block) => block.kind === "other"),
      this.env,
    );
    let next = 0;
    let { outline } = this;
    blocks.forEach((block, n) => {
      const old = this.open[n];
      if (block.kind === "fence") this.#fitCode(n, old, block);
      else {
        const fragment = made[next++];
        outline = fitHeading(fragment, outline);
        this.#fitText(n, old, fragment, isOpen);
      }
      this.outlines[n] = outline;
    });
    for (const el of this.open.splice(blocks.length)) el.remove();
  }

  /** Lets the first open elements stay as they are; returns them. @param {number} count */
  #freeze(count) {
    this.outline = this.outlines[count - 1] ?? this.outline;
    return this.open.splice(0, count);
  }

  /** @param {number} n @param {Element | undefined} old @param {import("./markdown.js").Block} block */
  #fitCode(n, old, block) {
    if (old instanceof HTMLElement && old.matches(".code") && old.dataset.language === block.info.slice(0, 40)) {
      growCode(old, block.content);
    } else {
      this.#put(n, old, codeBlock(block.content, block.info));
    }
  }

  /** @param {number} n @param {Element | undefined} old @param {DocumentFragment} fragment @param {boolean} isOpen */
  #fitText(n, old, fragment, isOpen) {
    dressCode(fragment);
    const made = fragment.firstElementChild;
    if (!made) {
      this.#put(n, old, document.createElement("p"));
      return;
    }
    if (made.matches(DIRECTED)) made.setAttribute("dir", "auto");
    for (const el of made.querySelectorAll(DIRECTED)) el.setAttribute("dir", "auto");
    const shown = made.nodeName === "TABLE" ? scroller(made) : made;
    if (isOpen) enrich(shown, true);
    if (old && old.nodeName === shown.nodeName && old.className === shown.className && !hasCode(old)) morph(old, shown);
    else this.#put(n, old, shown);
  }

  /** @param {number} n @param {Element | undefined} old @param {Element} made */
  #put(n, old, made) {
    if (old) old.replaceWith(made);
    else this.host.append(made);
    this.open[n] = made;
  }
}

/** Lets the browser do what waits. */
const nextTask = () => new Promise((resolve) => setTimeout(resolve));

/** Buttons of blocks of code have listeners, which cannot be carried over. @param {Element} el */
const hasCode = (el) => el.querySelector(".code") !== null || el.matches(".code");

/**
 * Headings go down one level at a time, as whoever listens to them expects; those of one level stay on one.
 *
 * @param {DocumentFragment} fragment a block
 * @param {number[]} outline levels of the headings above it
 * @returns {number[]} levels of the headings above what comes next
 */
function fitHeading(fragment, outline) {
  const heading = fragment.firstElementChild;
  const own = Number(/^H(\d)$/.exec(heading?.nodeName ?? "")?.[1]);
  if (!heading || !own) return outline;
  const next = [...outline.filter((level) => level < own), own];
  const fit = Math.min(TOP_LEVEL + next.length - 1, 6);
  if (fit !== own) {
    const other = document.createElement(`h${fit}`);
    other.append(...heading.childNodes);
    heading.replaceWith(other);
  }
  return next;
}

/** A wide table scrolls by itself. @param {Element} table */
function scroller(table) {
  const box = document.createElement("div");
  box.className = "table-scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.append(table);
  return box;
}
