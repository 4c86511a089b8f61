/** The dialog for files of conversations. */

import { openDialog } from "./dialog.js";
import { h, icon, say } from "./dom.js";
import { formatBytes } from "./language.js";
import { saveAll, takeFile } from "./transfer.js";
import { ImportError, MAX_IMPORT } from "./validate.js";

/** Opens it. */
export function openTransfer() {
  const result = h("p", { class: "result", testid: "import-result", role: "status" });
  const input = h("input", { type: "file", accept: ".json,application/json", class: "sr-only", id: "import-input", testid: "import-input" });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = "";
    if (file) await take(file, result);
  });
  const save = (t, form, testid) => h("button", { type: "button", class: "button", testid, on: { click: () => saveAll(form) } }, icon("down"), h("span", { t }));
  openDialog({
    title: "transfer.title",
    testid: "transfer-dialog",
    body: [
      h("section", { class: "block" }, h("h3", { class: "block-title", t: "transfer.export" }), h("p", { class: "hint", t: "transfer.exportAbout" }),
        h("div", { class: "button-row" }, save("transfer.json", "json", "export-all-json"), save("transfer.markdown", "markdown", "export-all-markdown"))),
      h("section", { class: "block" }, h("h3", { class: "block-title", t: "transfer.import" }),
        h("p", { class: "hint", t: ["transfer.importAbout", { size: formatBytes(MAX_IMPORT) }] }),
        h("div", { class: "button-row" }, input, h("label", { for: "import-input", class: "button" }, icon("up"), h("span", { t: "transfer.choose" }))), result),
    ],
  });
}

/** @param {File} file @param {HTMLElement} result */
async function take(file, result) {
  result.classList.remove("is-error");
  say(result, "text", "import.reading");
  try {
    const counts = await takeFile(file);
    say(result, "text", ["import.done", counts]);
  } catch (error) {
    result.classList.add("is-error");
    if (!(error instanceof ImportError)) say(result, "text", "import.failed");
    else if (error.key === "import.large") say(result, "text", ["import.large", { size: formatBytes(error.values.size), max: formatBytes(MAX_IMPORT) }]);
    else say(result, "text", [error.key, error.values]);
  }
}
