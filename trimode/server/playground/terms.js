/** What the page's words mean: shown on hover, and on a click or a tap. */

export const TERMS = {
  mode: 'How the answer is decoded. All modes use the same weights. Some give exactly the text of ar in fewer passes.',
  threshold: 'How sure the model must be of a token to fill it in. Lower: fewer passes, more mistakes. In linear at 0, one pass fills the draft.',
  'block length': 'How many tokens a draft has, or a block that is filled.',
  tokens: 'Tokens of the answer so far.',
  'tok/s': 'Tokens a second, from the first token on.',
  TPF: 'Tokens per forward pass: what one run of the model yields. It is 1 in ar; more is better.',
  NFE: 'Number of forward evaluations: how often the model was run for this answer.',
  TTFT: 'Time to first token.',
  acceptance: 'Acceptance length: tokens that one cycle of drafting and verifying yields, the verifier’s own included. More is better.',
  revised: 'Filled tokens that AR replaced.',
  passes: 'What auto chose for its passes.',
};

const shown = document.getElementById('term');

for (const node of document.querySelectorAll('[data-term]')) {
  const { term } = node.dataset;
  node.title = TERMS[term];
  if (node.textContent === '?') node.ariaLabel = `What is ${term}?`;
}

document.addEventListener('click', ({ target }) => {
  const node = target.closest('[data-term]');
  if (!node) return;
  shown.textContent = TERMS[node.dataset.term];
  shown.showPopover();
  const { left, bottom } = node.getBoundingClientRect();
  shown.style.left = `${Math.max(8, Math.min(left, innerWidth - shown.offsetWidth - 8))}px`;
  shown.style.top = `${Math.max(8, Math.min(bottom + 4, innerHeight - shown.offsetHeight - 8))}px`;
});
