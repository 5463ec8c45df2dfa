/** Server-sent events of an OpenAI stream: text in, JSON objects out. */

/** Splits text that arrives in any pieces into the objects of its `data:` lines. */
export class EventParser {
  #rest = '';

  /** @param {string} text @returns {object[]} the chunks that are whole now; `[DONE]` is left out */
  push(text) {
    const events = (this.#rest + text).split(/\r?\n\r?\n/);
    this.#rest = events.pop();
    const found = [];
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith('data:'))
        .map((line) => line.slice(5).trimStart()).join('\n');
      if (data && data !== '[DONE]') found.push(JSON.parse(data));
    }
    return found;
  }
}

/** Chunks of a streaming response, as they come. */
export async function* chunksOf(response) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield* parser.push(decoder.decode(value, { stream: true }));
  }
}

/** A trace file: the same chunks, one a line. Throws with the line's number. */
export function readTrace(text) {
  return text.split('\n').flatMap((line, i) => {
    if (!line.trim()) return [];
    try {
      const chunk = JSON.parse(line);
      if (chunk.choices || chunk.error) return [chunk];
    } catch { /* said below */ }
    throw new Error(`trace: line ${i + 1} is not a chunk`);
  });
}
