/** What the tabs of one browser tell each other. Knows nothing of what they make of it. */

/** @type {BroadcastChannel | null} */
const channel = typeof BroadcastChannel === "function" ? new BroadcastChannel("qwenkit") : null;

/** @type {Map<string, (message: any) => void>} */
const handlers = new Map();

if (channel) channel.onmessage = ({ data }) => handlers.get(data?.type)?.(data);

/** Tells the other tabs. @param {string} type @param {Record<string, any>} [values] */
export function tell(type, values = {}) {
  channel?.postMessage({ type, ...values });
}

/** What to do when another tab tells. @param {string} type @param {(message: any) => void} fn */
export function whenTold(type, fn) {
  handlers.set(type, fn);
}

/**
 * Asks the other tabs which of these answers they are writing.
 *
 * @param {string[]} ids
 * @returns {Promise<Set<string>>}
 */
export async function askOthers(ids) {
  /** @type {Set<string>} */
  const alive = new Set();
  if (!channel || !ids.length) return alive;
  handlers.set("writing", ({ id }) => alive.add(id));
  tell("who-writes", { ids });
  await new Promise((resolve) => setTimeout(resolve, 300));
  return alive;
}
