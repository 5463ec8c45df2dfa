/** The page's pure parts, under `node --test`. */
import assert from 'node:assert/strict';
import test from 'node:test';

const at = (name) => import(new URL(`../../trimode/server/playground/${name}.js`, import.meta.url));
const { EventParser, readTrace } = await at('sse');
const { figures, historyOf, newAnswer, stateAt, take } = await at('answer');
const { asCurl, asPython, bodyOf } = await at('request');

const chunk = (content, frame, finish_reason = null) =>
  ({ choices: [{ index: 0, delta: content ? { content } : {}, finish_reason }], ...(frame && { trimode: frame }) });
const draft = (start, tokens, nfe = 1) => chunk('', { type: 'draft', start, tokens, nfe, mode: 'linear' });
const commit = (text, start, length, more = {}) => chunk(text, { type: 'commit', start, length, ...more });

/** A small random stream: same seed, same stream. */
function recorded(seed) {
  let state = seed + 1;
  const next = (n) => (state = (state * 48271) % 2147483647) % n;
  const chunks = [{ choices: [{ index: 0, delta: { role: 'assistant', content: '' } }] }];
  let position = 10;
  for (let i = 0; i < 12; i++) {
    if (next(3)) {
      chunks.push(draft(position, Array.from({ length: 1 + next(5) }, (_, j) => [`t${j} `, 0.5, next(2) ? 'new' : 'mask'])));
    }
    const length = 1 + next(4);
    chunks.push(next(4) ? commit('äöü🙂'.slice(0, length), position, length) : chunk('x'.repeat(length)));
    position += length;
  }
  chunks.push(chunk('', null, 'stop'), { choices: [], usage: { completion_tokens: position - 10 }, metrics: { decoding: { mode: 'ar', nfe: 9, tokens_per_forward: 1.5 } } });
  return chunks;
}

test('committed text is the sum of the deltas, for any stream and any split of its bytes', () => {
  for (let seed = 0; seed < 200; seed++) {
    const chunks = recorded(seed);
    const wire = `${chunks.map((c) => `data: ${JSON.stringify(c)}\n\n`).join('')}: ping\n\ndata: [DONE]\n\n`;
    const bytes = new TextEncoder().encode(wire);
    const parser = new EventParser();
    const decoder = new TextDecoder();
    const answer = newAnswer();
    const size = 1 + (seed % 37);
    for (let i = 0; i < bytes.length; i += size) {
      for (const c of parser.push(decoder.decode(bytes.slice(i, i + size), { stream: true }))) take(answer, c, i);
    }
    const sum = chunks.map((c) => c.choices?.[0]?.delta?.content ?? '').join('');
    assert.equal(answer.text, sum);
    assert.equal(stateAt(answer).text, sum);
    assert.equal(stateAt(answer).open, null);
    assert.equal(answer.finish, 'stop');
  }
});

test('replaying passes one by one only ever adds text', () => {
  const answer = newAnswer();
  recorded(5).forEach((c, i) => take(answer, c, i));
  for (let n = 1; n <= answer.steps.length; n++) {
    assert.ok(stateAt(answer, n).text.startsWith(stateAt(answer, n - 1).text));
  }
});

test('what a commit does not take of a judged draft is rejected; of a rolling block it stays', () => {
  const tokens = [['a', 1, 'kept'], ['b', 0.6, 'new'], ['c', 0.3, 'new'], ['', 0, 'mask']];
  const judged = newAnswer();
  [draft(5, tokens), commit('ab', 5, 2, { drafted: 3, accepted: 1 })].forEach((c, i) => take(judged, c, i));
  assert.deepEqual(stateAt(judged).rejected.map(([text]) => text), ['c']);
  assert.equal(stateAt(judged).open, null);
  take(judged, chunk('', null, 'stop'), 2);
  assert.deepEqual(stateAt(judged).rejected, [], 'a finished answer is its text');
  const rolling = newAnswer();
  [draft(5, tokens), commit('ab', 5, 2)].forEach((c, i) => take(rolling, c, i));
  assert.equal(stateAt(rolling).open.start, 7);
  assert.equal(stateAt(rolling).open.tokens.length, 2);
});

test('a draft does not show again what is committed', () => {
  const answer = newAnswer();
  [commit('the', 5, 1), draft(5, [['the', 1, 'kept'], [' sea', 0.5, 'new']])].forEach((c, i) => take(answer, c, i));
  assert.deepEqual(stateAt(answer).open.tokens.map(([text]) => text), [' sea']);
  assert.equal(stateAt(answer).open.start, 6);
});

test('history of a position, figures and errors', () => {
  const answer = newAnswer();
  const chunks = [draft(5, [['a', 0.4, 'new']], 2), draft(5, [['b', 0.9, 'revised']], 3), commit('b', 5, 1, { nfe: 4 })];
  chunks.forEach((c, i) => take(answer, c, 100 * (i + 1)));
  assert.deepEqual(historyOf(answer, 5).map((entry) => [entry.nfe, entry.state]), [[2, 'new'], [3, 'revised'], [4, 'committed']]);
  take(answer, { choices: [], usage: { completion_tokens: 1 }, metrics: { decoding: { mode: 'linear', nfe: 4, tokens_per_forward: 0.25 } } }, 400);
  assert.equal(figures(answer).tpf, 0.25);
  assert.equal(figures(answer).ttft, 300);
  take(answer, { error: { message: 'the model failed' } }, 500);
  assert.equal(answer.error, 'the model failed');
});

test('a trace names its bad line', () => {
  assert.equal(readTrace('{"a": 1}\n\n{"b": 2}\n').length, 2);
  assert.throws(() => readTrace('{"a": 1}\n{'), /line 2/);
});

test('commands to copy ask for what the page asked for, without its drafts', () => {
  const settings = { mode: 'diffusion', model: 'm', threshold: 0.4, block: 8, temperature: 0, seed: 3, maxTokens: 9, system: 'Be brief.' };
  const body = bodyOf(settings, [{ role: 'user', content: "it's" }]);
  assert.deepEqual(body.decoding, { mode: 'diffusion', block_length: 8, show_drafts: true, threshold: 0.4 });
  assert.equal(body.messages[0].content, 'Be brief.');
  assert.equal(bodyOf(settings, [], 'ar').decoding.threshold, undefined);
  const curl = asCurl('http://x', body, '');
  assert.ok(curl.includes("it'\\''s") && !curl.includes('show_drafts') && !curl.includes('stream'));
  assert.ok(asPython('http://x', body, 'k').includes('extra_body={"decoding": {"mode":"diffusion","block_length":8,"threshold":0.4}}'));
});
