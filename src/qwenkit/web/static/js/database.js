/**
 * Conversations and their turns in IndexedDB; in memory where the browser allows none. Knows nothing of what they
 * mean.
 */

const NAME = "qwenkit";
const VERSION = 1;

/** @type {IDBDatabase | null} */
let db = null;
/** @type {Map<string, any>} */
const memory = new Map();
export let isKept = true;

/** Opens the database; falls back to memory, which `isKept` tells. */
export async function openDatabase() {
  try {
    const opened = await new Promise((resolve, reject) => {
      const request = indexedDB.open(NAME, VERSION);
      request.onupgradeneeded = () => upgrade(request.result);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error("blocked"));
    });
    // Another tab with a newer page must be able to change the form.
    opened.onversionchange = () => opened.close();
    db = opened;
  } catch {
    db = null;
    isKept = false;
  }
}

/** @param {IDBDatabase} base */
function upgrade(base) {
  base.createObjectStore("conversations", { keyPath: "id" });
  base.createObjectStore("turns", { keyPath: ["conversation", "id"] });
  base.createObjectStore("tools", { keyPath: "id" });
}

/** @param {IDBRequest} request @returns {Promise<any>} */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @param {IDBTransaction} transaction @returns {Promise<void>} */
function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error ?? new Error("aborted"));
  });
}

/** @param {string} store @param {any} key */
const place = (store, key) => `${store}\n${JSON.stringify(key)}`;

/** @param {string} store @param {any} value */
const keyOf = (store, value) => (store === "turns" ? [value.conversation, value.id] : value.id);

/** @param {string} store @param {any} key */
export async function get(store, key) {
  if (!db) return structuredClone(memory.get(place(store, key)));
  return result(db.transaction(store).objectStore(store).get(key));
}

/** All values of a store. @param {string} store @returns {Promise<any[]>} */
export async function getAll(store) {
  if (db) return result(db.transaction(store).objectStore(store).getAll());
  return [...memory].filter(([k]) => k.startsWith(`${store}\n`)).map(([, v]) => structuredClone(v));
}

/** All turns of a conversation. @param {string} conversation @returns {Promise<any[]>} */
export async function getTurns(conversation) {
  if (!db) return (await getAll("turns")).filter((turn) => turn.conversation === conversation);
  const range = IDBKeyRange.bound([conversation], [conversation, []]);
  return result(db.transaction("turns").objectStore("turns").getAll(range));
}

/** @param {string} store @param {any[]} values */
export async function putAll(store, values) {
  if (!db) {
    for (const value of values) memory.set(place(store, keyOf(store, value)), structuredClone(value));
    return;
  }
  const transaction = db.transaction(store, "readwrite");
  for (const value of values) transaction.objectStore(store).put(value);
  await finished(transaction);
}

/**
 * Changes a value where it is kept, so that changes of two tabs add up.
 *
 * @param {string} store
 * @param {any} key
 * @param {(value: any) => any} change
 */
export async function update(store, key, change) {
  if (!db) {
    const old = memory.get(place(store, key));
    if (old) memory.set(place(store, key), structuredClone(change(old)));
    return;
  }
  const transaction = db.transaction(store, "readwrite");
  const objects = transaction.objectStore(store);
  const request = objects.get(key);
  request.onsuccess = () => {
    if (request.result) objects.put(change(request.result));
  };
  await finished(transaction);
}

/** @param {string} store @param {any[]} keys */
export async function removeAll(store, keys) {
  if (!db) {
    for (const key of keys) memory.delete(place(store, key));
    return;
  }
  const transaction = db.transaction(store, "readwrite");
  for (const key of keys) transaction.objectStore(store).delete(key);
  await finished(transaction);
}

/** Removes a conversation with all of its turns. @param {string} id */
export async function removeConversation(id) {
  if (!db) {
    memory.delete(place("conversations", id));
    for (const turn of await getTurns(id)) memory.delete(place("turns", keyOf("turns", turn)));
    return;
  }
  const transaction = db.transaction(["conversations", "turns"], "readwrite");
  transaction.objectStore("conversations").delete(id);
  transaction.objectStore("turns").delete(IDBKeyRange.bound([id], [id, []]));
  await finished(transaction);
}

/**
 * Looks at every turn until `see` returns false.
 *
 * @param {(turn: any) => boolean} see
 */
export async function scanTurns(see) {
  if (!db) {
    for (const turn of await getAll("turns")) if (!see(turn)) return;
    return;
  }
  const request = db.transaction("turns").objectStore("turns").openCursor();
  await new Promise((resolve, reject) => {
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const cursor = request.result;
      if (cursor && see(cursor.value)) cursor.continue();
      else resolve(undefined);
    };
  });
}
