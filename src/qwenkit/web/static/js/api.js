/** Calls of the server, relative to the page. Knows the protocol, nothing of conversations or the page. */

import { apiKey } from "./preferences.js";
import { readEvents } from "./sse.js";

/** What went wrong with a call. */
export class CallError extends Error {
  /**
   * @param {string} kind "network", "server", "key", "context" or "busy"
   * @param {string} message
   * @param {number} [status]
   */
  constructor(kind, message, status) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

/** @param {string} path @param {any} [body] @param {AbortSignal} [signal] */
async function call(path, body, signal) {
  const key = apiKey();
  const headers = {
    ...(body && { "Content-Type": "application/json" }),
    ...(key && { Authorization: `Bearer ${key}` }),
  };
  const method = body ? "POST" : "GET";
  let response;
  try {
    const url = new URL(path, document.baseURI);
    response = await fetch(url, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new CallError("network", String(/** @type {Error} */ (error).message ?? error));
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** @param {Response} response */
async function failure(response) {
  const text = (await response.text().catch(() => "")).slice(0, 4000);
  let error = null;
  try {
    error = JSON.parse(text).error;
  } catch {
    // A proxy may answer with a page of its own.
  }
  const message =
    typeof error?.message === "string" ? error.message : `${response.status} ${response.statusText}`.trim();
  return errorOf(response.status, message, error?.code);
}

/** @param {number | undefined} status @param {string} message @param {any} [code] */
function errorOf(status, message, code) {
  if (status === 401) return new CallError("key", message, status);
  if (code === "context_length_exceeded") return new CallError("context", message, status);
  if (status === 429 || status === 503) return new CallError("busy", message, status);
  return new CallError("server", message, status);
}

/** @param {string} path @param {any} [body] @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function callJson(path, body, signal) {
  return (await call(path, body, signal)).json();
}

/** Models and adapters. @returns {Promise<{id: string, parent: string | null, context: number | null}[]>} */
export async function listModels() {
  const { data } = await callJson("v1/models");
  return (Array.isArray(data) ? data : [])
    .filter((m) => typeof m?.id === "string")
    .map((m) => ({ id: m.id, parent: m.parent ?? null, context: Number(m.max_model_len) || null }));
}

/** Whether the model can be told to think or not. */
export async function canChooseThinking() {
  try {
    const { chat_template: template } = await callJson("tokenizer_info");
    return typeof template === "string" && template.includes("enable_thinking");
  } catch {
    return false;
  }
}

/** How many tokens a text has. @param {string} text @param {AbortSignal} signal @returns {Promise<number>} */
export async function countTokens(text, signal) {
  return (await callJson("tokenize", { prompt: text, add_special_tokens: false }, signal)).count;
}

/**
 * Streams an answer.
 *
 * @param {any} body of /v1/chat/completions
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>} chunks, the last of which was the server's last word
 */
export async function* streamChat(body, signal) {
  const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", wanted, signal);
  try {
    for await (const data of readEvents(/** @type {any} */ (response.body))) {
      if (data.trim() === "[DONE]") return;
      yield readChunk(data);
    }
  } catch (error) {
    if (signal.aborted || error instanceof CallError) throw error;
    throw new CallError("network", String(/** @type {Error} */ (error).message ?? error));
  }
  throw new CallError("network", "the stream ended early");
}

/** @param {string} data */
function readChunk(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new CallError("server", `not JSON: ${data.slice(0, 200)}`);
  }
  if (chunk?.error) throw errorOf(chunk.error.status, String(chunk.error.message ?? "error"), chunk.error.code);
  return chunk;
}
