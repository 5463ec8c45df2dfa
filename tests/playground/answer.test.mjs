/** The page's pure parts, under `node --test`. */
import assert from 'node:assert/strict';
import test from 'node:test';

const at = (name) => import(new URL(`../../trimode/server/playground/${name}.js`, import.meta.url));
const { EventParser, readTrace } = await at('sse');
const { close, figures, historyOf, newAnswer, passesOf, stateAt, take } = await at('answer');
const { asCurl, asPython, bodyOf, contentOf } = await at('request');

const chunk = (content, frame, finish_reason = null) =>
  ({ choices: [{ index: 0, delta: content ? { content } : {}, finish_reason }], ...(frame && { trimode: frame }) });
const draft = (start, tokens, nfe = 1, mode = 'linear') => chunk('', { type: 'draft', start, tokens, nfe, mode });
const commit = (text, start, length, more = {}) => chunk(text, { type: 'commit', start, length, ...more });
const committed = (texts, start, more) => commit(texts.join(''), start, texts.length, { texts, ...more });
const answerOf = (...chunks) => {
  const answer = newAnswer();
  chunks.forEach((c, i) => take(answer, c, 100 * (i + 1)));
  return answer;
};
const texts = (tokens) => tokens.map(([text]) => text);
const states = (pieces) => pieces.map(([text, state]) => `${text}:${state}`);

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

test('a draft that is judged: accepted up to where it was wrong, the rest rejected', () => {
  const tokens = [['a', 1, 'kept'], ['b', 0.6, 'new'], ['c', 0.3, 'new'], ['', 0, 'mask']];
  const answer = answerOf(draft(5, tokens), committed(['a', 'x'], 5, { nfe: 2, drafted: 3, accepted: 1 }));
  assert.deepEqual(states(stateAt(answer).last), ['a:accepted', 'x:own']);
  assert.deepEqual(texts(stateAt(answer).rejected), ['b', 'c']);
  assert.equal(stateAt(answer).open, null);
  take(answer, draft(7, [['d', 0.5, 'new']], 2), 3);
  assert.deepEqual(texts(stateAt(answer).rejected), ['b', 'c'], 'the pass that judged drafted as well');
  take(answer, draft(7, [['d', 0.5, 'new']], 3), 4);
  assert.deepEqual(stateAt(answer).rejected, []);
  take(answer, chunk('', null, 'stop'), 5);
  assert.equal(stateAt(answer).open, null, 'a finished answer is its text');
});

test('of a tree another branch than the one shown may be right', () => {
  const answer = answerOf(draft(5, [['is', 0.3, 'new'], ['to', 0.1, 'new']]),
    committed(['the', 'sea'], 5, { nfe: 2, drafted: 15, accepted: 1 }));
  assert.deepEqual(states(stateAt(answer).last), ['the:accepted', 'sea:own']);
  assert.deepEqual(texts(stateAt(answer).rejected), ['is', 'to']);
});

test('what a commit leaves of a rolling block stays, unless it changed a filled token', () => {
  const tokens = [['a', 0.9, 'new'], ['b', 0.6, 'new'], ['c', 0.3, 'new'], ['', 0, 'mask']];
  const rolls = answerOf(draft(5, tokens, 1, 'diffusion'), committed(['a', 'b'], 5, { nfe: 2 }));
  assert.equal(stateAt(rolls).open.start, 7);
  assert.equal(stateAt(rolls).open.tokens.length, 2);
  assert.deepEqual(states(stateAt(rolls).last), ['a:own', 'b:own']);
  const revised = answerOf(draft(5, tokens, 1, 'diffusion'), committed(['a', 'x'], 5, { nfe: 2 }));
  assert.deepEqual(states(stateAt(revised).last), ['a:own', 'x:revised']);
  assert.deepEqual(texts(stateAt(revised).rejected), ['b', 'c']);
  assert.equal(stateAt(revised).open, null);
});

test('an entry a pass: what a pass sent together, and passes of which nothing was sent', () => {
  const answer = answerOf(commit('a', 5, 1, { nfe: 1 }), draft(6, [['b', 0.5, 'new']], 1), commit('b', 6, 1, { nfe: 4 }));
  assert.deepEqual(passesOf(answer), [
    { nfe: 1, start: 0, end: 2 }, { nfe: 2, start: 2, end: 2 }, { nfe: 3, start: 2, end: 2 }, { nfe: 4, start: 2, end: 3 },
  ]);
  assert.deepEqual(passesOf(answerOf(chunk('x'), chunk('y'))).map((pass) => pass.end), [1, 2], 'text without frames');
});

test('figures grow with the answer and end as the server counted', () => {
  const answer = answerOf(commit('a', 5, 1, { nfe: 1, plan: 'ar' }), draft(6, [['b', 0.5, 'new']], 2),
    committed(['b', 'c'], 6, { nfe: 3, drafted: 1, accepted: 1, cycle: 1, plan: 'linear' }));
  const { tpf, acceptance, nfe, rate, tokens, plans } = figures(answer);
  assert.deepEqual({ tpf, acceptance, nfe, rate, tokens, plans },
    { tpf: 1, acceptance: 2, nfe: 3, rate: 10, tokens: 3, plans: { ar: 1, linear: 1 } });
  take(answer, { choices: [], usage: { completion_tokens: 3 }, metrics: { decoding: { mode: 'auto', nfe: 4, tokens_per_forward: 0.75 } } }, 400);
  assert.equal(figures(answer).tpf, 0.75);
  assert.equal(figures(answer).ttft, 100);
});

