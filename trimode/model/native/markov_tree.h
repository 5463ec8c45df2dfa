// The likeliest beginnings of an answer, by a Markov head. The oracle is Python's `decoding/markov.py` with
// `decoding/speculation/draft_tree.py`.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>

#include "elementwise.h"
#include "team.h"

namespace {

constexpr int64_t kScoreGroup = 64;  // scores whose maximum is looked at first

float dot(const float* a, const float* b, int64_t n) {
  __m256 found = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) found = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), found);
  float total = sum(found);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// The best tokens of a place, without those whose score is -infinity.
struct Place {
  std::vector<int64_t> ids;  // highest score first; of equal ones the first
  std::vector<float> scores;
  float others;              // log(sum(exp(scores))) of all other tokens
  std::vector<float> inner;  // what its mask's hidden state brings into the inner units
};

// The two tokens before a place.
struct Before {
  int64_t earlier, newest;
};

void find_place(const float* scores, int64_t vocab, int64_t count, Place& place) {
  const int64_t groups = (vocab + kScoreGroup - 1) / kScoreGroup;
  thread_local std::vector<float> best, sorted;
  thread_local std::vector<int64_t> found;
  best.resize(groups);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t stop = std::min(vocab, (g + 1) * kScoreGroup);
    int64_t i = g * kScoreGroup;
    __m256 top = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    for (; i + 8 <= stop; i += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(scores + i));
    float most = highest(top);
    for (; i < stop; ++i) most = std::max(most, scores[i]);
    best[g] = most;
  }
  // A group whose maximum is not among the `count` highest maxima can hold none of the best.
  float bar = std::numeric_limits<float>::lowest();
  if (groups > count) {
    sorted = best;
    std::nth_element(sorted.begin(), sorted.begin() + count - 1, sorted.end(), std::greater<float>());
    bar = std::max(bar, sorted[count - 1]);
  }
  found.clear();
  for (int64_t g = 0; g < groups; ++g) {
    if (best[g] < bar) continue;
    const int64_t stop = std::min(vocab, (g + 1) * kScoreGroup);
    for (int64_t i = g * kScoreGroup; i < stop; ++i)
      if (scores[i] >= bar) found.push_back(i);
  }
  const auto higher = [&](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; };
  const int64_t taken = std::min<int64_t>(count, found.size());
  std::partial_sort(found.begin(), found.begin() + taken, found.end(), higher);
  place.ids.assign(found.begin(), found.begin() + taken);
  place.scores.resize(taken);
  if (!taken) return;
  for (int64_t i = 0; i < taken; ++i) place.scores[i] = scores[place.ids[i]];

  const float top = place.scores[0];
  float rest = exponentials(scores, vocab, top);
  for (float score : place.scores) rest -= std::exp(score - top);
  place.others = std::log(std::max(rest, std::numeric_limits<float>::min())) + top;
}

// state: [dim].
void enter_state(const MarkovHead& h, const float* state, Place& place) {
  place.inner.resize(h.inner);
  for (int64_t i = 0; i < h.inner; ++i)
    place.inner[i] = h.state_bias[i] + h.state_factor * dot(h.state + i * h.dim, state, h.dim);
}

// What may follow two tokens at a place.
struct Branches {
  int64_t place;
  Before before;
  std::vector<int64_t> ids;
  std::vector<double> logs;  // of their chances, highest first
};

void find_branches(const MarkovHead& h, const Place& place, float sharpness, int64_t count, Branches& found) {
  thread_local std::vector<float> known, inner, judged, word, scores;
  thread_local std::vector<int64_t> order;
  known.resize(2 * h.rank);
  inner.resize(h.inner);
  judged.resize(h.rank);
  word.resize(h.rank);
  to_floats(h.before + found.before.earlier * h.rank, h.rank, known.data());
  to_floats(h.before + found.before.newest * h.rank, h.rank, known.data() + h.rank);
  for (int64_t i = 0; i < h.inner; ++i)
    inner[i] = place.inner[i] + dot(h.enter + i * 2 * h.rank, known.data(), 2 * h.rank);
  for (int64_t i = 0; i < h.inner; ++i) inner[i] /= 1 + std::exp(std::min(-inner[i], 60.0f));
  for (int64_t i = 0; i < h.rank; ++i) judged[i] = dot(h.leave + i * h.inner, inner.data(), h.inner);
  const int64_t n = place.ids.size();
  scores.resize(n);
  order.resize(n);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < n; ++i) {
    to_floats(h.words + place.ids[i] * h.rank, h.rank, word.data());
    scores[i] = place.scores[i] + sharpness * dot(word.data(), judged.data(), h.rank);
  }
  const int64_t taken = std::min(count, n);
  std::partial_sort(order.begin(), order.begin() + taken, order.end(),
                    [&](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
  const double top = scores[order[0]];
  double total = std::exp(std::min(place.others - top, 80.0));
  for (float score : scores) total += std::exp(score - top);
  const double norm = top + std::log(total);
  found.ids.resize(taken);
  found.logs.resize(taken);
  for (int64_t i = 0; i < taken; ++i) {
    found.ids[i] = place.ids[order[i]];
    found.logs[i] = scores[order[i]] - norm;
  }
}

// scores: [places, vocab], rows `stride` apart; states: [places, dim]. Returns the number of nodes.
int64_t markov_tree(const MarkovHead& h, const float* scores, int64_t places, int64_t vocab, int64_t stride,
                    const float* states, float sharpness, Before newest, int64_t candidates, int64_t branches,
                    int64_t nodes, int64_t* tokens, int64_t* parents, double* chances, int64_t threads) {
  std::vector<Place> known(places);
  Team::run(threads, [&](Member& member) {
    member.rows(places, [&](int64_t i) {
      find_place(scores + i * stride, vocab, candidates, known[i]);
      enter_state(h, states + i * h.dim, known[i]);
    });
  });
  struct Waiting {
    double log;  // of the chance of the path
    int64_t order, rank, parent, branches;
  };
  const auto later = [](const Waiting& a, const Waiting& b) {
    return a.log != b.log ? a.log < b.log : a.order > b.order;
  };
  std::priority_queue<Waiting, std::vector<Waiting>, decltype(later)> waiting(later);
  std::vector<Branches> every;
  every.reserve(nodes + 1);
  int64_t order = 0;
  const auto grow = [&](int64_t place, Before before, double log, int64_t parent) {
    if (known[place].ids.empty()) return;
    every.emplace_back();
    every.back().place = place;
    every.back().before = before;
    find_branches(h, known[place], sharpness, branches, every.back());
    waiting.push({log + every.back().logs[0], order++, 0, parent, static_cast<int64_t>(every.size()) - 1});
  };
  grow(0, newest, 0, -1);
  int64_t count = 0;
  while (!waiting.empty() && count < nodes) {
    const Waiting next = waiting.top();
    waiting.pop();
    const Branches& from = every[next.branches];
    const int64_t node = count++, place = from.place, token = from.ids[next.rank];
    tokens[node] = token;
    parents[node] = next.parent;
    chances[node] = std::exp(next.log);
    if (next.rank + 1 < static_cast<int64_t>(from.ids.size()))
      waiting.push({next.log - from.logs[next.rank] + from.logs[next.rank + 1], order++, next.rank + 1, next.parent,
                    next.branches});
    if (place + 1 < places && count < nodes) grow(place + 1, {from.before.newest, token}, next.log, node);
  }
  return count;
}

}  // namespace
