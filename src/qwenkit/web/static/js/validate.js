/**
 * Checks what a file holds before it becomes conversations. Builds everything anew; nothing of the file is used as it
 * is.
 */

/**
 * @typedef {import("./types.js").Turn} Turn
 * @typedef {import("./types.js").Conversation} Conversation
 * @typedef {import("./types.js").Tool} Tool
 */

export const FORMAT = "qwenkit-conversations";
export const MAX_IMPORT = 20 * 1024 * 1024;
const MAX_CONVERSATIONS = 5000;
const MAX_TURNS = 20_000;
const MAX_TEXT = 4 * 1024 * 1024;
const ID = /^[\w-]{1,64}$/;
const STATES = new Set(["done", "stopped", "length", "failed", "interrupted"]);
const KINDS = new Set(["network", "server", "key", "context", "busy"]);
const RANGES = {
  temperature: [0, 10],
  top_p: [0, 1],
  top_k: [-1, 1e6],
  repetition_penalty: [0, 10],
  max_tokens: [1, 1e7],
  seed: [-(2 ** 53), 2 ** 53],
};
const COUNTS = ["prompt", "cached", "completion", "reasoning", "first", "writing"];

/** Why a file was refused: a key of a text, with values. */
export class ImportError extends Error {
  /** @param {string} key @param {Record<string, any>} [values] */
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

/** @param {string} where @returns {never} */
function refuse(where) {
  throw new ImportError("import.field", { where });
}

/** @param {any} value @param {string} where @returns {Record<string, any>} */
function object(value, where) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) refuse(where);
  // Only what is its own counts, never what it inherits.
  return Object.assign(Object.create(null), value);
}

/** @param {any} value @param {string} where @param {number} max @returns {any[]} */
function list(value, where, max) {
  if (!Array.isArray(value) || value.length > max) refuse(where);
  return value;
}

/** @param {any} value @param {string} where @param {number} [max] @returns {string} */
function text(value, where, max = MAX_TEXT) {
  if (typeof value !== "string" || value.length > max) refuse(where);
  return value;
}

/** @param {any} value @param {string} where @returns {string} */
function id(value, where) {
  if (typeof value !== "string" || !ID.test(value)) refuse(where);
  return value;
}

/** @param {any} value @param {string} where @param {number} [low] @param {number} [high] @returns {number} */
function number(value, where, low = 0, high = 1e15) {
  if (typeof value !== "number" || !(value >= low && value <= high)) refuse(where);
  return value;
}

/** @param {any} value */
const has = (value) => value !== undefined && value !== null;

/**
 * Reads the text of a file.
 *
 * @param {string} json
 * @returns {{ conversations: { conversation: Conversation, turns: Turn[] }[], tools: Tool[] }}
 */
export function readImport(json) {
  let value;
  try {
    value = JSON.parse(json);
  } catch {
    throw new ImportError("import.notJson");
  }
  if (value?.format !== FORMAT) throw new ImportError("import.otherFormat");
  if (value.version !== 1)
    throw new ImportError("import.otherVersion", { version: String(value.version).slice(0, 20) });
  const file = object(value, "file");
  return {
    conversations: list(file.conversations, "conversations", MAX_CONVERSATIONS).map((each, n) =>
      conversationOf(each, `conversations[${n}]`),
    ),
    tools: list(file.tools ?? [], "tools", 1000).map((each, n) => toolOf(each, `tools[${n}]`)),
  };
}

/** @param {any} value @param {string} at */
function conversationOf(value, at) {
  const given = object(value, at);
  /** @type {Conversation} */
  const conversation = {
    id: id(given.id, `${at}.id`),
    title: text(given.title, `${at}.title`, 1000),
    named: given.named === true,
    created: number(given.created, `${at}.created`),
    updated: number(given.updated, `${at}.updated`),
    model: has(given.model) ? text(given.model, `${at}.model`, 500) : null,
    settings: settingsOf(given.settings ?? {}, `${at}.settings`),
    choices: [],
  };
  const turns = list(given.turns, `${at}.turns`, MAX_TURNS).map((each, n) =>
    turnOf(each, conversation.id, `${at}.turns[${n}]`),
  );
  checkTree(turns, at);
  conversation.choices = choicesOf(given.choices ?? [], turns, `${at}.choices`);
  return { conversation, turns };
}

/** @param {any} value @param {string} at @returns {import("./types.js").Settings} */
function settingsOf(value, at) {
  const given = object(value, at);
  /** @type {any} */
  const settings = { system: text(given.system ?? "", `${at}.system`) };
  for (const [name, [low, high]] of Object.entries(RANGES)) {
    settings[name] = has(given[name]) ? number(given[name], `${at}.${name}`, low, high) : null;
  }
  settings.thinking = typeof given.thinking === "boolean" ? given.thinking : null;
  settings.tools = list(given.tools ?? [], `${at}.tools`, 200).map((each) => id(each, `${at}.tools`));
  return settings;
}

