/**
 * Checks the schema of a tool's parameters: what JSON schema says, as far as models are told of it. Knows nothing of
 * the page.
 */

import { faultPlace } from "./json_place.js";

const TYPES = new Set(["object", "array", "string", "number", "integer", "boolean", "null"]);
const MAX_DEPTH = 12;
export const TOOL_NAME = /^[a-zA-Z0-9_-]{1,64}$/;

/** What is wrong: a key of a text, with values. @typedef {{ key: string, values?: Record<string, any> }} Fault */

/**
 * Reads the text of a schema.
 *
 * @param {string} text "" means: no parameters
 * @returns {{ schema: object } | { fault: Fault }}
 */
export function readSchema(text) {
  if (!text.trim()) return { schema: { type: "object", properties: {} } };
  let schema;
  try {
    schema = JSON.parse(text);
  } catch {
    return { fault: { key: "schema.notJson", values: faultPlace(text) } };
  }
  if (!isObject(schema) || schema.type !== "object") return { fault: { key: "schema.notObject" } };
  const fault = faultOf(schema, "", 0);
  return fault ? { fault } : { schema };
}

/** @param {any} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** @param {any} schema @param {string} at @param {number} depth @returns {Fault | null} */
function faultOf(schema, at, depth) {
  const where = at || "schema";
  if (depth > MAX_DEPTH) return { key: "schema.deep", values: { where } };
  if (typeof schema === "boolean") return null;
  if (!isObject(schema)) return { key: "schema.part", values: { where } };
  const types = Array.isArray(schema.type) ? schema.type : schema.type === undefined ? [] : [schema.type];
  const odd = types.find((type) => !TYPES.has(type));
  if (odd !== undefined) return { key: "schema.type", values: { where, type: JSON.stringify(odd) ?? "?" } };
  if (schema.enum !== undefined && (!Array.isArray(schema.enum) || !schema.enum.length))
    return { key: "schema.enum", values: { where } };
  return requiredFault(schema, where) ?? partsFault(schema, at, depth);
}

/** @param {any} schema @param {string} where @returns {Fault | null} */
function requiredFault(schema, where) {
  const { required, properties } = schema;
  if (required === undefined) return null;
  if (!Array.isArray(required) || required.some((name) => typeof name !== "string"))
    return { key: "schema.required", values: { where } };
  const unknown = required.find((name) => !Object.hasOwn(properties ?? {}, name));
  return unknown === undefined ? null : { key: "schema.unknown", values: { where, name: unknown } };
}

/** @param {any} schema @param {string} at @param {number} depth @returns {Fault | null} */
function partsFault(schema, at, depth) {
  if (schema.properties !== undefined && !isObject(schema.properties))
    return { key: "schema.properties", values: { where: at || "schema" } };
  /** @type {[string, any][]} */
  const parts = Object.entries(schema.properties ?? {}).map(([name, part]) => [at ? `${at}.${name}` : name, part]);
  if (schema.items !== undefined) parts.push([`${at}[]`, schema.items]);
  for (const name of ["anyOf", "oneOf", "allOf"]) {
    if (schema[name] === undefined) continue;
    if (!Array.isArray(schema[name])) return { key: "schema.part", values: { where: `${at}.${name}` } };
    schema[name].forEach((part, n) => parts.push([`${at}.${name}[${n}]`, part]));
  }
  for (const [place, part] of parts) {
    const fault = faultOf(part, place, depth + 1);
    if (fault) return fault;
  }
  return null;
}
