/** Reads server-sent events from pieces that end anywhere. Knows nothing of what is inside the events. */

/** Takes text apart into the data of events. */
export class EventParser {
  constructor() {
    this.rest = "";
    /** @type {string[]} */
    this.lines = [];
    this.isFirst = true;
  }

  /**
   * @param {string} text the next piece
   * @param {boolean} [isLast] nothing comes after
   * @returns {string[]} data of the events that are complete
   */
  push(text, isLast = false) {
    if (this.isFirst && text) {
      text = text.replace(/^\uFEFF/, "");
      this.isFirst = false;
    }
    let buffer = this.rest + text;
    // A line end may be cut in two: keep the first half until the second is known.
    const held = !isLast && buffer.endsWith("\r") ? "\r" : "";
    if (held) buffer = buffer.slice(0, -1);
    const lines = buffer.split(/\r\n|\n|\r/);
    this.rest = (lines.pop() ?? "") + held;
    const events = [];
    for (const line of lines) {
      const event = this.#line(line);
      if (event !== null) events.push(event);
    }
    return events;
  }

  /** @param {string} line @returns {string | null} the data of the event that the line ends */
  #line(line) {
    if (line === "") {
      const data = this.lines.length ? this.lines.join("\n") : null;
      this.lines = [];
      return data;
    }
    if (line.startsWith("data:")) this.lines.push(line.slice(line[5] === " " ? 6 : 5));
    return null;
  }
}

/**
 * The data of the events of an answer, as they come.
 *
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(stream) {
  const parser = new EventParser();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
    yield* parser.push(decoder.decode(), true);
  } finally {
    drain(reader);
  }
}

/**
 * Lets the end of a stream come, so that the server need not take it for a client that left; ends one that goes on.
 *
 * @param {ReadableStreamDefaultReader<Uint8Array>} reader
 */
async function drain(reader) {
  const timer = setTimeout(() => reader.cancel().catch(() => {}), 500);
  try {
    while (!(await reader.read()).done);
  } catch {
    // It was ended already.
  }
  clearTimeout(timer);
}
