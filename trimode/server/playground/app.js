/** The page: settings, conversation, race, traces. */

import { close, newAnswer, take } from './answer.js';
import { asCurl, asPython, bodyOf, WITH_THRESHOLD } from './request.js';
import { chunksOf, readTrace } from './sse.js';
import { AnswerView, element } from './view.js';

const $ = (id) => document.getElementById(id);
const RACED = ['ar', 'linear', 'quadratic', 'diffusion', 'auto'];
const hello = $('hello');
const messages = [];
let running = null;
let modelName = '';

// ---- settings

const fields = { threshold: 'threshold', block: 'block', temperature: 'temperature', seed: 'seed', maxTokens: 'max-tokens', system: 'system' };

function settings() {
  const read = Object.fromEntries(Object.entries(fields).map(([name, id]) =>
    [name, name === 'system' ? $(id).value : Number($(id).value)]));
  return { ...read, model: modelName, mode: document.querySelector('[name=mode]:checked').value };
}

function setMode(mode) {
  const radio = document.querySelector(`[name=mode][value="${CSS.escape(mode)}"]`) ?? document.querySelector('[name=mode]');
  radio.checked = true;
}

function showValues() {
  $('threshold-value').value = Number($('threshold').value) ? $('threshold').value : 'default';
  $('block-value').value = $('block').value;
  $('threshold').disabled = !WITH_THRESHOLD.includes(settings().mode);
}

$('settings').addEventListener('input', showValues);
$('settings').addEventListener('submit', (event) => event.preventDefault());

function showSettings(shown) {
  $('settings').classList.toggle('shown', shown);
  $('settings-toggle').setAttribute('aria-expanded', shown);
}

$('settings-toggle').addEventListener('click', () => showSettings(!$('settings').classList.contains('shown')));
$('theme').addEventListener('click', () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === 'dark'
    || (!document.documentElement.dataset.theme && matchMedia('(prefers-color-scheme: dark)').matches);
  document.documentElement.dataset.theme = dark ? 'light' : 'dark';
});

// ---- talking to the server

const headers = () => ({ 'Content-Type': 'application/json', ...($('key').value && { Authorization: `Bearer ${$('key').value}` }) });

async function checked(response) {
  if (response.ok) return response;
  if (response.status === 401) {
    $('key-row').hidden = false;
    showSettings(true); // on a phone they are out of sight
  }
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `${response.status} ${response.statusText}`);
}

/** Stream one answer into a view. */
async function stream(body, view, signal) {
  const began = performance.now();
  try {
    const response = await checked(await fetch('v1/chat/completions', { method: 'POST', headers: headers(), body: JSON.stringify(body), signal }));
    for await (const chunk of chunksOf(response)) {
      if (take(view.answer, chunk, performance.now() - began)) view.refresh();
    }
  } finally {
    close(view.answer);
    view.refresh();
  }
  if (view.answer.error) throw new Error(view.answer.error);
}

function fail(error) {
  $('error').hidden = !error;
  $('error').textContent = error ? error.message : '';
}

/** Run one piece of work at a time; Stop and Esc end it. */
async function exclusively(work) {
  if (running) return;
  running = new AbortController();
  fail(null);
  $('send').hidden = $('race').disabled = true;
  $('stop').hidden = false;
  try {
    await work(running.signal);
  } catch (error) {
    if (error.name !== 'AbortError') fail(error);
  } finally {
    running = null;
    $('send').hidden = $('race').disabled = false;
    $('stop').hidden = true;
    $('prompt').focus();
  }
}

function add(node) {
  hello.remove();
  const chat = $('chat');
  chat.append(node);
  chat.scrollTop = chat.scrollHeight;
}

function follow(view) {
  const chat = $('chat');
  const refresh = view.refresh.bind(view);
  view.refresh = () => {
    const atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 80;
    refresh();
    if (atEnd) requestAnimationFrame(() => { chat.scrollTop = chat.scrollHeight; });
  };
}

function takePrompt() {
  const text = $('prompt').value.trim();
  if (text) {
    $('prompt').value = '';
    add(element('div', { class: 'turn' }, element('div', { class: 'user' }, text)));
  }
  return text;
}

function send() {
  if (running) return;
  const text = takePrompt();
  if (!text) return;
  const turn = { role: 'user', content: text };
  messages.push(turn);
  const view = new AnswerView(newAnswer(settings().mode));
  follow(view);
  add(element('div', { class: 'turn' }, view.root));
  exclusively(async (signal) => {
    try {
      await stream(bodyOf(settings(), messages), view, signal);
    } finally {
      const { text: content } = view.answer;
      const at = messages.indexOf(turn);
      if (at >= 0) messages.splice(at, 1, ...(content ? [turn, { role: 'assistant', content }] : [])); // else: cleared meanwhile
      $('spoken').textContent = content;
    }
  });
}

