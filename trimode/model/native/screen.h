// The highest output of each row of a product, without most of the product.
//
// Of weights in 8 bits the upper nibbles are read first (groups.h). With 7.5 for every lower nibble they give
// each output up to an error, the sum of weight scale * activation * (lower nibble - 7.5). If lower nibbles are
// independent and uniform, the error exceeds kDeviations of its standard deviations with a chance below
// exp(-kDeviations^2 / 2), 1.3e-14, as uniform numbers are strictly sub-Gaussian (arXiv 1705.00048). So an
// output that stays below another one with as much added is not the highest. Outputs of the few strips that
// are left are computed as they always are. What comes of a row depends on that row alone.
#pragma once

#include "elementwise.h"

namespace {

constexpr float kDeviations = 8;
constexpr float kNibbleVariance = 21.25f;  // of the whole numbers 0..15
constexpr int64_t kMostLanes = 16;
constexpr int64_t kLikelyStrips = 4;  // computed in full before others are ruled out

struct Highest {
  float value = -INFINITY;
  int64_t output = -1;
  bool finite = true;
};

// Whether a linear's outputs can be bounded.
inline bool has_bounds(const Linear& l) {
  return l.strip && !l.bias &&
         std::all_of(l.strip, l.strip + l.strips, [](const Strip& s) { return s.kind == Q8_0; });
}

// kDeviations^2 times the variance of a row's error, of each group, for weights with a scale of one.
inline void find_spread(const GroupRows& x, int64_t row, float* spread) {
  for (int64_t g = 0; g < x.groups; ++g) {
    const int64_t at = x.at(row, g);
    int32_t squares = 0;
    for (int64_t i = 0; i < kGroup; ++i) squares += x.value[at * kGroup + i] * x.value[at * kGroup + i];
    const float scale = x.info[at].scale;
    spread[at] = kDeviations * kDeviations * kNibbleVariance * scale * scale * static_cast<float>(squares);
  }
}

// The highest of what is found already and a row's outputs in a strip that comes later.
inline void add_strip(const Linear& l, const Strip& strip, const GroupRows& x, int64_t row, int64_t excluded,
                      Highest& found) {
  float outputs[kMostLanes];
  const Strip first{strip.bytes, strip.lower, strip.kind, 0, strip.width};
  kernels().rows[strip.kind](&first, &first + 1, l, x, row, row + 1, {1, nullptr, nullptr}, {outputs, 0, false});
  for (int64_t c = 0; c < strip.width; ++c) {
    if (strip.first + c == excluded) continue;
    found.finite &= std::isfinite(outputs[c]);
    if (outputs[c] > found.value) found.value = outputs[c], found.output = strip.first + c;
  }
}

// best [rows]: the first of each row's highest outputs, `excluded` left out; -1 if they are no numbers.
void highest_outputs(const Linear& l, const float* x, int64_t rows, int64_t excluded, int64_t* best,
                     int64_t threads) {
  thread_local Room room;
  thread_local std::vector<float> spread, tops, least;
  thread_local std::vector<Highest> found;
  room.reserve(Layout::groups, rows, l.in);
  const GroupRows all = room.view(rows, l.in).groups;
  spread.resize(all.size(rows));
  tops.resize(rows * l.strips);
  least.resize(rows);
  found.assign(parts_of(l, threads) * rows, {});
  // The threads share the caller's buffers, not their own.
  float *spreads = spread.data(), *top = tops.data(), *bar = least.data();
  Highest* part_best = found.data();
  Team::run(threads, [&](Member& member) {
    const int64_t parts = parts_of(l, member.threads());
    const auto first = [&](int64_t part) { return l.strips * part / parts; };
    member.rows(rows, [&](int64_t i) {
      quantise_groups(x + i * l.in, l.in, all, i);
      find_spread(all, i, spreads);
    });
    member.phase(parts, [&](int64_t p) {
      const Strip* const last = l.strip + first(p + 1);
      for (const Strip *s = l.strip + first(p), *end; s < last; s = end) {
        end = together(s, last);
        kernels().bounds(s, end, all, spreads, rows, excluded, top + (s - l.strip), l.strips);
      }
    });
    member.rows(rows, [&](int64_t i) {  // an output that is most likely the highest, or nearly
      const float* bounds = top + i * l.strips;
      Highest likely;
      std::vector<int64_t> strips;
      find_highest(bounds, l.strips, kLikelyStrips, strips);
      for (int64_t s : strips) add_strip(l, l.strip[s], all, i, excluded, likely);
      bar[i] = likely.value;
    });
    member.phase(parts, [&](int64_t p) {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t s = first(p); s < first(p + 1); ++s)
          if (!(top[i * l.strips + s] < bar[i])) add_strip(l, l.strip[s], all, i, excluded, part_best[p * rows + i]);
    });
    member.rows(rows, [&](int64_t i) {
      Highest highest;
      for (int64_t p = 0; p < parts; ++p) {
        const Highest& one = part_best[p * rows + i];
        highest.finite &= one.finite;
        if (one.value > highest.value) highest.value = one.value, highest.output = one.output;
      }
      best[i] = highest.finite ? highest.output : -1;
    });
  });
}

}  // namespace
