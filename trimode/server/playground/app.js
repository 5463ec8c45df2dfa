/** The page: settings, conversation, race, traces. */

import { close, newAnswer, PARTS, take } from './answer.js';
import { filesOf, Tray } from './pictures.js';
import { asCurl, asPython, bodyOf, contentOf, OPTIONS } from './request.js';
import { chunksOf, readTrace } from './sse.js';
import { AnswerView, element } from './view.js';

const $ = (id) => document.getElementById(id);
const hello = $('hello');
const messages = [];
let running = null;
let props = { model: '', modes: {} }; // what the server says of itself
const chosen = { threshold: null, block: null }; // null: the mode's default

// ---- settings

const fields = { threshold: 'threshold', block: 'block', temperature: 'temperature', seed: 'seed', maxTokens: 'max-tokens', system: 'system' };

function settings() {
  const read = Object.fromEntries(Object.entries(fields).map(([name, id]) =>
    [name, name === 'system' ? $(id).value : Number($(id).value)]));
  return { ...read, ...chosen, model: props.model, mode: document.querySelector('[name=mode]:checked')?.value ?? 'auto' };
}

const readsOf = (mode) => props.modes[mode]?.reads ?? [];

function listModes() {
  const labels = Object.entries(props.modes).map(([name, { unavailable }]) => element('label', { title: unavailable ?? says(name) },
    element('input', { type: 'radio', name: 'mode', value: name, disabled: Boolean(unavailable) }), element('span', {}, name)));
  $('modes').replaceChildren($('modes').firstElementChild, ...labels);
}

/** A mode in a sentence. */
function says(name) {
  const { summary, lossless } = props.modes[name];
  const text = name === 'ar' ? 'The reference.' : lossless ? 'The text is ar’s.' : 'The text is its own.';
  return `A pass: ${summary}. ${text}`;
}

function setMode(mode) {
  const usable = document.querySelectorAll('[name=mode]:enabled');
  ([...usable].find((radio) => radio.value === mode) ?? usable[0]).checked = true;
}

function showValues() {
  const { mode } = settings();
  const { defaults = {} } = props.modes[mode] ?? {};
  $('mode-note').textContent = props.modes[mode] ? says(mode) : '';
  for (const [name, option] of Object.entries(OPTIONS)) {
    const control = $(name);
    const own = defaults[option] ?? 0;
    const value = chosen[name] ?? own;
    control.disabled = !readsOf(mode).includes(option) || (name === 'threshold' && defaults.commit_rule === 'quota');
    control.max = Math.max(name === 'block' ? 32 : 1, value);
    control.value = value;
    $(`${name}-value`).value = control.disabled ? 'not used' : chosen[name] === null ? `${own} (default)` : value;
  }
}

$('settings').addEventListener('input', ({ target }) => {
  if (target.id in chosen) chosen[target.id] = Number(target.value);
  showValues();
});
$('defaults').addEventListener('click', () => {
  $('settings').reset();
  useDefaults();
});

function useDefaults() {
  chosen.threshold = chosen.block = null;
  $('temperature').value = props.temperature;
  setMode(props.default_mode);
  showValues();
}

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
    $('key-form').hidden = false;
    throw new Error($('key').value ? 'The server does not accept this API key.' : 'The server needs an API key.');
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
    $($('key-form').hidden ? 'prompt' : 'key').focus();
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

/** What is to be said, taken out of the composer; `content` is empty if that is nothing. */
function takePrompt() {
  const text = $('prompt').value.trim();
  const urls = text || tray.urls.length ? tray.take() : [];
  const content = contentOf(text, urls);
  const turn = element('div', { class: 'turn' }, element('div', { class: 'user' }, ...tray.shown(urls), text));
  if (content) {
    $('prompt').value = '';
    add(turn);
  }
  return { text, urls, content, turn };
}

/** Nothing came: the message goes back to where it was typed. */
function giveBack({ text, urls }, ...nodes) {
  if (!nodes.every((node) => node.isConnected)) return; // cleared meanwhile
  for (const node of nodes) node.remove();
  $('prompt').value ||= text;
  if (!tray.urls.length) tray.put(urls);
  if (!$('chat').children.length) $('chat').append(hello);
}

