/** Conversations as files, and back. */

import * as database from "./database.js";
import { keepConversations, writing } from "./conversations.js";
import { download, newId } from "./dom.js";
import { language, t } from "./language.js";
import { userText } from "./request.js";
import { loadTools, saveTool, tools } from "./tools.js";
import { Tree } from "./tree.js";
import { FORMAT, ImportError, MAX_IMPORT, readImport } from "./validate.js";

/**
 * @typedef {import("./types.js").Conversation} Conversation
 * @typedef {import("./types.js").Turn} Turn
 * @typedef {import("./types.js").Tool} Tool
 */

/** @param {Conversation} conversation @param {Turn[]} turns */
function plain(conversation, turns) {
  const kept = turns.map(({ conversation: _, ...turn }) =>
    turn.state === "streaming" ? { ...turn, state: "interrupted" } : turn,
  );
  return { ...conversation, turns: kept.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1)) };
}

/**
 * Everything as one text of JSON.
 *
 * @param {Conversation[]} conversations
 * @param {Tool[]} given
 * @returns {Promise<string>}
 */
async function toJson(conversations, given) {
  const list = [];
  for (const each of conversations) list.push(plain(each, await turnsOf(each.id)));
  const file = { format: FORMAT, version: 1, exported: new Date().toISOString(), conversations: list, tools: given };
  return JSON.stringify(file, null, 1);
}

/** With what this tab is writing, as far as it is. @param {string} id @returns {Promise<Turn[]>} */
async function turnsOf(id) {
  return (await database.getTurns(id)).map((turn) => writing.get(turn.id) ?? turn);
}

/** What is shown of a conversation, for people. @param {Conversation} conversation @param {Turn[]} turns */
export function toMarkdown(conversation, turns) {
  const parts = [`# ${(conversation.title || t("sidebar.untitled")).replace(/\s+/g, " ")}`];
  if (conversation.settings.system.trim())
    parts.push(`> ${conversation.settings.system.trim().replace(/\n/g, "\n> ")}`);
  for (const turn of new Tree(turns, conversation.choices).path()) parts.push(turnMarkdown(turn));
  return `${parts.join("\n\n")}\n`;
}

/** @param {Turn} turn */
function turnMarkdown(turn) {
  if (turn.role === "user") return `## ${t("turn.you")}\n\n${userText(turn)}`;
  if (turn.role === "tool") return `### ${t("calls.resultOf", { name: turn.name ?? "" })}\n\n${fenced(turn.content)}`;
  const calls = (turn.calls ?? []).map(
    (call) => `### ${t("calls.label", { name: call.name })}\n\n${fenced(call.arguments)}`,
  );
  const thoughts = turn.reasoning
    ? [`<details><summary>${t("reasoning.done")}</summary>\n\n${turn.reasoning.trim()}\n\n</details>`]
    : [];
  return [`## ${t("turn.model")}${turn.model ? ` (${turn.model})` : ""}`, ...thoughts, turn.content, ...calls]
    .filter(Boolean)
    .join("\n\n");
}

/** @param {string} text */
function fenced(text) {
  const runs = text.match(/`+/g) ?? [];
  const fence = "`".repeat(Math.max(3, ...runs.map((run) => run.length + 1)));
  return `${fence}\n${text}\n${fence}`;
}

/** A name for a file, on every system. @param {string} title */
function fileName(title) {
  const name = title
    .replace(/[\p{C}\\/:*?"<>|.]+/gu, " ")
    .replace(/\s+/g, " ")
    .trim()
    .slice(0, 60);
  return name || t("sidebar.untitled");
}

/** Offers one conversation as a file. @param {string} id @param {"json" | "markdown"} form */
export async function saveConversation(id, form) {
  const conversation = await database.get("conversations", id);
  if (!conversation) return;
  if (form === "markdown") {
    download(`${fileName(conversation.title)}.md`, "text/markdown", toMarkdown(conversation, await turnsOf(id)));
    return;
  }
  const used = conversation.settings.tools.map((each) => tools.get(each)).filter(Boolean);
  download(`${fileName(conversation.title)}.json`, "application/json", await toJson([conversation], used));
}

/** Offers all conversations as a file. @param {"json" | "markdown"} form */
export async function saveAll(form) {
  const day = new Date().toISOString().slice(0, 10);
  const all = await database.getAll("conversations");
  all.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  if (form === "json") {
    download(`qwenkit-${day}.json`, "application/json", await toJson(all, [...tools.values()]));
    return;
  }
  const texts = [];
  for (const each of all) texts.push(toMarkdown(each, await turnsOf(each.id)));
  download(`qwenkit-${day}-${language()}.md`, "text/markdown", texts.join("\n---\n\n"));
}

/**
 * Takes conversations from a file.
 *
 * @param {File} file
 * @returns {Promise<{ added: number, copied: number, same: number }>}
 * @throws {ImportError}
 */
export async function takeFile(file) {
  if (file.size > MAX_IMPORT) throw new ImportError("import.large", { size: file.size });
  let json;
  try {
    json = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new ImportError("import.notJson");
  }
  const { conversations, tools: given } = readImport(json);
  const names = await takeTools(given);
  const counts = { added: 0, copied: 0, same: 0 };
  /** @type {Conversation[]} */
  const kept = [];
  /** @type {Turn[]} */
  const keptTurns = [];
  /** @type {Set<string>} */
  const taken = new Set();
  for (const { conversation, turns } of conversations) {
    conversation.settings.tools = conversation.settings.tools.map((id) => names.get(id) ?? id);
    const fate = await fateOf(conversation, turns, taken);
    counts[fate] += 1;
    taken.add(conversation.id);
    if (fate === "same") continue;
    const id = fate === "added" ? conversation.id : newId();
    kept.push({ ...conversation, id });
    for (const turn of turns) keptTurns.push({ ...turn, conversation: id });
  }
  await keepConversations(kept, keptTurns);
  return counts;
}

/** @param {Tool[]} given @returns {Promise<Map<string, string>>} new names of those whose names were taken */
async function takeTools(given) {
  /** @type {Map<string, string>} */
  const names = new Map();
  for (const tool of given) {
    const old = tools.get(tool.id);
    const isSame =
      old &&
      JSON.stringify([old.name, old.description, old.parameters]) ===
        JSON.stringify([tool.name, tool.description, tool.parameters]);
    if (isSame) continue;
    const kept = await saveTool(old ? { ...tool, id: newId() } : tool);
    if (old) names.set(tool.id, kept.id);
  }
  if (given.length) await loadTools();
  return names;
}

/**
 * @param {Conversation} conversation
 * @param {Turn[]} turns
 * @param {Set<string>} taken names
 * @returns {Promise<"added" | "copied" | "same">}
 */
async function fateOf(conversation, turns, taken) {
  const old = await database.get("conversations", conversation.id);
  if (!old) return taken.has(conversation.id) ? "copied" : "added";
  const present = plain(old, await database.getTurns(old.id));
  return canonical(present) === canonical(plain(conversation, turns)) ? "same" : "copied";
}

/** The same text for equal values, whatever the order of their fields. @param {any} value @returns {string} */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
  const fields = Object.keys(value)
    .filter((key) => value[key] !== undefined)
    .sort();
  return `{${fields.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join()}}`;
}
