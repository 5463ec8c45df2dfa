/** From answers to elements. One paint a frame, and nothing on the page moves up again. */

import { figures, historyOf, PARTS, passesOf, stateAt } from './answer.js';
import { TERMS } from './terms.js';

const still = matchMedia('(prefers-reduced-motion: reduce)');
const TICK = 120; // milliseconds a pass is shown for, at speed 1

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, '');
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const oneLine = (text) => text.replaceAll('\n', '⏎');

function tokenSpan([text, sure, state], more = {}) {
  const title = state === 'mask' ? 'undecided' : `${state}, confidence ${sure.toFixed(2)}`;
  const span = element('span', { class: `token ${state}`, title, ...more }, text || '·');  // a mask, or part of a character
  span.style.setProperty('--sure', sure);
  return span;
}

const pieceSpan = ([text, state, position]) => element('span',
  { class: `piece ${state}`, title: state === 'own' ? null : state, 'data-position': position }, text);

const rejectedSpan = ([text]) => element('span', { class: 'token rejected', title: 'rejected' }, oneLine(text));

const number = (value, digits) => (value === null ? '–' : value.toFixed(digits));

function paintFigures(target, answer) {
  const f = figures(answer);
  const rows = [
    ['mode', f.mode ?? '–'], ['tokens', f.tokens], ['tok/s', number(f.rate, 1)],
    ['TPF', number(f.tpf, 2)], ['NFE', f.nfe ?? '–'],
    ['TTFT', f.ttft === null ? '–' : `${Math.round(f.ttft)} ms`], ['acceptance', number(f.acceptance, 2)],
  ];
  if (f.mode === 'diffusion') rows.push(['revised', f.revisions ?? '–', 'more']);
  if (f.mode === 'auto') {
    const chosen = Object.entries(f.plans ?? {}).map(([k, n]) => `${k} ${n}`).join(', ');
    rows.push(['passes', chosen || '–', 'more']);
  }
  rows.forEach(([name, value, place = null], i) => { // in place: a figure can be tapped while it changes
    if (target.children[i]?.dataset.term !== name) {
      target.children[i]?.remove();
      const made = element('span', { title: TERMS[name], class: place, 'data-term': name }, `${name} `, element('b'));
      target.insertBefore(made, target.children[i] ?? null);
    }
    const shown = target.children[i].lastChild;
    if (shown.textContent !== `${value}`) shown.textContent = value;
  });
}

/** A row of the timeline. */
function passRow(answer, pass, onclick) {
  const steps = answer.steps.slice(pass.start, pass.end);
  const commit = steps.find((step) => step.kind === 'commit');
  const drafts = steps.some((step) => step.kind === 'draft');
  const state = stateAt({ ...answer, finish: null }, pass.end);
  let label = commit?.plan;
  label ??= commit?.drafted ? 'verify' : answer.mode === 'diffusion' ? 'denoise' : drafts || commit?.drafted === 0 ? 'draft' : 'decode';
  if (commit?.drafted) label += ` ${commit.accepted}/${commit.drafted}`;
  const parts = steps.length ? [] : ['nothing was sent of this pass'];
  if (commit) parts.push(...state.last.map(pieceSpan));
  parts.push(...state.rejected.map(rejectedSpan));
  if (drafts) parts.push(...state.open.tokens.map((token) => tokenSpan(token)));
  for (const part of parts) if (part.textContent) part.textContent = oneLine(part.textContent);
  // By keyboard the scrub bar does the same in one stop.
  return element('button', { type: 'button', class: 'pass', tabindex: -1, onclick },
    element('span', { class: 'quiet' }, `${pass.nfe ?? ''}`),
    element('span', { class: 'quiet' }, steps.length ? label : '–'),
    element('span', {}, ...parts));
}

/** One turn of the assistant: figures, text, and a timeline that can be replayed. */
export class AnswerView {
  #passes = [];
  #count = 0; // passes shown
  #follows = true; // whether the newest pass is the one to show
  #frame = 0;
  #timer = 0;
  #painted = ''; // which commit's pieces are on the page
  #width = 0;
  #height = 0;

