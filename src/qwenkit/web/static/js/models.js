/** The models and adapters that the server has, and which one a conversation asks. */

import { CallError, canChooseThinking, listModels } from "./api.js";
import { emit } from "./bus.js";
import { preferences } from "./preferences.js";

/**
 * @type {{ list: { id: string, parent: string | null, context: number | null }[], canThink: boolean, error: CallError | null }}
 */
export const models = { list: [], canThink: false, error: null };

/** Asks the server what there is. */
export async function loadModels() {
  try {
    models.list = await listModels();
    models.error = null;
    models.canThink = await canChooseThinking();
  } catch (error) {
    models.error = error instanceof CallError ? error : new CallError("server", String(error));
    if (models.error.kind === "key") emit("key", models.error);
  }
  emit("models");
}

/**
 * The model that answers: the one wanted where there is such, else the first.
 *
 * @param {string | null} wanted
 * @returns {string | null}
 */
export function modelFor(wanted) {
  const has = (id) => models.list.some((model) => model.id === id);
  if (wanted && (has(wanted) || !models.list.length)) return wanted;
  if (preferences.model && has(preferences.model)) return preferences.model;
  return models.list[0]?.id ?? null;
}

/** How many tokens a model can hold. @param {string | null} id */
export function contextOf(id) {
  return models.list.find((model) => model.id === id)?.context ?? null;
}
