/**
 * What a stream of chunks says about one answer. Pure: no page, no clock.
 *
 * An answer is a list of steps (drafts and commits); the state after the first n of them is
 * `stateAt(answer, n)`, so a finished answer can be replayed to any point. The steps of one forward
 * pass are one entry of `passesOf(answer)`.
 */

/** What an answer is made of, in this order; `calls` are calls of tools, a line each. */
export const PARTS = ['thought', 'text', 'calls'];

export function newAnswer(mode = null) {
  return { steps: [], thought: '', text: '', calls: '', finish: null, metrics: null, usage: null, error: null, mode };
}

/** Take one chunk; `ms` since the request was sent. Returns whether something visible changed. */
export function take(answer, chunk, ms) {
  if (chunk.error) {
    answer.error = chunk.error.message;
    close(answer);
    return true;
  }
  if (chunk.usage && !(chunk.choices ?? []).length) {
    answer.usage = chunk.usage;
    answer.metrics = chunk.metrics ?? null;
    return true;
  }
  const choice = (chunk.choices ?? [])[0];
  const frame = chunk.trimode;
  const delta = choice?.delta ?? {};
  const said = { thought: delta.reasoning_content ?? '', text: delta.content ?? '', calls: callsOf(answer, delta) };
  if (frame?.type === 'draft') {
    answer.mode = frame.mode;
    const { nfe, start, tokens } = frame;
    answer.steps.push({ kind: 'draft', ms, nfe, start, tokens });
    return true;
  }
  let changed = false;
  if (PARTS.some((part) => said[part]) || frame?.type === 'commit') {
    for (const part of PARTS) answer[part] += said[part];
    changed = true;
  }
  const before = answer.steps.at(-1);
  if (changed && !frame && before?.kind === 'commit' && before.nfe !== null) { // more of the same commit
    for (const part of PARTS) before[part] += said[part];
  } else if (changed) {
    const { nfe = null, start = null, length = null, texts = null, accepted = null, drafted = null,
      cycle = null, plan = null } = frame ?? {};
    answer.steps.push({ kind: 'commit', ms, ...said, nfe, start, length, texts, accepted, drafted, cycle, plan });
  }
  if (choice?.finish_reason) {
    answer.finish = choice.finish_reason;
    changed = true;
  }
  return changed;
}

/** What a delta adds to the lines of calls. */
function callsOf(answer, delta) {
  return (delta.tool_calls ?? []).reduce((added, { function: { name, arguments: more } }) => {
    const line = name ? `${answer.calls || added ? '\n' : ''}→ ${name} ` : '';
    return added + line + (more ?? '');
  }, '');
}

/** An answer that was broken off is over too: nothing of it stays open. */
export function close(answer) {
  answer.finish ??= 'stopped';
}

/**
 * Forward passes: the number, and the steps up to which each shows. The steps of a pass say the same
 * `nfe`; a number that none says is a pass of which nothing was sent.
 */
export function passesOf(answer) {
  const passes = [];
  answer.steps.forEach((step, i) => {
    const before = passes.at(-1);
    if (before && step.nfe !== null && step.nfe === before.nfe) {
      before.end = i + 1;
      return;
    }
    for (let nfe = (before?.nfe ?? 0) + 1; nfe < step.nfe; nfe++) passes.push({ nfe, start: i, end: i });
    passes.push({ nfe: step.nfe, start: i, end: i + 1 });
  });
  return passes;
}

