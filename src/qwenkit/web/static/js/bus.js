/**
 * Events between the parts of the page. What is sent:
 * `list` (the conversations changed), `open` (another one is shown), `path` (turns came or went), `turn` (id: one changed),
 * `delta` (turn: the model wrote more), `settings`, `models`, `tools`, `key` (a key is needed), `language`, `busy` (answers began or ended).
 */

/** @type {Map<string, Set<(value: any) => void>>} */
const listeners = new Map();

/**
 * Calls `fn` whenever something of this type is sent; returns how to end that.
 *
 * @param {string} type
 * @param {(value: any) => void} fn
 */
export function on(type, fn) {
  const group = listeners.get(type) ?? new Set();
  listeners.set(type, group.add(fn));
  return () => group.delete(fn);
}

/** @param {string} type @param {any} [value] */
export function emit(type, value) {
  for (const fn of [...(listeners.get(type) ?? [])]) fn(value);
}
