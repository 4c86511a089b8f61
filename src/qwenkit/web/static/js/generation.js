/** Asks the model for answers and writes down what comes. Knows nothing of how it is shown. */

import { CallError, countTokens, streamChat } from "./api.js";
import { emit, on } from "./bus.js";
import { keepTurn, placeTurn, saveTurn, shown, writing } from "./conversations.js";
import { loadModels, modelFor, models } from "./models.js";
import { bodyOf } from "./request.js";
import { toolsOf } from "./tools.js";

/** @typedef {import("./types.js").Turn} Turn */

const SAVE_EVERY = 1000;
const MAX_COUNTED = 200_000;

/** @type {Map<string, AbortController>} */
const controllers = new Map();

/** Whether this tab is writing an answer in the conversation that is shown. */
export function isBusy() {
  return [...writing.values()].some((turn) => turn.conversation === shown.current.id);
}

/** Ends the answer that is being written in the conversation that is shown. */
export function stop() {
  for (const turn of writing.values()) if (turn.conversation === shown.current.id) controllers.get(turn.id)?.abort();
}

on("gone", (/** @type {Turn[]} */ turns) => {
  for (const { id } of turns) controllers.get(id)?.abort();
});

/**
 * Answers a turn; a second answer is a variant.
 *
 * @param {string} parent
 * @returns {Promise<Turn>} the answer, at its end
 */
export async function answer(parent) {
  const model = modelFor(shown.current.model);
  const turn = placeTurn({ role: "assistant", parent, model: model ?? undefined, state: "streaming", stats: {} });
  keepTurn(turn);
  await write(turn, shown.tree.pathTo(parent), false);
  return turn;
}

/** Goes on with an answer that was cut. @param {Turn} old */
export async function continueAnswer(old) {
  const turn = { ...old, state: /** @type {const} */ ("streaming"), error: undefined };
  const path = [...shown.tree.pathTo(old.parent), turn];
  writing.set(turn.id, turn);
  saveTurn(turn);
  await write(turn, path, true);
}

/** @param {Turn} turn @param {Turn[]} path @param {boolean} isContinued */
async function write(turn, path, isContinued) {
  const { settings, model } = shown.current;
  const body = bodyOf({
    path,
    settings,
    model: modelFor(model),
    tools: toolsOf(settings.tools),
    isContinued,
    canThink: models.canThink,
  });
  const controller = new AbortController();
  controllers.set(turn.id, controller);
  emit("busy", turn);
  const clock = new Clock(turn, isContinued);
  try {
    for await (const chunk of streamChat(body, controller.signal)) take(turn, chunk, clock);
    if (turn.state === "streaming") turn.state = "done";
    if (models.error) loadModels();
  } catch (error) {
    end(turn, controller.signal.aborted ? null : error);
  } finally {
    clock.end();
    await clock.countSelf();
    controllers.delete(turn.id);
    writing.delete(turn.id);
    await saveTurn(turn);
    emit("busy", turn);
  }
}

/** @param {Turn} turn @param {unknown} error null where a person stopped it */
function end(turn, error) {
  if (error === null) {
    turn.state = "stopped";
    return;
  }
  const { kind, message, status } = error instanceof CallError ? error : new CallError("server", String(error));
  const hasText = Boolean(turn.content || turn.reasoning);
  turn.state = kind === "network" && hasText ? "interrupted" : "failed";
  turn.error = { kind, message, ...(status && { status }) };
  if (kind === "key") emit("key", error);
}

/** @param {Turn} turn @param {any} chunk @param {Clock} clock */
function take(turn, chunk, clock) {
  if (chunk.usage) clock.count(chunk.usage);
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { delta = {}, finish_reason: reason } = choice;
  const thought = text(delta.reasoning_content);
  const content = text(delta.content);
  if (thought) turn.reasoning = (turn.reasoning ?? "") + thought;
  turn.content += content;
  for (const call of Array.isArray(delta.tool_calls) ? delta.tool_calls : []) takeCall(turn, call);
  if (reason) turn.state = reason === "length" ? "length" : "done";
  if (thought || content || delta.tool_calls) {
    clock.tick();
    emit("delta", turn);
  }
}

/** @param {unknown} value */
const text = (value) => (typeof value === "string" ? value : "");

/** @param {Turn} turn @param {any} part */
function takeCall(turn, part) {
  turn.calls ??= [];
  const index = Number.isInteger(part?.index) ? Math.min(part.index, turn.calls.length) : turn.calls.length;
  turn.calls[index] ??= { id: "", name: "", arguments: "" };
  const call = turn.calls[index];
  call.id += text(part.id);
  call.name += text(part.function?.name);
  call.arguments += text(part.function?.arguments);
}

/** Times an answer and saves it now and then. */
class Clock {
  /** @param {Turn} turn @param {boolean} isContinued */
  constructor(turn, isContinued) {
    this.turn = turn;
    this.before = isContinued ? { ...turn.stats } : {};
    this.start = performance.now();
    this.first = 0;
    this.last = 0;
    this.saved = this.start;
    this.isCounted = false;
  }

  /** Something came. */
  tick() {
    this.last = performance.now();
    this.first ||= this.last;
    if (this.last - this.saved < SAVE_EVERY) return;
    this.saved = this.last;
    saveTurn(this.turn);
  }

  /** @param {any} usage */
  count(usage) {
    const stats = (this.turn.stats ??= {});
    this.isCounted = true;
    stats.prompt = Number(usage.prompt_tokens) || 0;
    stats.cached = Number(usage.prompt_tokens_details?.cached_tokens) || 0;
    stats.completion = (this.before.completion ?? 0) + (Number(usage.completion_tokens) || 0);
    stats.reasoning = (this.before.reasoning ?? 0) + (Number(usage.completion_tokens_details?.reasoning_tokens) || 0);
    if (this.before.completion) stats.prompt -= this.before.completion;
  }

  /** Where the server could not tell any more, the text is counted. */
  async countSelf() {
    const { turn } = this;
    const text = (turn.reasoning ?? "") + turn.content;
    if (this.isCounted || !text || text.length > MAX_COUNTED) return;
    const count = await countTokens(text, AbortSignal.timeout(2000)).catch(() => 0);
    if (count) turn.stats = { ...turn.stats, completion: count };
  }

  /** Writes down how long it took. */
  end() {
    if (!this.first) return;
    const stats = (this.turn.stats ??= {});
    stats.first = this.before.first ?? Math.round(this.first - this.start);
    stats.writing = (this.before.writing ?? 0) + Math.round(this.last - this.first);
  }
}
