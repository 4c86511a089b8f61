/** The tools a person has defined. Kept in the database, shared by all conversations. */

import { emit } from "./bus.js";
import { newId } from "./dom.js";
import * as database from "./database.js";
import { tell, whenTold } from "./tabs.js";

/** @typedef {import("./types.js").Tool} Tool */

/** @type {Map<string, Tool>} */
export const tools = new Map();

/** Reads them anew. */
export async function loadTools() {
  const all = await database.getAll("tools");
  tools.clear();
  for (const tool of all.sort((a, b) => a.name.localeCompare(b.name))) tools.set(tool.id, tool);
  emit("tools");
}

/** @param {Omit<Tool, "id"> & { id?: string }} tool @returns {Promise<Tool>} */
export async function saveTool(tool) {
  const kept = { id: tool.id ?? newId(), name: tool.name, description: tool.description, parameters: tool.parameters };
  await database.putAll("tools", [kept]);
  tell("tools");
  await loadTools();
  return kept;
}

/** @param {string} id */
export async function deleteTool(id) {
  await database.removeAll("tools", [id]);
  tell("tools");
  await loadTools();
}

/** Those of these ids that there are. @param {string[]} ids @returns {Tool[]} */
export function toolsOf(ids) {
  return ids.map((id) => tools.get(id)).filter((tool) => tool !== undefined);
}

whenTold("tools", loadTools);
