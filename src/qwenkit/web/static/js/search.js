/** Finds words in what was said. Knows nothing of the page. */

import { scanTurns } from "./database.js";

const AROUND = 40;

/**
 * For each conversation where something was said that holds the words, an excerpt.
 *
 * @param {string} words
 * @param {() => boolean} isOver nobody waits any more
 * @returns {Promise<Map<string, string>>}
 */
export async function findTurns(words, isOver) {
  const small = words.toLowerCase();
  /** @type {Map<string, string>} */
  const hits = new Map();
  await scanTurns((turn) => {
    if (hits.has(turn.conversation)) return !isOver();
    const texts = [turn.content, ...(turn.attachments ?? []).map((file) => `${file.name}\n${file.text}`)];
    for (const text of texts) {
      const at = text.toLowerCase().indexOf(small);
      if (at < 0) continue;
      hits.set(turn.conversation, excerpt(text, at, words.length));
      break;
    }
    return !isOver();
  });
  return hits;
}

/** @param {string} text @param {number} at @param {number} length */
function excerpt(text, at, length) {
  const start = Math.max(0, at - AROUND);
  const piece = text.slice(start, at + length + 2 * AROUND).replace(/\s+/g, " ");
  return `${start > 0 ? "…" : ""}${piece}`;
}
