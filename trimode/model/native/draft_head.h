// Draft heads: one step, and a tree of the likeliest beginnings. The oracle of the tree is Python's
// `decoding/speculation/head_draft.py`.
#pragma once

#include <queue>

#include "elementwise.h"

namespace {

// From the state that chose a token and the token's embedding, each [dim], to the state after it [dim] and the
// logits of what follows [words].
void draft_step(const DraftHead& h, const float* state, const float* embedded, float* after, float* logits,
                int64_t threads) {
  const Layout layout = layout_of(h.enter);
  thread_local Room room;
  thread_local std::vector<float> x, wide, ones;
  x.resize(2 * h.dim);
  wide.resize(h.dim + h.inner);
  ones.assign(h.inner, 1.0f);
  for (int64_t i = 0; i < h.dim; ++i) {
    x[i] = state[i] / h.state_scale;
    x[h.dim + i] = embedded[i] / h.embedding_scale;
  }
  room.reserve(layout, 1, std::max(2 * h.dim, h.inner));
  // The threads share the caller's buffers, not their own.
  Room& shared = room;
  float *read = x.data(), *made = wide.data();
  const float* unit = ones.data();
  std::vector<Reader> readers(threads);
  Team::run(threads, [&](Member& member) {
    const auto product = [&](const Linear& l, const Target& target) {
      const int64_t parts = parts_of(l, member.threads());
      const Quantised q = shared.view(1, l.in);
      member.phase(parts, [&](int64_t p) {
        Reader& reader = readers[p % member.threads()];
        reader = Reader();
        reader.expect(l, {p, parts});
        reader.start();
        multiply(l, {p, parts}, q, {1, nullptr, nullptr}, target, reader);
      });
    };
    member.rows(1, [&](int64_t) { quantise_row(read, h.enter.in, layout, shared.view(1, h.enter.in), 0); });
    product(h.enter, {made, h.dim + h.inner, false});
    member.rows(1, [&](int64_t) {
      swiglu(made + h.dim, unit, h.inner);
      quantise_row(made + h.dim, h.inner, layout, shared.view(1, h.inner), 0);
    });
    product(h.leave, {made, h.dim + h.inner, true});
    member.rows(1, [&](int64_t) {
      for (int64_t i = 0; i < h.dim; ++i) after[i] = h.state_scale * made[i];
      quantise_row(after, h.dim, layout, shared.view(1, h.dim), 0);
    });
    product(h.words, {logits, h.words.out, false});
    if (layout == Layout::tiles) release_tiles();
  });
}

struct TreeLimits {
  int64_t most, branches;
  const float* shares;  // [most]: by how much a pass with 0, 1, ... nodes takes longer with one more
  float trust;          // tokens accepted for each that the chances promise
};

struct TreeNodes {
  int64_t *words, *parents;  // [most]; the parent of the first nodes is -1
  float* chances;            // [most]
};

// The highest logits, highest first, and log(sum(exp(logits))). Of equal ones the first comes first.
struct Best {
  std::vector<int64_t> words;
  float norm;
};

void find_best(const float* logits, int64_t n, int64_t count, Best& best) {
  float top = logits[0];
  for (int64_t i = 1; i < n; ++i) top = std::max(top, logits[i]);
  best.norm = top + std::log(exponentials(logits, n, top));
  find_highest(logits, n, count, best.words);
}

// embeddings: of the words, fp16 [words, dim].
int64_t draft_tree(const DraftHead& h, const uint16_t* embeddings, const float* state, const float* embedded,
                   const TreeLimits& limits, const TreeNodes& nodes, int64_t threads) {
  struct Candidate {
    float chance;
    int64_t order, word, parent, state;  // state: of the step that it comes from
  };
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.chance != b.chance ? a.chance < b.chance : a.order > b.order;
  };
  std::priority_queue<Candidate, std::vector<Candidate>, decltype(later)> waiting(later);
  const int64_t n = h.words.out;
  std::vector<float> states, logits(n), input(h.dim);
  states.reserve((limits.most + 1) * h.dim);
  Best best;
  float sum = 0, chance = 1, needed = limits.shares[0] / limits.trust;
  int64_t count = 0, order = 0, from = -1;
  const float* token = embedded;
  while (count < limits.most) {
    if (chance >= needed) {  // what follows a node is no likelier than the node
      const int64_t step = static_cast<int64_t>(states.size()) / h.dim;
      states.resize(states.size() + h.dim);
      const float* before = from < 0 ? state : states.data() + from * h.dim;
      draft_step(h, before, token, states.data() + step * h.dim, logits.data(), threads);
      find_best(logits.data(), n, limits.branches, best);
      for (int64_t w : best.words)
        waiting.push({chance * std::exp(logits[w] - best.norm), order++, w, count - 1, step});
    }
    if (waiting.empty() || waiting.top().chance < needed) break;
    const Candidate next = waiting.top();
    waiting.pop();
    nodes.words[count] = next.word;
    nodes.parents[count] = next.parent;
    nodes.chances[count] = chance = next.chance;
    from = next.state;
    to_floats(embeddings + next.word * h.dim, h.dim, input.data());
    token = input.data();
    sum += chance;
    if (++count < limits.most) needed = (1 + limits.trust * sum) * limits.shares[count] / limits.trust;
  }
  return count;
}

}  // namespace
