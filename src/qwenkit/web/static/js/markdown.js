/**
 * Markdown of a model as safe elements: parsed, sanitised with a short list of what is allowed. Knows nothing of
 * turns.
 */

import DOMPurify from "../vendor/dompurify.js";
import MarkdownIt, { cjkFriendly } from "../vendor/markdown-it.js";
import { mathRule } from "./math.js";

const CLASSES = /^(language-[\w+#.-]{1,40}|math|math-inline|math-display|align-(left|center|right))$/;
const SAFE_LINK = /^(https?:|mailto:)/i;

const md = MarkdownIt({ html: false, linkify: true, breaks: true, maxNesting: 40 }).use(cjkFriendly).use(mathRule);
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.validateLink = (url) => SAFE_LINK.test(url.trim());

const { rules } = md.renderer;
for (const cell of ["th_open", "td_open"]) {
  rules[cell] = (tokens, n, options, _env, self) => {
    const align = /text-align:(\w+)/.exec(tokens[n].attrGet("style") ?? "")?.[1];
    tokens[n].attrs = align ? [["class", `align-${align}`]] : null;
    return self.renderToken(tokens, n, options);
  };
}
// A picture would tell its server who reads; it is a link instead.
rules.image = (tokens, n) => {
  const { escapeHtml } = md.utils;
  const source = tokens[n].attrGet("src") ?? "";
  const name = tokens[n].content || source;
  return SAFE_LINK.test(source) ? `<a href="${escapeHtml(source)}">${escapeHtml(name)}</a>` : escapeHtml(name);
};

/** Headings of an answer stand below those of the page. */
for (const part of ["heading_open", "heading_close"]) {
  rules[part] = (tokens, n, options, _env, self) => {
    const level = Math.min(6, Number(tokens[n].tag[1]) + 2);
    const token = Object.assign(Object.create(Object.getPrototypeOf(tokens[n])), tokens[n], { tag: `h${level}` });
    return self.renderToken([token], 0, options);
  };
}

const purify = DOMPurify(window);
const RULES = {
  ALLOWED_TAGS: [
    "p",
    "br",
    "hr",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "blockquote",
    "pre",
    "code",
    "strong",
    "em",
    "s",
    "a",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "span",
  ],
  ALLOWED_ATTR: ["href", "title", "class", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: SAFE_LINK,
  RETURN_DOM_FRAGMENT: true,
};

purify.addHook("uponSanitizeAttribute", (_node, data) => {
  if (data.attrName !== "class") return;
  data.attrValue = data.attrValue
    .split(/\s+/)
    .filter((name) => CLASSES.test(name))
    .join(" ");
  if (!data.attrValue) data.keepAttr = false;
});
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** @param {string} html @returns {DocumentFragment} */
function clean(html) {
  return /** @type {any} */ (purify.sanitize(html, RULES));
}

const HIGHLIGHT_RULES = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };
const plain = DOMPurify(window);

/** Coloured code as elements. @param {string} html of the highlighter @returns {DocumentFragment} */
export function cleanHighlight(html) {
  return /** @type {any} */ (plain.sanitize(html, HIGHLIGHT_RULES));
}

/**
 * @typedef {object} Block a piece of a text between which nothing is shared
 * @property {number} end where it ends in the text
 * @property {"fence" | "other"} kind
 * @property {string} content of a fence
 * @property {string} info of a fence: its language
 * @property {any[]} tokens
 */

/**
 * Takes a text apart.
 *
 * @param {string} text
 * @param {any} env what definitions were seen so far
 * @returns {Block[]}
 */
export function parseBlocks(text, env) {
  const tokens = md.parse(text, env);
  const ends = lineEnds(text);
  /** @type {Block[]} */
  const blocks = [];
  for (let first = 0; first < tokens.length;) {
    let last = first;
    for (let depth = tokens[first].nesting; depth > 0;) depth += tokens[++last].nesting;
    blocks.push(block(tokens.slice(first, last + 1), ends));
    first = last + 1;
  }
  return blocks;
}

/** @param {any[]} tokens @param {number[]} ends @returns {Block} */
function block(tokens, ends) {
  const [token] = tokens;
  const end = ends[Math.min(token.map?.[1] ?? ends.length, ends.length) - 1] ?? 0;
  const kind = token.type === "fence" ? "fence" : "other";
  return { end, kind, content: token.content, info: token.info.trim().split(/\s+/)[0] ?? "", tokens };
}

/**
 * The elements of blocks that are no fences, one for each; sanitising them together is much faster.
 *
 * @param {Block[]} blocks
 * @param {any} env
 * @returns {DocumentFragment[]}
 */
export function renderBlocks(blocks, env) {
  const all = clean(
    md.renderer.render(
      blocks.flatMap((each) => each.tokens),
      md.options,
      env,
    ),
  );
  if (all.childElementCount === blocks.length) return [...all.children].map(wrapped);
  return blocks.map((each) => clean(md.renderer.render(each.tokens, md.options, env)));
}

/** @param {Element} el */
function wrapped(el) {
  const fragment = document.createDocumentFragment();
  fragment.append(el);
  return fragment;
}

/** Where each line ends, its line end included. @param {string} text */
function lineEnds(text) {
  const ends = [];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) ends.push(at + 1);
  ends.push(text.length);
  return ends;
}
