/** Asks for the API key where the server wants one. */

import { on } from "./bus.js";
import { labelled, openDialog } from "./dialog.js";
import { h, textButton } from "./dom.js";
import { loadModels } from "./models.js";
import { note } from "./announce.js";
import { apiKey, isKeyKept, setApiKey } from "./preferences.js";

/** Opens the dialog whenever a key is needed. */
export function mountKeyDialog() {
  on("key", (error) => openKeyDialog(Boolean(error)));
}

/** @param {boolean} isWrong the server refused */
export function openKeyDialog(isWrong) {
  if (document.querySelector("dialog[data-testid=key-dialog]")) return;
  const props = { type: "password", class: "field mono", autocomplete: "off", spellcheck: "false", autofocus: true };
  const field = h("input", { ...props, testid: "key-field", value: apiKey() });
  const keep = h("input", { type: "checkbox", testid: "key-keep", checked: isKeyKept() });
  const save = async () => {
    setApiKey(field.value.trim(), keep.checked);
    dialog.close();
    await loadModels();
  };
  const form = h(
    "form",
    { method: "dialog" },
    h("p", { class: "lead", t: isWrong ? (apiKey() ? "key.wrong" : "key.needed") : "key.about" }),
    labelled("key.label", field, "key.hint"),
    h("label", { class: "check" }, keep, h("span", { t: "key.keep" })),
    h("button", { type: "submit", class: "sr-only", tabindex: "-1", t: "key.save" }),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  const forget = () => {
    setApiKey("", false);
    dialog.close();
    note("key.forgotten");
  };
  const buttons = [
    textButton("key.forget", "key-forget", forget),
    textButton("key.save", "key-save", save, { look: "button primary" }),
  ];
  const dialog = openDialog({ title: "key.title", testid: "key-dialog", body: [form], buttons });
}