/** The same prompt and seed in every mode, one after the other: together they would share the machine. */
function race() {
  if (running) return;
  const text = takePrompt();
  if (!text) return;
  const asSet = settings(); // once: they may be changed while it runs
  const asked = [...messages, { role: 'user', content: text }];
  const lanes = RACED.map((mode) => {
    const view = new AnswerView(newAnswer(mode));
    const badge = element('span', {});
    const root = element('div', { class: 'lane', 'data-mode': mode }, element('h3', {}, mode, badge), view.root);
    return { mode, view, badge, root };
  });
  add(element('div', { class: 'turn race' }, ...lanes.map((lane) => lane.root)));
  exclusively(async (signal) => {
    const reference = lanes[0].view.answer;
    for (const lane of lanes) {
      lane.root.classList.add('running');
      try {
        await stream(bodyOf(asSet, asked, lane.mode), lane.view, signal);
      } finally {
        lane.root.classList.remove('running');
      }
      if (lane === lanes[0]) continue;
      const same = lane.view.answer.text === reference.text;
      lane.badge.className = `badge ${same ? 'same' : 'differs'}`;
      lane.badge.textContent = same ? '✓ identical to ar' : '≠ differs from ar';
    }
    $('spoken').textContent = lanes.slice(1).map((lane) => `${lane.mode}: ${lane.badge.textContent}`).join(', ');
  });
}

// ---- traces

function showTrace(text, name) {
  const answer = newAnswer();
  readTrace(text).forEach((chunk, i) => take(answer, chunk, chunk.trimode_ms ?? i));
  close(answer);
  if (!answer.steps.length) throw new Error('trace: it holds no answer');
  const view = new AnswerView(answer);
  add(element('div', { class: 'turn' }, element('div', { class: 'user' }, name), view.root));
  view.details.open = true;
  view.refresh();
}

$('open-trace').addEventListener('click', () => $('trace-file').click());
$('trace-file').addEventListener('change', async () => {
  const [file] = $('trace-file').files;
  if (!file) return;
  fail(null);
  try {
    showTrace(await file.text(), file.name);
  } catch (error) {
    fail(error);
  }
  $('trace-file').value = ''; // so that the same file can be opened again
});

// ---- keys, buttons, links

$('composer').addEventListener('submit', (event) => { event.preventDefault(); send(); });
$('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') running?.abort(); });
$('stop').addEventListener('click', () => running?.abort());
$('race').addEventListener('click', race);
$('clear').addEventListener('click', () => { running?.abort(); messages.length = 0; fail(null); $('chat').replaceChildren(hello); });

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'copied';
  } catch {
    add(element('pre', { class: 'turn' }, text));
  }
  setTimeout(() => { button.textContent = label; }, 1200);
}

const draft = () => bodyOf(settings(), [...messages, { role: 'user', content: $('prompt').value || 'Hello' }]);
const origin = () => location.origin;
$('copy-curl').addEventListener('click', (event) => copy(event.target, asCurl(origin(), draft(), $('key').value)));
$('copy-python').addEventListener('click', (event) => copy(event.target, asPython(origin(), draft(), $('key').value)));
$('copy-link').addEventListener('click', (event) => {
  const { model, ...kept } = settings();
  copy(event.target, `${origin()}${location.pathname}?${new URLSearchParams({ ...kept, prompt: $('prompt').value })}`);
});

async function start() {
  const asked = new URLSearchParams(location.search);
  try {
    const props = await (await checked(await fetch('props', { headers: headers() }))).json();
    modelName = props.model;
    $('model').textContent = `${props.model} · ${props.dtype ?? ''}`;
    $('block').max = Math.max(32, props.block_length);
    $('block').value = props.block_length;
    setMode(props.default_mode);
    fail(null);
  } catch (error) {
    fail(error);
  }
  for (const [name, id] of Object.entries(fields)) if (asked.has(name)) $(id).value = asked.get(name);
  if (asked.has('mode')) setMode(asked.get('mode'));
  if (asked.has('prompt')) $('prompt').value = asked.get('prompt');
  showValues();
  if (asked.has('trace')) {
    const url = new URL(asked.get('trace'), location.href);
    if (url.origin !== location.origin) throw new Error('trace: must be a file of this server');
    showTrace(await (await checked(await fetch(url))).text(), url.pathname.split('/').at(-1));
  }
}

$('key').addEventListener('change', () => start().catch(fail));
start().catch(fail);