/** Committed parts, the newest pieces of `part` with what became of them, open block, rejected tokens. */
export function stateAt(answer, count = answer.steps.length) {
  const state = { thought: '', text: '', calls: '', part: 'text', last: [], commits: 0, open: null, rejected: [], done: false };
  let judged = null; // the pass that rejected
  for (const step of answer.steps.slice(0, count)) {
    if (step.kind === 'draft') {
      state.open = step;
      if (step.nfe !== judged) state.rejected = [];
      continue;
    }
    state.part = PARTS.findLast((part) => step[part]) ?? state.part;
    Object.assign(state, outcome(step, step[state.part], state.open, answer.mode));
    for (const part of PARTS) state[part] += step[part];
    state.commits += 1;
    judged = step.nfe;
  }
  if (answer.finish && count >= answer.steps.length) { // a finished answer is its text
    const plain = state.last.map(([text, , position]) => [text, 'own', position]);
    Object.assign(state, { last: plain, open: null, rejected: [], done: true });
  }
  return state;
}

/** What a commit makes of the block that was open; `said` is what it adds to its last part. */
function outcome(step, said, open, mode) {
  const texts = step.texts?.join('') === said ? step.texts : [said];
  const guessed = (i) => open?.tokens[step.start + i - open.start];
  const filled = (token) => token && token[2] !== 'mask';
  const wrong = (step.texts ?? []).findIndex((text, i) => filled(guessed(i)) && guessed(i)[0] !== text);
  const last = texts.map((text, i) => {
    if (step.drafted) return [text, i < step.accepted ? 'accepted' : 'own', step.start + i];
    return [text, mode === 'diffusion' && i === wrong ? 'revised' : 'own', step.start + i];
  });
  if (!open || step.start === null) return { last, open: null, rejected: [] };
  const from = step.start + (wrong < 0 ? step.length : wrong) - open.start;
  const behind = open.tokens.slice(Math.max(0, from));
  // Diffusion goes on with what a commit leaves, unless it changed what that stood behind.
  const stays = mode === 'diffusion' && wrong < 0 && behind.length;
  const judged = step.drafted || (mode === 'diffusion' && wrong >= 0);
  return {
    last,
    open: stays ? { ...open, start: step.start + step.length, tokens: behind } : null,
    rejected: judged ? behind.filter(filled) : [],
  };
}

/** What happened at one absolute position: pass, token, confidence, state. */
export function historyOf(answer, position) {
  const found = [];
  for (const step of answer.steps) {
    if (step.kind === 'draft') {
      const token = step.tokens[position - step.start];
      if (token) found.push({ nfe: step.nfe, text: token[0], sure: token[1], state: token[2] });
    } else if (step.start !== null && position >= step.start && position < step.start + step.length) {
      const text = step.texts?.[position - step.start] ?? '';
      found.push({ nfe: step.nfe, text, sure: null, state: position - step.start < step.accepted ? 'accepted' : 'committed' });
    }
  }
  return found;
}

/** Figures for people, also while the answer is on its way; nulls where unknown. */
export function figures(answer) {
  const commits = answer.steps.filter((step) => step.kind === 'commit');
  const decoding = answer.metrics?.decoding ?? {};
  const sum = (steps) => steps.reduce((total, step) => total + (step.length ?? 1), 0);
  const first = commits[0]?.ms ?? null;
  const last = commits.at(-1)?.ms ?? null;
  const tokens = answer.usage?.completion_tokens ?? sum(commits);
  const nfe = decoding.nfe ?? answer.steps.at(-1)?.nfe ?? null;
  const cycles = commits.findLast((step) => step.cycle)?.cycle;
  const plans = {};
  for (const { plan } of commits) if (plan) plans[plan] = (plans[plan] ?? 0) + 1;
  return {
    mode: decoding.mode ?? answer.mode,
    tokens,
    ttft: first,
    rate: last > first ? ((tokens - (commits[0].length ?? 1)) / (last - first)) * 1e3 : null,
    tpf: decoding.tokens_per_forward ?? (nfe ? tokens / nfe : null),
    nfe,
    acceptance: answer.metrics?.speculative_decoding?.mean_acceptance_length
      ?? (cycles ? sum(commits.filter((step) => step.drafted !== null)) / cycles : null),
    revisions: decoding.revisions ?? null,
    plans: decoding.plans ?? (Object.keys(plans).length ? plans : null),
  };
}
