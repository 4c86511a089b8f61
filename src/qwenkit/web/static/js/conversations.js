/** All conversations, and the one that is shown: what happens to them, kept in the database and told to other tabs. */

import { emit } from "./bus.js";
import * as database from "./database.js";
import { newId } from "./dom.js";
import { preferences, setPreferences } from "./preferences.js";
import { askOthers, tell, whenTold } from "./tabs.js";
import { Tree } from "./tree.js";

/** @typedef {import("./types.js").Conversation} Conversation @typedef {import("./types.js").Turn} Turn */

export const NO_SETTINGS = Object.freeze({
  system: "",
  temperature: null,
  top_p: null,
  top_k: null,
  repetition_penalty: null,
  max_tokens: null,
  seed: null,
  thinking: null,
  tools: Object.freeze([]),
});

/**
 * @type {{ list: Conversation[], current: Conversation, tree: Tree, isNew: boolean }}
 * What is shown is `current` with its `tree`; it `isNew` until something was said.
 */
export const shown = { list: [], current: blank(), tree: new Tree([], []), isNew: true };

/** Turns that this tab is writing now, by id. @type {Map<string, Turn>} */
export const writing = new Map();

/** Turns that were taken out: what is still being written into them must not bring them back. @type {Set<string>} */
const gone = new Set();

/** @returns {Conversation} */
function blank() {
  const now = Date.now();
  const { tools = [], ...rest } = preferences.settings;
  const settings = { ...NO_SETTINGS, ...rest, system: "", tools: [...tools] };
  return { id: newId(), title: "", named: false, created: now, updated: now, model: null, settings, choices: [] };
}

/** Reads the list anew. */
export async function loadList() {
  const all = await database.getAll("conversations");
  shown.list = all.sort((a, b) => b.updated - a.updated);
  emit("list");
}

/** Shows an empty conversation, which is kept once something is said. */
export function startNew() {
  Object.assign(shown, { current: blank(), tree: new Tree([], []), isNew: true });
  emit("open");
}

/** Shows a conversation. @param {string} id @returns {Promise<boolean>} whether there is one */
export async function open(id) {
  const [conversation, turns] = await Promise.all([database.get("conversations", id), database.getTurns(id)]);
  if (!conversation) return false;
  const tree = new Tree(
    turns.map((turn) => writing.get(turn.id) ?? turn),
    conversation.choices,
  );
  Object.assign(shown, { current: conversation, tree, isNew: false });
  emit("open");
  endAbandoned(turns);
  return true;
}

/** Answers that no tab writes any more were cut off. @param {Turn[]} turns */
async function endAbandoned(turns) {
  const open = turns.filter((turn) => turn.state === "streaming" && !writing.has(turn.id));
  const alive = await askOthers(open.map((turn) => turn.id));
  const dead = open.filter((turn) => !alive.has(turn.id));
  for (const turn of dead) await saveTurn({ ...turn, state: "interrupted" });
}

/** Keeps a turn, and shows it where its conversation is shown. @param {Turn} turn */
export async function saveTurn(turn) {
  if (gone.has(turn.id)) return;
  if (turn.conversation === shown.current.id) {
    const isKnown = shown.tree.turns.has(turn.id);
    shown.tree.add(turn);
    emit(isKnown ? "turn" : "path", turn.id);
  }
  await database.putAll("turns", [turn]).catch(() => emit("unsaved"));
  tell("turn", { conversation: turn.conversation, id: turn.id });
}

/**
 * Puts a turn into the conversation that is shown, and shows it; `keepTurn` then keeps it.
 *
 * @param {Partial<Turn> & { role: any }} values
 * @returns {Turn}
 */
export function placeTurn(values) {
  const turn = /** @type {Turn} */ ({ id: newId(), parent: null, content: "", created: Date.now(), ...values });
  turn.conversation = shown.current.id;
  // Two turns of one millisecond must keep their order.
  for (const each of shown.tree.variants(turn)) if (each.created >= turn.created) turn.created = each.created + 1;
  shown.tree.add(turn);
  shown.tree.choose(turn);
  if (turn.state === "streaming") writing.set(turn.id, turn);
  emit("path", turn.id);
  return turn;
}

/** Keeps a turn that was just placed, and with it its conversation. @param {Turn} turn */
export async function keepTurn(turn) {
  const { current, isNew } = shown;
  if (!current.named && !current.title && turn.role === "user") current.title = titleOf(turn);
  current.updated = Date.now();
  current.choices = shown.tree.keptChoices();
  shown.isNew = false;
  if (isNew) {
    shown.list.unshift(current);
    emit("kept");
  }
  try {
    await Promise.all([database.putAll("conversations", [current]), database.putAll("turns", [turn])]);
  } catch {
    emit("unsaved");
  }
  tell("conversation", { id: current.id });
  tell("turn", { conversation: turn.conversation, id: turn.id });
  await loadList();
}

