/** Finds where a text stops being JSON, since browsers do not all tell. */

const TOKEN =
  /\s*(?:([{}[\],:])|("(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])|(true|false|null)(?!\w))/y;

/**
 * What may come next: a value, a name, or what follows one.
 *
 * @typedef {"value" | "first" | "name" | "firstName" | "colon" | "after"} State
 */

/**
 * Line and column, from 1, of the first fault of a text that is not JSON.
 *
 * @param {string} text
 * @returns {{ line: number, column: number }}
 */
export function faultPlace(text) {
  /** @type {string[]} */
  const open = [];
  /** @type {State} */
  let state = "value";
  TOKEN.lastIndex = 0;
  for (;;) {
    const from = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    const next = match && step(state, match, open);
    if (!next) return placeAt(text, from + (/^\s*/.exec(text.slice(from))?.[0].length ?? 0));
    state = next;
  }
}

/** @param {State} state @param {RegExpExecArray} match @param {string[]} open @returns {State | null} */
function step(state, [, mark, string], open) {
  if (state === "name" || state === "firstName") {
    if (string) return "colon";
    return state === "firstName" && mark === "}" ? close(open, "{") : null;
  }
  if (state === "colon") return mark === ":" ? "value" : null;
  if (state === "after") return afterValue(mark, open);
  if (state === "first" && mark === "]") return close(open, "[");
  if (mark === "{" || mark === "[") {
    open.push(mark);
    return mark === "{" ? "firstName" : "first";
  }
  return mark ? null : "after";
}

/** @param {string | undefined} mark @param {string[]} open @returns {State | null} */
function afterValue(mark, open) {
  if (mark === "}") return close(open, "{");
  if (mark === "]") return close(open, "[");
  if (mark !== "," || !open.length) return null;
  return open[open.length - 1] === "{" ? "name" : "value";
}

/** @param {string[]} open @param {string} mark @returns {State | null} */
function close(open, mark) {
  return open.pop() === mark ? "after" : null;
}

/** @param {string} text @param {number} at */
function placeAt(text, at) {
  const lines = text.slice(0, at).split("\n");
  return { line: lines.length, column: lines[lines.length - 1].length + 1 };
}
