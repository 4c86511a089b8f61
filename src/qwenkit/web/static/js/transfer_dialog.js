/** The dialog for files of conversations. */

import { openDialog } from "./dialog.js";
import { h, icon, say, textButton } from "./dom.js";
import { formatBytes } from "./language.js";
import { saveAll, takeFile } from "./transfer.js";
import { ImportError, MAX_IMPORT } from "./validate.js";

/** Opens it. */
export function openTransfer() {
  openDialog({ title: "transfer.title", testid: "transfer-dialog", body: [exportBlock(), importBlock()] });
}

/** @param {string} title @param {...Node} rest */
function block(title, ...rest) {
  return h("section", { class: "block" }, h("h3", { class: "block-title", t: title }), ...rest);
}

function exportBlock() {
  const json = textButton("transfer.json", "export-all-json", () => saveAll("json"), { icon: "down" });
  const markdown = textButton("transfer.markdown", "export-all-markdown", () => saveAll("markdown"), { icon: "down" });
  const about = h("p", { class: "hint", t: "transfer.exportAbout" });
  return block("transfer.export", about, h("div", { class: "button-row" }, json, markdown));
}

function importBlock() {
  const result = h("p", { class: "result", testid: "import-result", role: "status" });
  const props = { type: "file", accept: ".json,application/json", class: "sr-only" };
  const input = h("input", { ...props, id: "import-input", testid: "import-input" });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = "";
    if (file) await take(file, result);
  });
  const words = h("span", { t: "transfer.choose" });
  const label = h("label", { for: "import-input", class: "button" }, icon("up"), words);
  const about = h("p", { class: "hint", t: ["transfer.importAbout", { size: formatBytes(MAX_IMPORT) }] });
  return block("transfer.import", about, h("div", { class: "button-row" }, input, label), result);
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
    else if (error.key === "import.large")
      say(result, "text", ["import.large", { size: formatBytes(error.values.size), max: formatBytes(MAX_IMPORT) }]);
    else say(result, "text", [error.key, error.values]);
  }
}
