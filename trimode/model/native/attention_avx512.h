// Attention of one row by AVX-512: the query heads of a key head share the reading of its keys.
//
// The sums of a query run in an order of their own, as in attention.h: how many heads or rows are
// computed beside it changes nothing.
#pragma once

#include "attention.h"
#include "cpu.h"

namespace {

constexpr int kQueries = 4;  // of one row, at most, in one go

// e^x as in `exp8`.
TRIMODE_AMX inline __m512 exp16(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(88.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(p, _mm512_castsi512_ps(power));
}

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

// Q queries of one row that share keys [.., 16 * D] and values. query, out: [Q, 16 * D] together.
template <int D, int Q>
TRIMODE_AMX void attend512(const float* query, const float* keys, const float* values, const Seen& seen,
                           float* scores, int64_t room, float* out) {
  constexpr int64_t dim = 16 * D;
  alignas(64) float parts[Q][16 * 16];
  const int64_t n = seen.count;
  for (int64_t j = 0; j < n; j += 16) {
    for (int c = 0; c < 16; ++c) {
      const float* key = keys + seen.place(std::min(j + c, n - 1)) * dim;
      __m512 k[D];
      for (int d = 0; d < D; ++d) k[d] = _mm512_loadu_ps(key + 16 * d);
      for (int q = 0; q < Q; ++q) {
        __m512 acc = _mm512_mul_ps(_mm512_loadu_ps(query + q * dim), k[0]);
        for (int d = 1; d < D; ++d) acc = _mm512_fmadd_ps(_mm512_loadu_ps(query + q * dim + 16 * d), k[d], acc);
        _mm512_store_ps(parts[q] + 16 * c, acc);
      }
    }
    for (int q = 0; q < Q; ++q) _mm512_storeu_ps(scores + q * room + j, sums16(parts[q]));
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  float totals[Q];
  for (int q = 0; q < Q; ++q) totals[q] = softmax16(scores + q * room, n, scale);
  __m512 acc[Q][D];
  for (int q = 0; q < Q; ++q)
    for (int d = 0; d < D; ++d) acc[q][d] = _mm512_setzero_ps();
  for (int64_t j = 0; j < n; ++j) {
    const float* value = values + seen.place(j) * dim;
    __m512 v[D];
    for (int d = 0; d < D; ++d) v[d] = _mm512_loadu_ps(value + 16 * d);
    for (int q = 0; q < Q; ++q) {
      const __m512 p = _mm512_set1_ps(scores[q * room + j]);
      for (int d = 0; d < D; ++d) acc[q][d] = _mm512_fmadd_ps(p, v[d], acc[q][d]);
    }
  }
  for (int q = 0; q < Q; ++q) {
    const __m512 inverse = _mm512_set1_ps(1.0f / totals[q]);
    for (int d = 0; d < D; ++d) _mm512_storeu_ps(out + q * dim + 16 * d, _mm512_mul_ps(acc[q][d], inverse));
  }
}

template <int D>
void attend512(int queries, const float* query, const float* keys, const float* values, const Seen& seen,
               float* scores, int64_t room, float* out) {
  switch (queries) {
    case 1: return attend512<D, 1>(query, keys, values, seen, scores, room, out);
    case 2: return attend512<D, 2>(query, keys, values, seen, scores, room, out);
    case 3: return attend512<D, 3>(query, keys, values, seen, scores, room, out);
    default: return attend512<D, 4>(query, keys, values, seen, scores, room, out);
  }
}

// Whether there is a kernel for heads of this size.
inline bool fits_avx512(int64_t dim) { return dim == 32 || dim == 64 || dim == 128; }

// The `queries` (at most kQueries) of one row that share a key head.
inline void attend_group(int queries, int64_t dim, const float* query, const float* keys, const float* values,
                         const Seen& seen, float* scores, int64_t room, float* out) {
  switch (dim) {
    case 32: return attend512<2>(queries, query, keys, values, seen, scores, room, out);
    case 64: return attend512<4>(queries, query, keys, values, seen, scores, room, out);
    default: return attend512<8>(queries, query, keys, values, seen, scores, room, out);
  }
}

}  // namespace
