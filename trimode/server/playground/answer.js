/**
 * What a stream of chunks says about one answer. Pure: no page, no clock.
 *
 * An answer is a list of steps; the state after the first n of them is `stateAt(answer, n)`, so a
 * finished answer can be replayed to any point.
 */

export function newAnswer() {
  return { steps: [], text: '', finish: null, metrics: null, usage: null, error: null, mode: null };
}

/** Take one chunk; `ms` since the request was sent. Returns whether something visible changed. */
export function take(answer, chunk, ms) {
  if (chunk.error) {
    answer.error = chunk.error.message;
    return true;
  }
  if (chunk.usage && !(chunk.choices ?? []).length) {
    answer.usage = chunk.usage;
    answer.metrics = chunk.metrics ?? null;
    return true;
  }
  const choice = (chunk.choices ?? [])[0];
  const frame = chunk.trimode;
  const content = choice?.delta?.content ?? '';
  if (frame?.type === 'draft') {
    answer.mode = frame.mode;
    answer.steps.push({ kind: 'draft', ms, nfe: frame.nfe, start: frame.start, tokens: frame.tokens });
    return true;
  }
  let changed = false;
  if (content || frame?.type === 'commit') {
    answer.text += content;
    answer.steps.push({ kind: 'commit', ms, text: content, nfe: frame?.nfe ?? null,
      start: frame?.start ?? null, length: frame?.length ?? null,
      accepted: frame?.accepted ?? null, drafted: frame?.drafted ?? null, plan: frame?.plan ?? null });
    changed = true;
  }
  if (choice?.finish_reason) {
    answer.finish = choice.finish_reason;
    changed = true;
  }
  return changed;
}

/** Committed text and open block after the first `count` steps. */
export function stateAt(answer, count = answer.steps.length) {
  const state = { text: '', last: '', open: null, rejected: [] };
  let end = 0; // behind the last committed token, where commits say where they stand
  for (const step of answer.steps.slice(0, count)) {
    state.rejected = [];
    if (step.kind === 'draft') {
      const known = Math.max(0, Math.min(end - step.start, step.tokens.length));
      state.open = { ...step, start: step.start + known, tokens: step.tokens.slice(known) };
      continue;
    }
    if (step.start !== null) end = step.start + step.length;
    state.text += step.text;
    state.last = step.text;
    if (state.open && step.start !== null) {
      const behind = state.open.tokens.slice(Math.max(0, end - state.open.start));
      if (step.drafted !== null) state.rejected = behind.filter(([, , kind]) => kind !== 'mask');
      // What a commit leaves of a draft that is not verified as a whole stays open.
      const stays = step.drafted === null && behind.length;
      state.open = stays ? { ...state.open, start: end, tokens: behind } : null;
    } else {
      state.open = null;
    }
  }
  if (answer.finish && count >= answer.steps.length) { // a finished answer is its text
    state.open = null;
    state.rejected = [];
  }
  return state;
}

/** The tokens of the open block that are not committed yet. */
export function openTokens(state) {
  return state.open ? state.open.tokens : [];
}

/** What happened at one absolute position: pass, token, confidence, state. */
export function historyOf(answer, position) {
  const found = [];
  for (const step of answer.steps) {
    if (step.kind === 'draft') {
      const token = step.tokens[position - step.start];
      if (token) found.push({ nfe: step.nfe, text: token[0], sure: token[1], state: token[2] });
    } else if (step.start !== null && position >= step.start && position < step.start + step.length) {
      found.push({ nfe: step.nfe, text: '', sure: 1, state: 'committed' });
    }
  }
  return found;
}

/** Figures for people: nulls where unknown. */
export function figures(answer) {
  const commits = answer.steps.filter((step) => step.kind === 'commit' && step.text);
  const decoding = answer.metrics?.decoding ?? {};
  const tokens = answer.usage?.completion_tokens ?? null;
  const first = commits[0]?.ms ?? null;
  const last = commits.at(-1)?.ms ?? null;
  const counted = tokens ?? commits.reduce((sum, step) => sum + (step.length ?? 1), 0);
  return {
    mode: decoding.mode ?? answer.mode,
    tokens: counted,
    ttft: first,
    rate: last > first ? ((counted - (commits[0].length ?? 1)) / (last - first)) * 1e3 : null,
    tpf: decoding.tokens_per_forward ?? null,
    nfe: decoding.nfe ?? null,
    acceptance: answer.metrics?.speculative_decoding?.mean_acceptance_length ?? null,
    revisions: decoding.revisions ?? null,
    plans: decoding.plans ?? null,
  };
}
