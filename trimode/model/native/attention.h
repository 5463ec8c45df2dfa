// Attention on any CPU with AVX2: a few queries of one key head together.
#pragma once

#include "elementwise.h"

namespace {

// The keys one row sees, in cache order: `prefix` from the start, then the listed ones.
struct Seen {
  int64_t prefix, count;
  const int32_t* others;
  int64_t place(int64_t j) const { return j < prefix ? j : others[j - prefix]; }
};

inline __m256 widen_halves(const Half* x) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

constexpr int64_t kQueries = 16;  // that attend together at most

// Rows of a segment and heads that share a key head.
struct Together {
  int64_t rows, heads;           // rows * heads <= kQueries
  const float* query[kQueries];  // row by row
  float* out[kQueries];
  Seen seen[kQueries];           // of each row
  int64_t end;                   // keys that any of them sees lie before it

  // Keys that all rows see, from the first one on.
  int64_t common() const {
    int64_t found = seen[0].prefix;
    for (int64_t r = 1; r < rows; ++r) found = std::min(found, seen[r].prefix);
    return found;
  }
};

constexpr int64_t kAtOnce = 6;  // queries whose sums fit into the registers

// Q of the queries, and where their scores go.
struct Queried {
  const float* const* query;
  float* scores;
  int64_t room;  // of a query's scores
  float* of(int64_t q) const { return scores + q * room; }
};

// Scores of Q queries with the first `count` keys; a few after them are written too.
template <int Q>
void score_common(const Queried& x, const Half* keys, int64_t count, int64_t dim) {
  constexpr int K = Q <= 3 ? 4 : 2;  // keys at a time
  for (int64_t j = 0; j < count; j += K) {
    const Half* key[K];
    for (int c = 0; c < K; ++c) key[c] = keys + std::min(j + c, count - 1) * dim;
    __m256 acc[Q * K];
    for (auto& a : acc) a = _mm256_setzero_ps();
    for (int64_t d = 0; d < dim; d += 8)
      for (int c = 0; c < K; ++c) {
        const __m256 wide = widen_halves(key[c] + d);
        for (int q = 0; q < Q; ++q)
          acc[q * K + c] = _mm256_fmadd_ps(_mm256_loadu_ps(x.query[q] + d), wide, acc[q * K + c]);
      }
    for (int a = 0; a < Q * K; a += 4) {
      const auto at = [&](int i) { return acc[std::min(a + i, Q * K - 1)]; };
      const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(at(0), at(1)), _mm256_hadd_ps(at(2), at(3)));
      const __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
      if constexpr (K == 4) {
        _mm_storeu_ps(x.of(a / K) + j, four);
      } else {
        _mm_storel_pi(reinterpret_cast<__m64*>(x.of(a / K) + j), four);
        if (a + 2 < Q * K) _mm_storeh_pi(reinterpret_cast<__m64*>(x.of(a / K + 1) + j), four);
      }
    }
  }
}

// Scores of one query with the keys it sees from number `first` on.
void score_rest(const float* query, const Half* keys, const Seen& seen, int64_t first, int64_t dim, float* scores) {
  const int64_t n = seen.count;
  for (int64_t j = first; j < n; j += 4) {
    const Half* key[4];
    for (int c = 0; c < 4; ++c) key[c] = keys + seen.place(std::min(j + c, n - 1)) * dim;
    __m256 acc[4];
    for (auto& a : acc) a = _mm256_setzero_ps();
    for (int64_t d = 0; d < dim; d += 8) {
      const __m256 q = _mm256_loadu_ps(query + d);
      for (int c = 0; c < 4; ++c) acc[c] = _mm256_fmadd_ps(q, widen_halves(key[c] + d), acc[c]);
    }
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(acc[0], acc[1]), _mm256_hadd_ps(acc[2], acc[3]));
    _mm_storeu_ps(scores + j,
                  _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
}

// Scores to probabilities, but for a factor, which it returns. scores: room for n + 8.
float weigh(float* scores, int64_t n, int64_t dim) {
  for (int64_t j = n; j % 8; ++j) scores[j] = scores[0];  // defined values; they count as 0 below
  __m256 tops = _mm256_loadu_ps(scores);
  for (int64_t j = 8; j < n; j += 8) tops = _mm256_max_ps(tops, _mm256_loadu_ps(scores + j));
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const __m256 most = _mm256_set1_ps(highest(tops)), by = _mm256_set1_ps(scale);
  __m256 total = _mm256_setzero_ps();
  for (int64_t j = 0; j < n; j += 8) {
    __m256 p = exp8(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(scores + j), most), by));
    if (n - j < 8) {
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i live = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n - j)), lane);
      p = _mm256_and_ps(p, _mm256_castsi256_ps(live));
    }
    _mm256_storeu_ps(scores + j, p);
    total = _mm256_add_ps(total, p);
  }
  return 1.0f / sum(total);
}

