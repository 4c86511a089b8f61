/** The editor of a tool. */

import { setSettings, shown } from "./conversations.js";
import { labelled, openDialog } from "./dialog.js";
import { h, say } from "./dom.js";
import { readSchema, TOOL_NAME } from "./schema.js";
import { saveTool, tools } from "./tools.js";

const EXAMPLE = {
  type: "object",
  properties: {
    city: { type: "string", description: "City, e.g. Paris" },
    unit: { type: "string", enum: ["celsius", "fahrenheit"] },
  },
  required: ["city"],
};

/** Opens the editor. @param {import("./types.js").Tool | null} tool null: a new one */
export function openToolDialog(tool) {
  const name = h("input", { class: "field mono", testid: "tool-name", maxlength: "64", autocomplete: "off", spellcheck: "false", autofocus: true, value: tool?.name ?? "" });
  const about = h("textarea", { class: "field", testid: "tool-description", rows: "2", dir: "auto", value: tool?.description ?? "" });
  const text = JSON.stringify(tool?.parameters ?? { type: "object", properties: {}, required: [] }, null, 2);
  const schema = h("textarea", { class: "field mono code-field", testid: "tool-schema", rows: "10", spellcheck: "false", dir: "ltr", value: text });
  const error = h("p", { class: "result is-error", testid: "tool-error", role: "alert", id: "tool-error", hidden: true });
  const fields = { name, about, schema, error };
  schema.addEventListener("input", () => check(fields, tool, false));
  name.addEventListener("input", () => check(fields, tool, false));
  const small = (t, testid, run) => h("button", { type: "button", class: "quiet-button", t, testid, on: { click: run } });
  const help = h("div", { class: "button-row tight" },
    small("tools.format", "tool-format", () => {
      const read = readSchema(schema.value);
      if ("schema" in read) schema.value = JSON.stringify(read.schema, null, 2);
      check(fields, tool, false);
    }),
    small("tools.example", "tool-example", () => {
      schema.value = JSON.stringify(EXAMPLE, null, 2);
      check(fields, tool, false);
    }));
  const save = async () => {
    const parameters = check(fields, tool, true);
    if (!parameters) return;
    const kept = await saveTool({ id: tool?.id, name: name.value.trim(), description: about.value.trim(), parameters });
    dialog.close();
    const { tools: ids } = shown.current.settings;
    if (!tool && !ids.includes(kept.id)) await setSettings({ tools: [...ids, kept.id] });
  };
  const make = (t, className, testid, run) => h("button", { type: "button", class: `button ${className}`, t, testid, on: { click: run } });
  const dialog = openDialog({
    title: tool ? "tools.editTitle" : "tools.newTitle",
    testid: "tool-dialog",
    size: "wide",
    body: [labelled("tools.name", name, "tools.nameHint"), labelled("tools.about", about, "tools.aboutHint"),
      labelled("tools.schema", schema, "tools.schemaHint"), help],
    buttons: [error, make("edit.cancel", "", "tool-cancel", () => dialog.close()), make("tools.save", "primary", "tool-save", save)],
  });
}

/**
 * Tells what is wrong; returns the schema where nothing is.
 *
 * @param {{ name: any, schema: any, error: HTMLElement }} fields
 * @param {import("./types.js").Tool | null} tool
 * @param {boolean} isFinal also what is only missing so far
 * @returns {object | null}
 */
function check({ name, schema, error }, tool, isFinal) {
  const read = readSchema(schema.value);
  const fault = nameFault(name.value.trim(), tool, isFinal);
  const shownFault = fault ?? ("fault" in read ? read.fault : null);
  error.hidden = !shownFault;
  name.setAttribute("aria-invalid", String(Boolean(fault)));
  schema.setAttribute("aria-invalid", String("fault" in read));
  if (shownFault) say(error, "text", [shownFault.key, shownFault.values ?? {}]);
  if (fault && isFinal) name.focus();
  else if ("fault" in read && isFinal) schema.focus();
  return shownFault || !("schema" in read) ? null : read.schema;
}

/** @param {string} name @param {import("./types.js").Tool | null} tool @param {boolean} isFinal @returns {import("./schema.js").Fault | null} */
function nameFault(name, tool, isFinal) {
  if (!name && !isFinal) return null;
  if (!TOOL_NAME.test(name)) return { key: "tools.badName" };
  const isTaken = [...tools.values()].some((each) => each.name === name && each.id !== tool?.id);
  return isTaken ? { key: "tools.taken", values: { name } } : null;
}
