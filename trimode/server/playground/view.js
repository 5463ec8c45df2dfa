/** From answers to elements. Writes happen in one animation frame; no position ever moves twice. */

import { figures, historyOf, openTokens, stateAt } from './answer.js';

const still = matchMedia('(prefers-reduced-motion: reduce)');

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

function tokenSpan([text, sure, state], position, onToken) {
  const shown = state === 'mask' ? '·' : text;
  const span = element('span', { class: `token ${state}`, 'data-position': position,
    title: state === 'mask' ? 'undecided' : `${state}, confidence ${sure.toFixed(2)}` }, shown);
  span.style.setProperty('--sure', sure);
  if (onToken) span.addEventListener('click', () => onToken(position));
  return span;
}

/** Paint an answer's state after `count` steps into an element. */
export function paintText(target, answer, count, onToken) {
  const state = stateAt(answer, count);
  const old = state.text.slice(0, state.text.length - state.last.length);
  const parts = [old, element('span', { class: 'fresh' }, state.last)];
  if (!still.matches || count < answer.steps.length) {
    const start = state.open?.start ?? 0;
    openTokens(state).forEach((token, i) => parts.push(tokenSpan(token, start + i, onToken)));
    state.rejected.forEach(([text]) => parts.push(element('span', { class: 'token rejected' }, text)));
  }
  target.replaceChildren(...parts);
}

const number = (value, digits) => (value === null || value === undefined ? '–' : value.toFixed(digits));

export function paintFigures(target, answer) {
  const f = figures(answer);
  const pairs = [
    ['mode', f.mode ?? '–'], ['tokens', f.tokens], ['tok/s', number(f.rate, 1)],
    ['TPF', number(f.tpf, 2)], ['NFE', f.nfe ?? '–'], ['TTFT', f.ttft === null ? '–' : `${Math.round(f.ttft)} ms`],
  ];
  if (f.acceptance !== null) pairs.push(['acceptance', number(f.acceptance, 2)]);
  if (f.revisions) pairs.push(['revised', f.revisions]);
  if (f.plans) pairs.push(['passes', Object.entries(f.plans).map(([k, n]) => `${k} ${n}`).join(', ')]);
  target.replaceChildren(...pairs.map(([name, value]) => element('span', {}, `${name} `, element('b', {}, `${value}`))));
}

/** One turn of the assistant: text, figures, and a timeline that can be replayed. */
export class AnswerView {
  constructor(answer) {
    this.answer = answer;
    this.text = element('div', { class: 'text' });
    this.figures = element('div', { class: 'figures' });
    this.scrub = element('input', { type: 'range', min: 0, max: 0, value: 0, 'aria-label': 'Pass',
      oninput: () => this.show(Number(this.scrub.value)) });
    this.place = element('output', {}, '');
    this.play = element('button', { type: 'button', onclick: () => this.#toggle() }, 'Play');
    this.speed = element('select', { 'aria-label': 'Speed' },
      ...[0.5, 1, 2].map((x) => element('option', { value: x, selected: x === 1 }, `${x}×`)));
    this.rows = element('div', { class: 'timeline' });
    this.history = element('div', { class: 'history' }, 'Click a token for its history.');
    this.details = element('details', { ontoggle: () => this.#timeline() },
      element('summary', {}, 'Timeline'),
      element('div', { class: 'player' }, this.play, this.speed, this.scrub, this.place),
      this.rows, this.history);
    this.root = element('div', { class: 'answer' }, this.text, this.figures, this.details);
    this.frame = 0;
    this.timer = 0;
  }

  /** Paint what is new, at most once a frame. */
  refresh() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.show(this.answer.steps.length);
      paintFigures(this.figures, this.answer);
    });
  }

  show(count) {
    const total = this.answer.steps.length;
    paintText(this.text, this.answer, count, (position) => this.#tell(position));
    this.scrub.max = total;
    this.scrub.value = count;
    this.place.value = `${count} / ${total}`;
    if (!this.details.open) return;
    [...this.rows.children].forEach((row, i) => {
      row.setAttribute('aria-current', i === count - 1);
      if (i === count - 1) this.rows.scrollTop = row.offsetTop - this.rows.offsetTop - 60;
    });
  }

  #timeline() {
    if (!this.details.open) return;
    this.rows.replaceChildren(...this.answer.steps.map((step, i) => {
      const label = step.kind === 'draft' ? 'draft' : step.plan ?? 'commit';
      const text = step.kind === 'draft'
        ? step.tokens.map((token) => tokenSpan(token, 0)) : [step.text];
      return element('button', { type: 'button', class: 'pass', onclick: () => this.show(i + 1) },
        element('span', { class: 'quiet' }, `${step.nfe ?? ''}`), element('span', { class: 'quiet' }, label),
        element('span', {}, ...text));
    }));
    this.show(this.answer.steps.length);
  }

  #toggle() {
    if (this.timer) return this.#pause();
    if (Number(this.scrub.value) >= this.answer.steps.length) this.show(0);
    this.play.textContent = 'Pause';
    const tick = () => {
      const count = Number(this.scrub.value) + 1;
      this.show(count);
      if (count >= this.answer.steps.length) return this.#pause();
      this.timer = setTimeout(tick, 120 / Number(this.speed.value));
    };
    this.timer = setTimeout(tick, 120 / Number(this.speed.value));
  }

  #pause() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.play.textContent = 'Play';
  }

  #tell(position) {
    const entries = historyOf(this.answer, position).map(({ nfe, text, sure, state }) =>
      `pass ${nfe ?? '–'}: ${state}${text ? ` “${text}”` : ''}${state === 'committed' ? '' : ` ${sure.toFixed(2)}`}`);
    this.details.open = true;
    this.history.textContent = `position ${position}: ${entries.join(' → ') || 'nothing recorded'}`;
  }
}
