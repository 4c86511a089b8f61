/** The tools, and which of them this conversation offers. */

import { note } from "./announce.js";
import { setSettings, shown } from "./conversations.js";
import { h, icon, iconButton } from "./dom.js";
import { openToolDialog } from "./tool_dialog.js";
import { deleteTool, saveTool, tools } from "./tools.js";

/** @returns {{ el: HTMLElement, show: () => void }} */
export function toolsTab() {
  const list = h("ul", { class: "tool-list" });
  const none = h("p", { class: "hint nothing", t: "tools.none" });
  const add = h(
    "button",
    { type: "button", class: "button", testid: "tool-new", on: { click: () => openToolDialog(null) } },
    icon("plus"),
    h("span", { t: "tools.new" }),
  );
  const el = h(
    "div",
    { class: "stack" },
    h("p", { class: "hint", t: "tools.aboutAll" }),
    list,
    none,
    h("div", { class: "button-row" }, add),
  );
  return {
    el,
    show() {
      const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.closest("[data-testid=tool]")
        ? document.activeElement?.id
        : "";
      list.replaceChildren(...[...tools.values()].map(row));
      none.hidden = tools.size > 0;
      if (focused) document.getElementById(focused)?.focus();
    },
  };
}

/** @param {import("./types.js").Tool} tool */
function row(tool) {
  const { id, name, description } = tool;
  const used = shown.current.settings.tools;
  const box = h("input", { type: "checkbox", id: `use-${id}`, testid: "tool-use", checked: used.includes(id) });
  box.addEventListener("change", () =>
    setSettings({ tools: box.checked ? [...used, id] : used.filter((each) => each !== id) }),
  );
  return h(
    "li",
    { class: "tool-row", testid: "tool", "data-name": name },
    h(
      "label",
      { class: "check", for: `use-${id}` },
      box,
      h(
        "span",
        { class: "check-text" },
        h("code", { text: name }),
        h("span", { class: "hint", text: description, dir: "auto" }),
      ),
    ),
    iconButton("edit", ["tools.editOf", { name }], () => openToolDialog(tool), {
      testid: "tool-edit",
      id: `edit-${id}`,
    }),
    iconButton("trash", ["tools.deleteOf", { name }], () => remove(tool), {
      testid: "tool-delete",
      id: `delete-${id}`,
    }),
  );
}

/** @param {import("./types.js").Tool} tool */
async function remove(tool) {
  await deleteTool(tool.id);
  note(["tools.deleted", { name: tool.name }], { action: "note.undo", run: () => saveTool(tool) });
}