/** @param {any} value @param {string} conversation @param {string} at @returns {Turn} */
function turnOf(value, conversation, at) {
  const given = object(value, at);
  if (!["user", "assistant", "tool"].includes(given.role)) refuse(`${at}.role`);
  /** @type {Turn} */
  const turn = {
    id: id(given.id, `${at}.id`),
    conversation,
    parent: has(given.parent) ? id(given.parent, `${at}.parent`) : null,
    role: given.role,
    content: text(given.content, `${at}.content`),
    created: number(given.created, `${at}.created`),
  };
  if (has(given.attachments))
    turn.attachments = list(given.attachments, `${at}.attachments`, 50).map((each) =>
      fileOf(each, `${at}.attachments`),
    );
  if (has(given.reasoning)) turn.reasoning = text(given.reasoning, `${at}.reasoning`);
  if (has(given.calls)) turn.calls = list(given.calls, `${at}.calls`, 200).map((each) => callOf(each, `${at}.calls`));
  if (has(given.callId)) turn.callId = text(given.callId, `${at}.callId`, 200);
  if (has(given.name)) turn.name = text(given.name, `${at}.name`, 200);
  if (has(given.model)) turn.model = text(given.model, `${at}.model`, 500);
  if (has(given.state))
    turn.state = STATES.has(given.state)
      ? given.state
      : given.state === "streaming"
        ? "interrupted"
        : refuse(`${at}.state`);
  if (has(given.error)) turn.error = errorOf(given.error, `${at}.error`);
  if (has(given.stats)) turn.stats = statsOf(given.stats, `${at}.stats`);
  if (given.edited === true) turn.edited = true;
  return turn;
}

/** @param {any} value @param {string} at */
function fileOf(value, at) {
  const given = object(value, at);
  return {
    name: text(given.name, `${at}.name`, 500),
    size: number(given.size, `${at}.size`),
    text: text(given.text, `${at}.text`),
  };
}

/** @param {any} value @param {string} at */
function callOf(value, at) {
  const given = object(value, at);
  return {
    id: text(given.id, `${at}.id`, 200),
    name: text(given.name, `${at}.name`, 200),
    arguments: text(given.arguments, `${at}.arguments`),
  };
}

/** @param {any} value @param {string} at */
function errorOf(value, at) {
  const given = object(value, at);
  if (!KINDS.has(given.kind)) refuse(`${at}.kind`);
  const status = has(given.status) ? { status: number(given.status, `${at}.status`, 0, 999) } : {};
  return { kind: given.kind, message: text(given.message, `${at}.message`, 10_000), ...status };
}

/** @param {any} value @param {string} at @returns {import("./types.js").Stats} */
function statsOf(value, at) {
  const given = object(value, at);
  return Object.fromEntries(
    COUNTS.filter((name) => has(given[name])).map((name) => [name, number(given[name], `${at}.${name}`)]),
  );
}

/**
 * Every turn hangs on an earlier one or on the root, and no two have one name.
 *
 * @param {Turn[]} turns
 * @param {string} at
 */
function checkTree(turns, at) {
  const byId = new Map(turns.map((turn) => [turn.id, turn]));
  if (byId.size < turns.length) throw new ImportError("import.twice", { where: at });
  /** @type {Set<string>} */
  const safe = new Set();
  for (const turn of turns) {
    const path = new Set();
    for (let each = turn; !safe.has(each.id); each = /** @type {Turn} */ (byId.get(each.parent))) {
      if (path.has(each.id)) throw new ImportError("import.circle", { where: at });
      path.add(each.id);
      if (each.parent === null) break;
      if (!byId.has(each.parent)) throw new ImportError("import.orphan", { where: at });
    }
    for (const each of path) safe.add(each);
  }
  for (const { role, parent } of turns) {
    const above = byId.get(parent ?? "")?.role;
    if (role === "tool" && above !== "assistant" && above !== "tool")
      throw new ImportError("import.orphan", { where: at });
  }
}

/** @param {any} value @param {Turn[]} turns @param {string} at @returns {[string, string][]} */
function choicesOf(value, turns, at) {
  const parents = new Map(turns.map((turn) => [turn.id, turn.parent ?? ""]));
  /** @type {[string, string][]} */
  const choices = [];
  for (const pair of list(value, at, MAX_TURNS)) {
    const [parent, child] = list(pair, at, 2);
    if (parents.has(child) && parents.get(child) === parent) choices.push([parent, child]);
  }
  return choices;
}

/** @param {any} value @param {string} at @returns {Tool} */
function toolOf(value, at) {
  const given = object(value, at);
  const parameters = object(given.parameters, `${at}.parameters`);
  if (depthOf(parameters) > 40) refuse(`${at}.parameters`);
  return {
    id: id(given.id, `${at}.id`),
    name: text(given.name, `${at}.name`, 64),
    description: text(given.description, `${at}.description`, 100_000),
    parameters: JSON.parse(JSON.stringify(parameters)),
  };
}

/** How deep a value nests, as far as it matters. @param {any} value @param {number} [level] @returns {number} */
function depthOf(value, level = 0) {
  if (level > 60 || typeof value !== "object" || value === null) return level;
  return Math.max(
    level,
    ...Object.values(value)
      .slice(0, 10_000)
      .map((each) => depthOf(each, level + 1)),
  );
}
