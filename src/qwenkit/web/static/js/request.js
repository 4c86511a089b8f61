/** What is sent to the server for a place in a conversation. Pure; knows neither page nor storage. */

/** @typedef {import("./types.js").Turn} Turn */

const SAMPLING = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
const LANGUAGES = {
  py: "python",
  js: "javascript",
  mjs: "javascript",
  ts: "typescript",
  tsx: "tsx",
  jsx: "jsx",
  sh: "bash",
  bash: "bash",
  c: "c",
  h: "c",
  cc: "cpp",
  cpp: "cpp",
  hpp: "cpp",
  cu: "cpp",
  rs: "rust",
  go: "go",
  java: "java",
  kt: "kotlin",
  rb: "ruby",
  php: "php",
  cs: "csharp",
  swift: "swift",
  sql: "sql",
  html: "html",
  css: "css",
  json: "json",
  yaml: "yaml",
  yml: "yaml",
  toml: "toml",
  xml: "xml",
  md: "markdown",
  r: "r",
  lua: "lua",
  diff: "diff",
  patch: "diff",
};

/**
 * A file as the model reads it: named, and in a fence that nothing inside can close.
 *
 * @param {import("./types.js").Attachment} file
 */
export function fileText(file) {
  const runs = file.text.match(/`+/g) ?? [];
  const fence = "`".repeat(Math.max(3, ...runs.map((run) => run.length + 1)));
  const ending = /\.(\w+)$/.exec(file.name)?.[1].toLowerCase() ?? "";
  const language = Object.hasOwn(LANGUAGES, ending) ? LANGUAGES[ending] : "";
  return `${file.name}\n${fence}${language}\n${file.text.replace(/\n$/, "")}\n${fence}`;
}

/** What a person said, with the files. @param {Turn} turn */
export function userText(turn) {
  return [...(turn.attachments ?? []).map(fileText), turn.content].filter(Boolean).join("\n\n");
}

/**
 * The messages that lead to an answer.
 *
 * @param {Turn[]} path
 * @param {string} system
 */
export function messagesOf(path, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  const lastUser = path.findLastIndex((turn) => turn.role === "user");
  path.forEach((turn, n) => {
    if (turn.role === "user") messages.push({ role: "user", content: userText(turn) });
    else if (turn.role === "tool") messages.push(toolMessage(turn));
    else if (turn.content || turn.calls?.length) messages.push(assistantMessage(turn, n > lastUser));
  });
  return messages;
}

/** @param {Turn} turn */
function toolMessage(turn) {
  return { role: "tool", tool_call_id: turn.callId, name: turn.name, content: turn.content };
}

/** Thoughts matter only since the last question. @param {Turn} turn @param {boolean} withThoughts */
function assistantMessage(turn, withThoughts) {
  /** @type {any} */
  const message = { role: "assistant", content: turn.content };
  if (withThoughts && turn.reasoning) message.reasoning_content = turn.reasoning;
  if (turn.calls?.length) {
    message.tool_calls = turn.calls.map((c) => ({
      id: c.id,
      type: "function",
      function: { name: c.name, arguments: c.arguments },
    }));
  }
  return message;
}

/**
 * The body of a request.
 *
 * @param {object} given
 * @param {Turn[]} given.path turns before the answer; to continue one, with it at the end
 * @param {import("./types.js").Settings} given.settings
 * @param {string | null} given.model
 * @param {import("./types.js").Tool[]} given.tools
 * @param {boolean} given.isContinued
 * @param {boolean} given.canThink
 */
export function bodyOf({ path, settings, model, tools, isContinued, canThink }) {
  /** @type {any} */
  const body = { messages: messagesOf(path, settings.system) };
  if (model) body.model = model;
  for (const name of SAMPLING) if (settings[name] !== null && settings[name] !== undefined) body[name] = settings[name];
  if (canThink && settings.thinking !== null) body.enable_thinking = settings.thinking;
  if (tools.length) body.tools = tools.map(toolBody);
  if (isContinued) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  return body;
}

/** @param {import("./types.js").Tool} tool */
function toolBody({ name, description, parameters }) {
  return { type: "function", function: { name, description, parameters } };
}
