/** What a person can do with a turn. Knows nothing of how turns look. */

import { announce, note } from "./announce.js";
import { fork, keepTurn, placeTurn, removeTurn, shown } from "./conversations.js";
import { answer, continueAnswer, isBusy } from "./generation.js";
import { t } from "./language.js";

/** @typedef {import("./types.js").Turn} Turn */

/** Runs an answer and tells when it is there. @param {() => Promise<unknown>} run */
async function withNews(run) {
  announce("live.started");
  await run();
}

/**
 * Says something and asks for an answer.
 *
 * @param {string} content
 * @param {import("./types.js").Attachment[]} attachments
 */
export async function send(content, attachments) {
  if (isBusy()) return;
  const path = shown.tree.path();
  const parent = path.length ? path[path.length - 1].id : null;
  const turn = placeTurn({ role: "user", parent, content, ...(attachments.length && { attachments }) });
  keepTurn(turn);
  await withNews(() => answer(turn.id));
}

/** Answers once more. @param {Turn} turn an answer */
export async function regenerate(turn) {
  if (isBusy() || !turn.parent) return;
  await withNews(() => answer(/** @type {string} */ (turn.parent)));
}

/** Goes on with a cut answer. @param {Turn} turn */
export async function goOn(turn) {
  if (isBusy()) return;
  await withNews(() => continueAnswer(turn));
}

/** Whether an answer can be gone on with. @param {Turn} turn @param {boolean} isLast nothing follows it */
export function canGoOn(turn, isLast) {
  const isCut = turn.state !== undefined && ["stopped", "length", "interrupted"].includes(turn.state);
  return (
    isLast &&
    (isCut || (turn.state === "failed" && turn.error?.kind === "network") || Boolean(turn.edited)) &&
    Boolean(turn.content.trim()) &&
    !turn.calls?.length
  );
}

/**
 * Puts another text beside a turn.
 *
 * @param {Turn} old
 * @param {string} content
 * @param {import("./types.js").Attachment[]} attachments
 * @param {boolean} isSent whether an answer is wanted
 */
export async function editTurn(old, content, attachments, isSent) {
  if (isBusy()) return;
  const { role, parent, reasoning, model } = old;
  const isAnswer = role === "assistant";
  const extra = isAnswer ? { reasoning, model, state: /** @type {const} */ ("done"), edited: true } : {};
  const turn = placeTurn({ role, parent, content, ...extra, ...(attachments.length && { attachments }) });
  keepTurn(turn);
  if (isSent && !isAnswer) await withNews(() => answer(turn.id));
}

/** Answers a person's turn that has no answer. @param {Turn} turn */
export async function answerTurn(turn) {
  if (!isBusy()) await withNews(() => answer(turn.id));
}

/** Takes a turn out, which can be undone for a while. @param {Turn} turn */
export async function deleteTurn(turn) {
  const undo = await removeTurn(turn);
  note("note.turnDeleted", { action: "note.undo", run: undo });
}

/** Goes on elsewhere from here. @param {Turn} turn */
export async function forkFrom(turn) {
  const title = t("fork.title", { title: shown.current.title || t("sidebar.untitled") });
  await fork(turn, title);
  note("note.forked");
}

/**
 * Gives the results of the calls of an answer, and asks what the model makes of them.
 *
 * @param {Turn} turn
 * @param {string[]} results one for each call
 */
export async function giveResults(turn, results) {
  if (isBusy()) return;
  let parent = turn.id;
  for (const [n, call] of (turn.calls ?? []).entries()) {
    const result = placeTurn({ role: "tool", parent, content: results[n], callId: call.id, name: call.name });
    keepTurn(result);
    parent = result.id;
  }
  await withNews(() => answer(parent));
}
