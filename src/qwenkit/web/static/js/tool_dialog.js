/** The editor of a tool. */

import { setSettings, shown } from "./conversations.js";
import { labelled, openDialog } from "./dialog.js";
import { h, say, textButton } from "./dom.js";
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
  const fields = fieldsOf(tool);
  const { name, about, schema, error } = fields;
  const recheck = () => check(fields, tool, false);
  schema.addEventListener("input", recheck);
  name.addEventListener("input", recheck);
  const save = async () => {
    const parameters = check(fields, tool, true);
    if (!parameters) return;
    const kept = await saveTool({ id: tool?.id, name: name.value.trim(), description: about.value.trim(), parameters });
    dialog.close();
    const { tools: ids } = shown.current.settings;
    if (!tool && !ids.includes(kept.id)) await setSettings({ tools: [...ids, kept.id] });
  };
  const dialog = openDialog({
    title: tool ? "tools.editTitle" : "tools.newTitle",
    testid: "tool-dialog",
    size: "wide",
    body: [
      labelled("tools.name", name, "tools.nameHint"),
      labelled("tools.about", about, "tools.aboutHint"),
      labelled("tools.schema", schema, "tools.schemaHint"),
      schemaHelp(schema, recheck),
    ],
    buttons: [
      error,
      textButton("edit.cancel", "tool-cancel", () => dialog.close()),
      textButton("tools.save", "tool-save", save, { look: "button primary" }),
    ],
  });
}

/** @param {import("./types.js").Tool | null} tool */
function fieldsOf(tool) {
  const schema = JSON.stringify(tool?.parameters ?? { type: "object", properties: {}, required: [] }, null, 2);
  const plain = { autocomplete: "off", spellcheck: "false" };
  const name = { class: "field mono", testid: "tool-name", maxlength: "64", autofocus: true, value: tool?.name ?? "" };
  const about = { class: "field", testid: "tool-description", rows: "2", dir: "auto", value: tool?.description ?? "" };
  return {
    name: h("input", { ...name, ...plain }),
    about: h("textarea", about),
    schema: h("textarea", {
      class: "field mono code-field",
      testid: "tool-schema",
      rows: "10",
      dir: "ltr",
      value: schema,
      ...plain,
    }),
    error: h("p", { class: "result is-error", testid: "tool-error", role: "alert", hidden: true }),
  };
}

/** @param {any} schema the field @param {() => void} recheck */
function schemaHelp(schema, recheck) {
  const format = () => {
    const read = readSchema(schema.value);
    if ("schema" in read) schema.value = JSON.stringify(read.schema, null, 2);
    recheck();
  };
  const example = () => {
    schema.value = JSON.stringify(EXAMPLE, null, 2);
    recheck();
  };
  const look = "quiet-button";
  return h(
    "div",
    { class: "button-row tight" },
    textButton("tools.format", "tool-format", format, { look }),
    textButton("tools.example", "tool-example", example, { look }),
  );
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

/**
 * @param {string} name
 * @param {import("./types.js").Tool | null} tool
 * @param {boolean} isFinal
 * @returns {import("./schema.js").Fault | null}
 */
function nameFault(name, tool, isFinal) {
  if (!name && !isFinal) return null;
  if (!TOOL_NAME.test(name)) return { key: "tools.badName" };
  const isTaken = [...tools.values()].some((each) => each.name === name && each.id !== tool?.id);
  return isTaken ? { key: "tools.taken", values: { name } } : null;
}