function send() {
  if (running) return;
  const said = takePrompt();
  if (!said.content) return;
  const turn = { role: 'user', content: said.content };
  messages.push(turn);
  const asSet = settings();
  const view = new AnswerView(newAnswer(asSet.mode));
  const card = element('div', { class: 'turn' }, view.root);
  follow(view);
  add(card);
  exclusively(async (signal) => {
    try {
      await stream(bodyOf(asSet, messages, readsOf(asSet.mode)), view, signal);
    } catch (error) {
      if (!view.answer.steps.length) giveBack(said, said.turn, card);
      throw error;
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
  const said = takePrompt();
  if (!said.content) return;
  const asSet = settings(); // once: they may be changed while it runs
  const asked = [...messages, { role: 'user', content: said.content }];
  const raced = Object.keys(props.modes).filter((mode) => !props.modes[mode].unavailable);
  const lanes = (raced.length ? raced : [asSet.mode]).map((mode) => {
    const view = new AnswerView(newAnswer(mode));
    const badge = element('span', {});
    const root = element('div', { class: 'lane', 'data-mode': mode }, element('h3', {}, mode, badge), view.root);
    return { mode, view, badge, root };
  });
  const before = messages.length ? ' after the conversation above, which goes on without it' : '';
  const heading = element('h2', {}, `Race${before}`);
  const race = element('div', { class: 'turn race' }, heading, ...lanes.map((lane) => lane.root));
  add(race);
  exclusively(async (signal) => {
    const reference = lanes[0].view.answer;
    for (const lane of lanes) {
      lane.root.classList.add('running');
      try {
        await stream(bodyOf(asSet, asked, readsOf(lane.mode), lane.mode), lane.view, signal);
      } catch (error) {
        const first = lane === lanes[0];
        if (first && !reference.steps.length) giveBack(said, said.turn, race);
        if (first || error.name === 'AbortError') throw error;
        lane.badge.className = 'badge differs';
        lane.badge.textContent = error.message;
        continue; // what one mode refuses, another may do
      } finally {
        lane.root.classList.remove('running');
      }
      if (lane === lanes[0]) continue;
      const same = PARTS.every((part) => lane.view.answer[part] === reference[part]);
      lane.badge.className = `badge ${same ? 'same' : 'differs'}`;
      lane.badge.textContent = `${same ? '✓ identical to' : '≠ differs from'} ${lanes[0].mode}`;
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

// ---- pictures

const tray = new Tray($('pictures'));
const sees = () => props.modalities?.vision ?? false;

async function show(files) {
  if (!files.length) return;
  fail(sees() ? null : new Error('This model reads no pictures.'));
  if (sees()) await tray.add(files).catch(fail);
}

$('pick').addEventListener('click', () => $('picture-file').click());
$('picture-file').addEventListener('change', async ({ target }) => {
  await show([...target.files]);
  target.value = ''; // so that the same file can be picked again
});
$('prompt').addEventListener('paste', (event) => {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  show(files);
});
for (const type of ['dragover', 'drop']) {
  document.addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault(); // else the browser leaves the page for the file
    if (type === 'drop') show(filesOf(event.dataTransfer));
  });
}

// ---- keys, buttons, links

$('composer').addEventListener('submit', (event) => { event.preventDefault(); send(); });
$('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') running?.abort(); });
$('stop').addEventListener('click', () => running?.abort());
$('race').addEventListener('click', race);
$('clear').addEventListener('click', () => { running?.abort(); messages.length = 0; tray.put([]); fail(null); $('chat').replaceChildren(hello); });

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

const draft = () => {
  const content = contentOf($('prompt').value || (tray.urls.length ? '' : 'Hello'), tray.urls);
  return bodyOf(settings(), [...messages, { role: 'user', content }], readsOf(settings().mode));
};
const origin = () => location.origin;
$('copy-curl').addEventListener('click', (event) => copy(event.target, asCurl(origin(), draft(), $('key').value, tray.names)));
$('copy-python').addEventListener('click', (event) => copy(event.target, asPython(origin(), draft(), $('key').value, tray.names)));
$('copy-link').addEventListener('click', (event) => {
  const { model, ...all } = settings();
  const kept = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== null));
  copy(event.target, `${origin()}${location.pathname}?${new URLSearchParams({ ...kept, prompt: $('prompt').value })}`);
});

async function start() {
  const asked = new URLSearchParams(location.search);
  try {
    props = await (await checked(await fetch('props', { headers: headers() }))).json();
    $('key-form').hidden = true;
    listModes();
    useDefaults();
    $('pick').hidden = !sees();
    $('model').textContent = `${props.model} · ${props.dtype ?? ''}`;
    $('settings').classList.remove('waits');
    fail(null);
  } catch (error) {
    fail(error);
    return;
  }
  for (const [name, id] of Object.entries(fields)) {
    if (asked.has(name)) $(id).value = asked.get(name);
    if (asked.has(name) && name in chosen) chosen[name] = Number(asked.get(name));
  }
  if (asked.has('mode')) setMode(asked.get('mode'));
  $('prompt').value ||= asked.get('prompt') ?? '';
  showValues();
  if (asked.has('trace')) {
    const url = new URL(asked.get('trace'), location.href);
    if (url.origin !== location.origin) throw new Error('trace: must be a file of this server');
    showTrace(await (await checked(await fetch(url))).text(), url.pathname.split('/').at(-1));
  }
}

$('key').addEventListener('change', () => start().catch(fail));
$('key-form').addEventListener('submit', (event) => { event.preventDefault(); start().catch(fail); });
hello.addEventListener('click', ({ target }) => {
  const { prompt } = target.closest('[data-prompt]')?.dataset ?? {};
  if (!prompt) return;
  $('prompt').value = prompt;
  $('prompt').focus();
});
start().catch(fail);
