/** The form in which a person changes a turn. */

import { h, icon, iconButton, textButton } from "./dom.js";
import { editTurn } from "./turn_actions.js";

/** @param {import("./types.js").Turn} turn @param {() => void} close @returns {HTMLElement} */
export function editForm(turn, close) {
  const isUser = turn.role === "user";
  const files = [...(turn.attachments ?? [])];
  const field = h("textarea", {
    class: "field edit-field",
    label: isUser ? "edit.user" : "edit.model",
    dir: "auto",
    rows: "1",
    testid: "edit-field",
    value: turn.content,
  });
  const save = (/** @type {boolean} */ isSent) => {
    const text = field.value;
    if (!text.trim() && !files.length) return;
    close();
    const isSame = text === turn.content && files.length === (turn.attachments ?? []).length;
    if (!isSame || isSent) editTurn(turn, text, files, isSent);
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      save(isUser);
    }
  });
  const chips = h("div", { class: "files" });
  for (const file of files) chips.append(chip(file, () => files.splice(files.indexOf(file), 1)));
  const main = { look: "button primary" };
  const row = h(
    "div",
    { class: "edit-actions" },
    h("span", { class: "hint", t: isUser ? "edit.hintUser" : "edit.hintModel" }),
    textButton("edit.cancel", "edit-cancel", close),
    textButton(isUser ? "edit.save" : "edit.saveModel", "edit-save", () => save(false), isUser ? {} : main),
    isUser && textButton("edit.send", "edit-send", () => save(true), main),
  );
  return h("div", { class: "edit" }, files.length ? chips : null, field, row);
}

/** @param {import("./types.js").Attachment} file @param {() => void} remove */
function chip(file, remove) {
  const el = h(
    "span",
    { class: "file-chip" },
    icon("file"),
    h("span", { class: "file-name", text: file.name, dir: "auto" }),
  );
  el.append(
    iconButton("close", ["file.remove", { name: file.name }], () => {
      remove();
      el.remove();
    }),
  );
  return el;
}