// Sums of values of Q queries: of the first `common` keys together, of the others each by itself. Q * C sums at
// a time: C vectors of dimensions each.
template <int Q, int C>
void mix_part(const Queried& x, const Half* values, int64_t common, const Seen* const* seen, const float* factor,
              int64_t dim, int64_t d, float* const* out) {
  __m256 acc[Q * C];
  for (auto& a : acc) a = _mm256_setzero_ps();
  const Half* value = values + d;
  const auto chance = [&](int q, int64_t j) { return _mm256_set1_ps(x.of(q)[j]); };
  const auto add = [&](int q, int c, __m256 p, __m256 wide) {
    acc[q * C + c] = _mm256_fmadd_ps(p, wide, acc[q * C + c]);
  };
  // The fewer of the two, chances or values, stay in registers beside the sums: sums in memory cost a third more.
  for (int64_t j = 0; j < common; ++j, value += dim) {
    if constexpr (Q < C) {
      for (int c = 0; c < C; ++c) {
        const __m256 wide = widen_halves(value + 8 * c);
        for (int q = 0; q < Q; ++q) add(q, c, chance(q, j), wide);
      }
    } else {
      __m256 wide[C];
      for (int c = 0; c < C; ++c) wide[c] = widen_halves(value + 8 * c);
      for (int q = 0; q < Q; ++q) {
        const __m256 p = chance(q, j);
        for (int c = 0; c < C; ++c) add(q, c, p, wide[c]);
      }
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int64_t j = common; j < seen[q]->count; ++j) {
      const Half* other = values + seen[q]->place(j) * dim + d;
      const __m256 p = chance(q, j);
      for (int c = 0; c < C; ++c) add(q, c, p, widen_halves(other + 8 * c));
    }
    for (int c = 0; c < C; ++c)
      _mm256_storeu_ps(out[q] + d + 8 * c, _mm256_mul_ps(acc[q * C + c], _mm256_set1_ps(factor[q])));
  }
}

template <int Q>
void mix(const Queried& x, const Half* values, int64_t common, const Seen* const* seen, const float* factor,
         int64_t dim, float* const* out) {
  constexpr int C = Q == 1 ? 8 : Q <= 3 ? 4 : 2;
  int64_t d = 0;
  for (; d + 8 * C <= dim; d += 8 * C) mix_part<Q, C>(x, values, common, seen, factor, dim, d, out);
  for (; d < dim; d += 8) mix_part<Q, 1>(x, values, common, seen, factor, dim, d, out);
}

// Queries first..first + Q. Each query's arithmetic is its own; together they widen a key and a value once.
template <int Q>
void attend_some(int64_t dim, const Together& t, int64_t first, const Half* keys, const Half* values, int64_t common,
                 float* scores, int64_t room) {
  const Queried x{t.query + first, scores, room};
  const Seen* seen[Q];
  float factor[Q];
  score_common<Q>(x, keys, common, dim);
  for (int q = 0; q < Q; ++q) {
    seen[q] = &t.seen[(first + q) / t.heads];
    score_rest(x.query[q], keys, *seen[q], common, dim, x.of(q));
    factor[q] = weigh(x.of(q), seen[q]->count, dim);
  }
  mix<Q>(x, values, common, seen, factor, dim, t.out + first);
}

// scores: [kAtOnce, room], with room for all keys and 8 more.
void attend(int64_t dim, const Together& t, const Half* keys, const Half* values, float* scores, int64_t room) {
  using Some = decltype(&attend_some<1>);
  static constexpr Some some[kAtOnce] = {attend_some<1>, attend_some<2>, attend_some<3>,
                                         attend_some<4>, attend_some<5>, attend_some<6>};
  const int64_t common = t.common(), queries = t.rows * t.heads;
  for (int64_t q = 0; q < queries; q += kAtOnce)
    some[std::min(kAtOnce, queries - q) - 1](dim, t, q, keys, values, common, scores, room);
}

}  // namespace