test('history of a position, failures and answers broken off', () => {
  const answer = answerOf(draft(5, [['a', 0.4, 'new']], 2), draft(5, [['b', 0.9, 'revised']], 3), committed(['b'], 5, { nfe: 4 }));
  assert.deepEqual(historyOf(answer, 5).map((entry) => [entry.nfe, entry.text, entry.state]),
    [[2, 'a', 'new'], [3, 'b', 'revised'], [4, 'b', 'committed']]);
  const broken = answerOf(draft(5, [['a', 0.4, 'new']]));
  close(broken);
  assert.equal(stateAt(broken).open, null);
  take(answer, { error: { message: 'the model failed' } }, 500);
  assert.equal(answer.error, 'the model failed');
  assert.equal(answer.finish, 'stopped');
});

const delta = (delta, frame) => ({ choices: [{ index: 0, delta, finish_reason: null }], ...(frame && { trimode: frame }) });

test('thoughts and calls are parts of their own, and each replays', () => {
  const answer = answerOf(delta({ role: 'assistant', content: '' }),
    delta({ reasoning_content: 'hm', reasoning: 'hm' }, { type: 'commit', start: 5, length: 1, nfe: 1, texts: ['hm'] }),
    delta({ reasoning_content: '.' }, { type: 'commit', start: 6, length: 3, nfe: 2, texts: ['.', '</think>', 'So'] }),
    delta({ content: 'So' }),
    delta({ tool_calls: [{ index: 0, id: 'c', function: { name: 'f', arguments: '' } }] }, { type: 'commit', start: 9, length: 1, nfe: 3, texts: ['x'] }),
    delta({ tool_calls: [{ index: 0, function: { arguments: '{}' } }] }),
    delta({ tool_calls: [{ index: 1, id: 'd', function: { name: 'g', arguments: '{"a": 1}' } }] }));
  assert.deepEqual([answer.thought, answer.text, answer.calls], ['hm.', 'So', '→ f {}\n→ g {"a": 1}']);
  assert.equal(answer.steps.length, 3, 'what comes without a frame belongs to the commit before');
  const at = (n) => { const { thought, text, calls, part } = stateAt({ ...answer, finish: null }, n); return [thought, text, calls, part]; };
  assert.deepEqual(at(1), ['hm', '', '', 'thought']);
  assert.deepEqual(at(2), ['hm.', 'So', '', 'text']);
  assert.deepEqual(at(3), ['hm.', 'So', '→ f {}\n→ g {"a": 1}', 'calls']);
  assert.deepEqual(passesOf(answer).map((pass) => pass.nfe), [1, 2, 3]);
});

test('a trace names its bad line', () => {
  assert.equal(readTrace('{"choices": []}\n\n{"choices": []}\n').length, 2);
  for (const bad of ['{', '1', 'null', '{"a": 1}']) assert.throws(() => readTrace(`{"choices": []}\n${bad}`), /line 2/);
});

test('commands to copy ask for what the page asked for, without its drafts', () => {
  const settings = { mode: 'diffusion', model: 'm', threshold: 0.4, block: 8, temperature: 0, seed: 3, maxTokens: 9, system: 'Be brief.' };
  const body = bodyOf(settings, [{ role: 'user', content: "it's" }], ['block_length', 'threshold']);
  assert.deepEqual(body.decoding, { mode: 'diffusion', block_length: 8, show_drafts: true, threshold: 0.4 });
  assert.equal(body.messages[0].content, 'Be brief.');
  assert.deepEqual(bodyOf(settings, [], [], 'ar').decoding, { mode: 'ar', show_drafts: true });
  assert.equal(bodyOf({ ...settings, threshold: 0 }, [], ['threshold']).decoding.threshold, 0);
  const untouched = { ...settings, threshold: null, block: null };
  assert.deepEqual(bodyOf(untouched, [], ['block_length', 'threshold']).decoding, { mode: 'diffusion', show_drafts: true });
  const curl = asCurl('http://x', body, '');
  assert.ok(curl.includes("it'\\''s") && !curl.includes('show_drafts') && !curl.includes('stream'));
  assert.ok(asPython('http://x', body, 'k').includes('extra_body={"decoding": {"mode":"diffusion","block_length":8,"threshold":0.4}}'));
});

test('a picture stands before its text, and commands read it from its file', () => {
  const url = 'data:image/png;base64,AAAA';
  assert.equal(contentOf('Hi', []), 'Hi');
  assert.deepEqual(contentOf('', [url]), [{ type: 'image_url', image_url: { url } }]);
  const settings = { model: 'm', mode: 'ar', threshold: null, block: null, temperature: 0, seed: 0, maxTokens: 9, system: '' };
  const body = bodyOf(settings, [{ role: 'user', content: contentOf('$5 or `x`?', [url]) }], []);
  const names = new Map([[url, "it's.png"]]);
  const curl = asCurl('http://x', body, '', names);
  assert.ok(curl.includes("\"url\":\"data:image/png;base64,$(base64 < 'it'\\''s.png' | tr -d '\\n')\""), curl);
  assert.ok(curl.includes('\\$5 or \\`x\\`?') && curl.endsWith('\nEND\n') && !curl.includes('AAAA'));
  const python = asPython('http://x', body, 'k', names);
  assert.ok(python.startsWith('import base64\nimport os\n\nfrom openai'));
  assert.ok(python.includes('"url":"data:image/png;base64," + base64.b64encode(open("it\'s.png", "rb").read()).decode()'), python);
  assert.ok(asPython('http://x', bodyOf(settings, [], []), '', names).startsWith('from openai'));
});
