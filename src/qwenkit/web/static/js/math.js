/** A rule for markdown-it that finds formulas: $a$, $$a$$, \(a\) and \[a\]. Knows nothing of how they are drawn. */

const PAIRS = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
  ["$", "$", false],
];

/** @param {any} md a markdown-it */
export function mathRule(md) {
  md.inline.ruler.before("escape", "math", inlineMath);
  md.block.ruler.before("fence", "math", blockMath, { alt: ["paragraph", "reference", "blockquote", "list"] });
  const draw = (name) => (tokens, n) => `<span class="math ${name}">${md.utils.escapeHtml(tokens[n].content)}</span>`;
  md.renderer.rules.math_inline = draw("math-inline");
  md.renderer.rules.math_display = draw("math-display");
  md.renderer.rules.math_block = (tokens, n) => `<p>${draw("math-display")(tokens, n)}</p>\n`;
}

/** @param {any} state @param {boolean} silent */
function inlineMath(state, silent) {
  const { src, pos } = state;
  const pair = PAIRS.find(([open]) => src.startsWith(open, pos));
  if (!pair) return false;
  const [open, close, isDisplay] = /** @type {[string, string, boolean]} */ (pair);
  const start = pos + open.length;
  const end = findClose(src, start, state.posMax, close);
  if (end < 0 || (open === "$" && !isFormula(src, start, end))) return false;
  if (!silent) {
    const token = state.push(isDisplay ? "math_display" : "math_inline", "span", 0);
    token.content = src.slice(start, end).trim();
  }
  state.pos = end + close.length;
  return true;
}

/** @param {string} src @param {number} start @param {number} max @param {string} close */
function findClose(src, start, max, close) {
  for (let at = src.indexOf(close, start); at >= 0 && at < max; at = src.indexOf(close, at + 1)) {
    let slashes = 0;
    while (src[at - 1 - slashes] === "\\") slashes++;
    if (slashes % 2 === 0) return src.slice(start, at).trim() ? at : -1;
  }
  return -1;
}

/** Prices are no formulas: "$5 and $10". @param {string} src @param {number} start @param {number} end */
function isFormula(src, start, end) {
  return (
    !/\s/.test(src[start]) &&
    !/\s/.test(src[end - 1]) &&
    !/[0-9A-Za-z]/.test(src[end + 1] ?? "") &&
    !src.slice(start, end).includes("\n\n")
  );
}

/** A formula that begins its line and ends one; while an answer is written, also one that is not closed yet. */
function blockMath(
  /** @type {any} */ state,
  /** @type {number} */ first,
  /** @type {number} */ last,
  /** @type {boolean} */ silent,
) {
  const begin = state.bMarks[first] + state.tShift[first];
  const pair = PAIRS.find(([open, , isDisplay]) => isDisplay && state.src.startsWith(open, begin));
  if (!pair || state.sCount[first] - state.blkIndent >= 4) return false;
  const [open, close] = /** @type {[string, string, boolean]} */ (pair);
  const found = blockEnd(state, first, last, begin + open.length, close);
  if (!found) return false;
  if (silent) return true;
  const token = state.push("math_block", "p", 0);
  token.block = true;
  token.content = found.content;
  token.map = [first, found.line + 1];
  state.line = found.line + 1;
  return true;
}

/** @param {any} state @param {number} first @param {number} last @param {number} start @param {string} close */
function blockEnd(state, first, last, start, close) {
  const lines = [];
  for (let line = first; line < last; line++) {
    const text = state.src.slice(line === first ? start : state.bMarks[line] + state.tShift[line], state.eMarks[line]);
    const at = text.indexOf(close);
    if (at >= 0) {
      if (text.slice(at + close.length).trim()) return null; // text goes on: the inline rule reads it
      const content = [...lines, text.slice(0, at)].join("\n").trim();
      return content ? { content, line } : null;
    }
    lines.push(text);
  }
  return state.env.isOpen && lines.join("").trim() ? { content: lines.join("\n").trim(), line: last - 1 } : null;
}
