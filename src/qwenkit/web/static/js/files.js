/** Files that go into a question: text only, in bounds. Knows nothing of the page. */

export const MAX_FILE = 512 * 1024;
export const MAX_ALL = 1024 * 1024;
export const MAX_FILES = 10;

/** @typedef {import("./types.js").Attachment} Attachment */
/**
 * Why a file was not taken.
 *
 * @typedef {{ name: string, reason: "large" | "binary" | "many" | "total" | "unreadable" | "empty" }} Refusal
 */

/**
 * Reads files as text.
 *
 * @param {Iterable<File>} files
 * @param {Attachment[]} present those there are already
 * @returns {Promise<{ taken: Attachment[], refused: Refusal[] }>}
 */
export async function readFiles(files, present) {
  /** @type {Attachment[]} */
  const taken = [];
  /** @type {Refusal[]} */
  const refused = [];
  let total = present.reduce((sum, file) => sum + file.size, 0);
  for (const file of files) {
    const name = cleanName(file.name);
    const reason = refusal(file, present.length + taken.length, total);
    const text = reason ? null : await readText(file).catch(() => undefined);
    if (reason) refused.push({ name, reason });
    else if (typeof text !== "string") refused.push({ name, reason: text === null ? "binary" : "unreadable" });
    else {
      taken.push({ name, size: file.size, text });
      total += file.size;
    }
  }
  return { taken, refused };
}

/** @param {File} file @param {number} count @param {number} total @returns {Refusal["reason"] | null} */
function refusal(file, count, total) {
  if (count >= MAX_FILES) return "many";
  if (!file.size) return "empty";
  if (file.size > MAX_FILE) return "large";
  return total + file.size > MAX_ALL ? "total" : null;
}

/** A name on one line, without what could hide or turn it around. @param {string} name */
export function cleanName(name) {
  const line = name
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, " ")
    .replace(/\s+/g, " ")
    .trim();
  return [...line].slice(0, 120).join("") || "file.txt";
}

/** The text of a file; null where it holds none. @param {File} file @returns {Promise<string | null>} */
async function readText(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const mark =
    bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : null;
  for (const encoding of mark ? [mark] : ["utf-8", "gb18030"]) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
      return isText(text) ? text.replace(/\r\n?/g, "\n") : null;
    } catch {
      // Not this encoding.
    }
  }
  return null;
}

/** Text has no control characters to speak of. @param {string} text */
function isText(text) {
  const odd = text.match(/[\u0000-\u0008\u000E-\u001A\u001C-\u001F\uFFFD]/g)?.length ?? 0;
  return !text.includes("\0") && odd <= text.length / 200;
}
