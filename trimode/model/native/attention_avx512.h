// Attention by AVX-512: query heads of a key head, and rows of a sequence, share the reading of keys.
//
// The sums of a query run over its own keys in their order: what is computed beside it changes nothing.
#pragma once

#include "attention.h"
#include "elementwise_avx512.h"

namespace {

constexpr int kQueries = 6;  // at most, in one go

// Sums of 16 vectors, sum i in lane i.
TRIMODE_AMX inline __m512 sums16(const float* v) {
  __m512 quads[4];
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_load_ps(v + 64 * i), b = _mm512_load_ps(v + 64 * i + 16);
    const __m512 c = _mm512_load_ps(v + 64 * i + 32), d = _mm512_load_ps(v + 64 * i + 48);
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    quads[i] = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  }
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88),
                                   _mm512_shuffle_f32x4(quads[0], quads[1], 0xDD));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88),
                                    _mm512_shuffle_f32x4(quads[2], quads[3], 0xDD));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}

// Scores to probabilities times their sum; returns the sum. Lanes beyond n become 0.
TRIMODE_AMX inline float softmax16(float* scores, int64_t n, float scale) {
  __m512 tops = _mm512_set1_ps(-INFINITY);
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 live = n - j < 16 ? static_cast<__mmask16>((1u << (n - j)) - 1) : 0xFFFF;
    tops = _mm512_mask_max_ps(tops, live, tops, _mm512_loadu_ps(scores + j));
  }
  const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(tops)), by = _mm512_set1_ps(scale);
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 live = n - j < 16 ? static_cast<__mmask16>((1u << (n - j)) - 1) : 0xFFFF;
    __m512 p = exp16(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + j), most), by));
    p = _mm512_maskz_mov_ps(live, p);
    _mm512_storeu_ps(scores + j, p);
    total = _mm512_add_ps(total, p);
  }
  return _mm512_reduce_add_ps(total);
}

TRIMODE_AMX inline __m512 load_halves(const Half* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

// Scores of Q queries with keys from..to of those seen; lanes behind the last are written too.
template <int D, int Q>
TRIMODE_AMX void score_keys(const float* const* query, const Half* keys, const Seen& seen, int64_t from,
                            int64_t to, float* scores, int64_t room) {
  alignas(64) float parts[Q][16 * 16];
  for (int64_t j = from; j < to; j += 16) {
    for (int c = 0; c < 16; ++c) {
      const Half* key = keys + seen.place(std::min(j + c, to - 1)) * 16 * D;
      __m512 k[D];
      for (int d = 0; d < D; ++d) k[d] = load_halves(key + 16 * d);
      for (int q = 0; q < Q; ++q) {
        __m512 acc = _mm512_mul_ps(_mm512_loadu_ps(query[q]), k[0]);
        for (int d = 1; d < D; ++d) acc = _mm512_fmadd_ps(_mm512_loadu_ps(query[q] + 16 * d), k[d], acc);
        _mm512_store_ps(parts[q] + 16 * c, acc);
      }
    }
    for (int q = 0; q < Q; ++q) _mm512_storeu_ps(scores + q * room + j, sums16(parts[q]));
  }
}

// Adds to Q sums [16 * D] the values from..to, one after the other.
template <int D, int Q>
TRIMODE_AMX void add_values(const float* scores, int64_t room, const Half* values, const Seen& seen, int64_t from,
                            int64_t to, float* const* sums) {
  __m512 acc[Q][D];
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d) acc[q][d] = _mm512_loadu_ps(sums[q] + 16 * d);
  for (int64_t j = from; j < to; ++j) {
    const Half* value = values + seen.place(j) * 16 * D;
    __m512 v[D];
    for (int d = 0; d < D; ++d) v[d] = load_halves(value + 16 * d);
    for (int q = 0; q < Q; ++q) {
      const __m512 p = _mm512_set1_ps(scores[q * room + j]);
      for (int d = 0; d < D; ++d) acc[q][d] = _mm512_fmadd_ps(p, v[d], acc[q][d]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d) _mm512_storeu_ps(sums[q] + 16 * d, acc[q][d]);
}

// `kernel` with the number of queries as a constant.
#define TRIMODE_BY_QUERIES(kernel, D, queries, ...)        \
  switch (queries) {                                       \
    case 1: kernel<D, 1>(__VA_ARGS__); break;              \
    case 2: kernel<D, 2>(__VA_ARGS__); break;              \
    case 3: kernel<D, 3>(__VA_ARGS__); break;              \
    case 4: kernel<D, 4>(__VA_ARGS__); break;              \
    case 5: kernel<D, 5>(__VA_ARGS__); break;              \
    default: kernel<D, 6>(__VA_ARGS__); break;             \
  }

// Rows that share keys and values, each with the same number of query heads.
struct Together {
  int64_t rows, heads;
  const float* query[kQueries];  // row by row
  float* out[kQueries];
  Seen seen[kQueries];  // of each row
};

// scores: room for `room` of each query, a multiple of 16 behind the last key.
template <int D>
TRIMODE_AMX void attend_together(const Together& t, const Half* keys, const Half* values, float* scores,
                                 int64_t room) {
  const int queries = static_cast<int>(t.rows * t.heads), heads = static_cast<int>(t.heads);
  int64_t shared = t.seen[0].prefix;
  for (int64_t r = 1; r < t.rows; ++r) shared = std::min(shared, t.seen[r].prefix);
  TRIMODE_BY_QUERIES(score_keys, D, queries, t.query, keys, t.seen[0], 0, shared, scores, room)
  const float scale = 1.0f / std::sqrt(static_cast<float>(16 * D));
  float totals[kQueries];
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t q = r * heads;
    TRIMODE_BY_QUERIES(score_keys, D, heads, t.query + q, keys, t.seen[r], shared, t.seen[r].count,
                       scores + q * room, room)
    for (int64_t h = q; h < q + heads; ++h) totals[h] = softmax16(scores + h * room, t.seen[r].count, scale);
  }
  for (int q = 0; q < queries; ++q)
    for (int d = 0; d < D; ++d) _mm512_storeu_ps(t.out[q] + 16 * d, _mm512_setzero_ps());
  TRIMODE_BY_QUERIES(add_values, D, queries, scores, room, values, t.seen[0], 0, shared, t.out)
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t q = r * heads;
    TRIMODE_BY_QUERIES(add_values, D, heads, scores + q * room, room, values, t.seen[r], shared, t.seen[r].count,
                       t.out + q)
  }
  for (int q = 0; q < queries; ++q) {
    const __m512 inverse = _mm512_set1_ps(1.0f / totals[q]);
    for (int d = 0; d < D; ++d)
      _mm512_storeu_ps(t.out[q] + 16 * d, _mm512_mul_ps(_mm512_loadu_ps(t.out[q] + 16 * d), inverse));
  }
}

// Queries in one go for heads of this size, 0 where there is no kernel: their sums fill 24 registers.
inline int64_t queries_together(int64_t dim) {
  return dim == 32 || dim == 64 ? kQueries : dim == 128 ? 3 : 0;
}

inline void attend_together(int64_t dim, const Together& t, const Half* keys, const Half* values, float* scores,
                            int64_t room) {
  switch (dim) {
    case 32: return attend_together<2>(t, keys, values, scores, room);
    case 64: return attend_together<4>(t, keys, values, scores, room);
    default: return attend_together<8>(t, keys, values, scores, room);
  }
}

}  // namespace