/** The first words of a turn. @param {Turn} turn */
function titleOf(turn) {
  const text = turn.content.trim() || turn.attachments?.[0]?.name || "";
  const line = text.split("\n", 1)[0].trim();
  const short = [...line].slice(0, 60).join("");
  return short.length < line.length ? `${short}…` : short;
}

/** Shows another variant. @param {Turn} turn */
export async function choose(turn) {
  shown.tree.choose(turn);
  emit("path", turn.id);
  await change(shown.current.id, (kept) => ({ ...kept, choices: shown.tree.keptChoices() }));
}

/** Changes a conversation where it is kept. @param {string} id @param {(kept: Conversation) => Conversation} fn */
export async function change(id, fn) {
  if (shown.current.id === id) Object.assign(shown.current, fn(shown.current));
  await database.update("conversations", id, fn).catch(() => emit("unsaved"));
  tell("conversation", { id });
  await loadList();
}

/** @param {string} id @param {string} title */
export function rename(id, title) {
  return change(id, (kept) => ({ ...kept, title, named: true }));
}

/**
 * Changes what is sent along, now and for conversations to come.
 *
 * @param {Partial<import("./types.js").Settings>} changes
 */
export async function setSettings(changes) {
  const settings = { ...shown.current.settings, ...changes };
  shown.current.settings = settings;
  setPreferences({ settings: { ...settings, system: "" } });
  emit("settings");
  if (!shown.isNew) await change(shown.current.id, (kept) => ({ ...kept, settings }));
}

/** @param {string} model */
export async function setModel(model) {
  shown.current.model = model;
  setPreferences({ model });
  emit("settings");
  if (!shown.isNew) await change(shown.current.id, (kept) => ({ ...kept, model }));
}

/**
 * Takes a turn out with all that follows it.
 *
 * @param {Turn} turn
 * @returns {Promise<() => Promise<void>>} brings it back
 */
export async function removeTurn(turn) {
  const { id } = shown.current;
  const choices = [...shown.tree.choices];
  const taken = shown.tree.remove(turn);
  bury(taken);
  emit("path");
  await database.removeAll(
    "turns",
    taken.map((each) => [id, each.id]),
  );
  await change(id, (kept) => ({ ...kept, choices: shown.tree.keptChoices() }));
  tell("reload", { id });
  return async () => {
    for (const each of taken) gone.delete(each.id);
    await database.putAll("turns", taken);
    await change(id, (kept) => ({ ...kept, choices }));
    tell("reload", { id });
    if (shown.current.id === id) await open(id);
  };
}

/** @param {Turn[]} turns */
function bury(turns) {
  for (const each of turns) gone.add(each.id);
  emit("gone", turns);
}

/** Takes a conversation out. @param {string} id @returns {Promise<() => Promise<void>>} brings it back */
export async function removeConversation(id) {
  const [conversation, turns] = await Promise.all([database.get("conversations", id), database.getTurns(id)]);
  bury(turns);
  await database.removeConversation(id);
  tell("removed", { id });
  await loadList();
  if (shown.current.id === id) startNew();
  return async () => {
    for (const each of turns) gone.delete(each.id);
    await keepConversations([conversation], turns);
  };
}

/** Puts whole conversations in. @param {Conversation[]} conversations @param {Turn[]} turns of them all */
export async function keepConversations(conversations, turns) {
  await database.putAll("turns", turns);
  await database.putAll("conversations", conversations);
  tell("list");
  await loadList();
}

/** A new conversation that begins as this one up to a turn. @param {Turn} turn @param {string} title */
export async function fork(turn, title) {
  const now = Date.now();
  const { settings, model } = shown.current;
  const conversation = { id: newId(), title, named: true, created: now, updated: now, model, settings, choices: [] };
  const path = shown.tree.pathTo(turn.id).map((each) => ({ ...structuredClone(each), conversation: conversation.id }));
  await keepConversations([/** @type {Conversation} */ (conversation)], path);
  await open(conversation.id);
}

/** @param {{ conversation: string, id: string }} message */
async function turnChanged({ conversation, id }) {
  if (conversation !== shown.current.id || writing.has(id)) return;
  const turn = await database.get("turns", [conversation, id]);
  if (!turn || conversation !== shown.current.id) return;
  const isKnown = shown.tree.turns.has(id);
  shown.tree.add(turn);
  emit(isKnown ? "turn" : "path", id);
}

/** @param {{ id: string }} message */
async function conversationChanged({ id }) {
  await loadList();
  const kept = shown.list.find((each) => each.id === id);
  if (shown.current.id !== id || !kept) return;
  shown.current = kept;
  shown.tree.choices = new Map(kept.choices);
  shown.isNew = false;
  emit("path");
  emit("settings");
}

whenTold("list", loadList);
whenTold("turn", turnChanged);
whenTold("conversation", conversationChanged);
whenTold("reload", ({ id }) => shown.current.id === id && open(id));
whenTold("removed", async ({ id }) => {
  await loadList();
  if (shown.current.id === id) startNew();
});
whenTold("who-writes", ({ ids }) => {
  for (const id of ids) if (writing.has(id)) tell("writing", { id });
});