  constructor(answer) {
    this.answer = answer;
    this.figures = element('div', { class: 'figures' });
    this.old = element('span');
    this.fresh = element('span', { class: 'fresh' });
    this.open = element('span', { class: 'open' });
    this.text = element('div', { class: 'text' });
    this.parts = { thought: element('div', { class: 'thought', hidden: true, tabindex: 0, role: 'group', 'aria-label': 'Thought' }),
      text: this.text, calls: element('div', { class: 'calls', hidden: true }) };
    this.body = element('div', { onclick: (event) => this.#tell(event.target), onkeydown: (event) => this.#walk(event) },
      ...PARTS.map((part) => this.parts[part]));
    this.scrub = element('input', { type: 'range', min: 0, max: 0, value: 0, 'aria-label': 'Pass',
      oninput: () => { this.#pause(); this.#goTo(Number(this.scrub.value)); } });
    this.place = element('output', {}, '');
    this.play = element('button', { type: 'button', onclick: () => this.#toggle() }, 'Play');
    this.speed = element('select', { 'aria-label': 'Speed' },
      ...[0.5, 1, 2].map((x) => element('option', { value: x, selected: x === 1 }, `${x}×`)));
    this.rows = element('div', { class: 'timeline' });
    this.history = element('div', { class: 'history', 'aria-live': 'polite' }, 'Choose a marked token for its history.');
    this.details = element('details', { ontoggle: () => this.#opened() },
      element('summary', {}, 'Timeline'),
      element('div', { class: 'player' }, this.play, this.speed, this.scrub, this.place),
      this.rows, this.history);
    this.root = element('div', { class: 'answer' }, this.figures, this.body, this.details);
    paintFigures(this.figures, answer);
    new ResizeObserver(() => this.#reserve()).observe(this.root);
  }

  /** Paint what is new, at most once a frame. */
  refresh() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      paintFigures(this.figures, this.answer);
      this.#measure();
      if (this.#follows) this.#show(this.#passes.length);
      else this.#showPlace();
    });
  }

  #measure() {
    const passes = passesOf(this.answer);
    if (this.details.open) {
      // The newest row may have been painted before its pass was whole.
      this.rows.children[this.#passes.length - 1]?.remove();
      for (let i = this.rows.children.length; i < passes.length; i++) {
        this.rows.append(passRow(this.answer, passes[i], () => { this.#pause(); this.#goTo(i + 1); }));
      }
    }
    this.#passes = passes;
  }

  #goTo(count) {
    this.#follows = count >= this.#passes.length;
    this.#show(count, { chosen: true });
  }

  /** The state after `count` passes. Who asked for less motion sees drafts where they choose to. */
  #show(count, { chosen = false } = {}) {
    this.#count = count;
    const steps = count ? this.#passes[count - 1].end : 0;
    const state = stateAt(this.answer, steps);
    const painted = `${state.commits} ${state.done} ${PARTS.map((part) => state[part].length)}`;
    if (this.#painted !== painted) {
      this.#painted = painted;
      for (const part of PARTS) {
        const box = this.parts[part];
        if (part !== state.part) box.replaceChildren(state[part]);
        else if (!box.contains(this.old)) box.replaceChildren(this.old, this.fresh, this.open);
        box.hidden = part !== 'text' && part !== state.part && !state[part];
      }
      const length = state.last.reduce((sum, [text]) => sum + text.length, 0);
      const whole = state[state.part];
      this.old.textContent = whole.slice(0, whole.length - length);
      this.fresh.replaceChildren(...state.last.map(pieceSpan));
    }
    const drafts = still.matches && !chosen ? [] : state.open?.tokens ?? [];
    const rejected = still.matches && !chosen ? [] : state.rejected;
    const spans = drafts.map((token, i) =>
      tokenSpan(token, { 'data-position': state.open.start + i, role: 'button', tabindex: i ? -1 : 0 }));
    this.open.replaceChildren(...rejected.map(rejectedSpan), ...spans);
    this.#reserve();
    this.#showPlace();
  }

  /** The text keeps the most room it ever took, so what is below it never jumps up. */
  #reserve() {
    if (this.text.offsetWidth !== this.#width) {
      this.#width = this.text.offsetWidth;
      this.#height = 0;
      this.text.style.minHeight = '';
    }
    this.#height = Math.max(this.#height, Math.ceil(this.text.getBoundingClientRect().height));
    this.text.style.minHeight = `${this.#height}px`;
  }

  #showPlace() {
    this.scrub.max = this.#passes.length;
    this.scrub.value = this.#count;
    this.place.value = `${this.#count} / ${this.#passes.length}`;
    if (!this.details.open) return;
    [...this.rows.children].forEach((row, i) => {
      row.setAttribute('aria-current', i === this.#count - 1);
      if (i === this.#count - 1) this.rows.scrollTop = row.offsetTop - this.rows.offsetTop - 60;
    });
  }

  #opened() {
    if (!this.details.open) return;
    this.rows.replaceChildren();
    this.#measure();
    this.#showPlace();
    this.details.scrollIntoView({ block: 'nearest' });
  }

  #toggle() {
    if (this.#timer) return this.#pause();
    if (this.#count >= this.#passes.length) this.#show(0);
    this.play.textContent = 'Pause';
    const tick = () => {
      this.#show(this.#count + 1);
      if (this.#count >= this.#passes.length) return this.#pause();
      this.#timer = setTimeout(tick, TICK / Number(this.speed.value));
    };
    this.#follows = false;
    this.#timer = setTimeout(tick, TICK / Number(this.speed.value));
  }

  #pause() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#follows = this.#count >= this.#passes.length;
    this.play.textContent = 'Play';
  }

  /** The open block by keyboard: arrows go from token to token, Enter tells its history. */
  #walk(event) {
    const { key, target } = event;
    const way = { ArrowLeft: 'previousElementSibling', ArrowRight: 'nextElementSibling' }[key];
    const next = way && target[way]?.closest('[tabindex]');
    if (next) next.focus();
    else if (key === 'Enter' || key === ' ') this.#tell(target);
    else return;
    event.preventDefault();
  }

  #tell({ dataset: { position } }) {
    if (!position) return;
    const entries = historyOf(this.answer, Number(position)).map(({ nfe, text, sure, state }) =>
      `pass ${nfe ?? '–'}: ${state}${text ? ` “${oneLine(text)}”` : ''}${sure === null ? '' : ` ${sure.toFixed(2)}`}`);
    this.details.open = true;
    this.history.textContent = `position ${position}: ${entries.join(' → ')}`;
  }
}
