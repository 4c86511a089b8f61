/** Shows Markdown that grows: finished blocks stay as they are, only the last ones are made anew. */

import { morph } from "./dom.js";
import { parseBlocks } from "./markdown.js";
import { codeBlock, dressCode, enrich, growCode } from "./rich.js";

/** Blocks at the end that text still to come may change. */
const OPEN_BLOCKS = 2;
const DIRECTED = "p, h3, h4, h5, h6, ul, ol, table, blockquote";

/** One text on its way. */
export class AnswerView {
  /** @param {HTMLElement} el where it is shown */
  constructor(el) {
    this.el = el;
    this.#reset();
  }

  #reset() {
    this.frozen = "";
    /** @type {any} */
    this.env = {};
    /** @type {Element[]} */
    this.open = [];
    this.el.replaceChildren();
  }

  /** @param {string} text all of it @param {boolean} isOpen more will come */
  show(text, isOpen) {
    if (!text.startsWith(this.frozen)) this.#reset();
    // A definition of a link works backwards too: then all is read again at the end.
    if (!isOpen && this.frozen && /^ {0,3}\[[^\]]+\]:/m.test(text)) this.#reset();
    this.env.isOpen = isOpen;
    const tail = text.slice(this.frozen.length);
    const blocks = parseBlocks(tail, this.env);
    this.#fit(blocks, isOpen);
    const done = isOpen ? Math.max(0, blocks.length - OPEN_BLOCKS) : blocks.length;
    if (!done) return;
    for (const el of this.open.splice(0, done)) enrich(el);
    this.frozen = isOpen ? text.slice(0, this.frozen.length + blocks[done - 1].end) : text;
  }

  /** Makes the open elements fit the blocks. @param {import("./markdown.js").Block[]} blocks @param {boolean} isOpen */
  #fit(blocks, isOpen) {
    blocks.forEach((block, n) => {
      const old = this.open[n];
      if (block.kind === "fence") this.#fitCode(n, old, block);
      else this.#fitText(n, old, block, isOpen);
    });
    for (const el of this.open.splice(blocks.length)) el.remove();
  }

  /** @param {number} n @param {Element | undefined} old @param {import("./markdown.js").Block} block */
  #fitCode(n, old, block) {
    if (old instanceof HTMLElement && old.matches(".code") && old.dataset.language === block.info.slice(0, 40)) {
      growCode(old, block.content);
    } else {
      this.#put(n, old, codeBlock(block.content, block.info));
    }
  }

  /** @param {number} n @param {Element | undefined} old @param {import("./markdown.js").Block} block @param {boolean} isOpen */
  #fitText(n, old, block, isOpen) {
    const made = block.render().firstElementChild;
    if (!made) {
      this.#put(n, old, document.createElement("p"));
      return;
    }
    dressCode(made);
    if (made.matches(DIRECTED)) made.setAttribute("dir", "auto");
    for (const el of made.querySelectorAll(DIRECTED)) el.setAttribute("dir", "auto");
    const shown = made.nodeName === "TABLE" ? scroller(made) : made;
    enrich(shown, isOpen);
    if (old && old.nodeName === shown.nodeName && old.className === shown.className && !hasCode(old)) morph(old, shown);
    else this.#put(n, old, shown);
  }

  /** @param {number} n @param {Element | undefined} old @param {Element} made */
  #put(n, old, made) {
    if (old) old.replaceWith(made);
    else this.el.append(made);
    this.open[n] = made;
  }
}

/** Buttons of blocks of code have listeners, which cannot be carried over. @param {Element} el */
const hasCode = (el) => el.querySelector(".code") !== null || el.matches(".code");

/** A wide table scrolls by itself. @param {Element} table */
function scroller(table) {
  const box = document.createElement("div");
  box.className = "table-scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.append(table);
  return box;
}
