// Linears on any CPU with AVX2: plain weights, int16 activations.
#pragma once

#include <immintrin.h>

#include "elementwise.h"

namespace {

inline __m256i widen(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m256i load(const int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline __m128i sums(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

float quantise(const float* x, int64_t k, int16_t* q) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 tops = _mm256_setzero_ps();
  for (int64_t i = 0; i < k; i += 8)
    tops = _mm256_max_ps(tops, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
  const float top = highest(tops);
  const __m256 inverse = _mm256_set1_ps(top > 0 ? levels(k) / top : 0.0f);
  for (int64_t i = 0; i < k; i += 8) {
    const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
    const __m128i p = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), p);
  }
  return top / levels(k);
}

inline void put(const Linear& l, float* y, int64_t n, int32_t product, float scale, bool add) {
  float value = static_cast<float>(product) * (scale * l.scale[n]);
  if (l.bias) value += l.bias[n];
  y[n] = add ? y[n] + value : value;
}

// MR rows of one column. Eight sums leave room in the 16 registers, and the weights are read in one
// straight line, which is what the memory prefetcher follows: wider tiles were slower (docs/lab.md).
template <int MR>
inline void tile(const Linear& l, const Quantised& x, const Rows& rows, int64_t i, int64_t n,
                 const Target& target) {
  const int16_t* xs[MR];
  for (int m = 0; m < MR; ++m) xs[m] = x.values + rows.in(i + m) * x.stride;
  const int8_t* w = l.weight + n * l.in;
  __m256i acc[MR];
  for (int m = 0; m < MR; ++m) acc[m] = _mm256_setzero_si256();
  for (int64_t k = 0; k < l.in; k += 16) {
    const __m256i weights = widen(w + k);
    for (int m = 0; m < MR; ++m)
      acc[m] = _mm256_add_epi32(acc[m], _mm256_madd_epi16(weights, load(xs[m] + k)));
  }
  alignas(16) int32_t products[8];
  const __m256i zero = _mm256_setzero_si256();
  for (int j = 0; j < MR; j += 4) {
    const __m128i four = sums(acc[j], j + 1 < MR ? acc[j + 1] : zero, j + 2 < MR ? acc[j + 2] : zero,
                              j + 3 < MR ? acc[j + 3] : zero);
    _mm_store_si128(reinterpret_cast<__m128i*>(products + j), four);
  }
  for (int m = 0; m < MR; ++m)
    put(l, target.y + rows.out(i + m) * target.stride, n, products[m], x.scale[rows.in(i + m)],
        target.add);
}

constexpr int kRows = 8;            // of a tile
constexpr int64_t kStrip = 12;     // columns whose weights stay in L1 while rows pass over them
constexpr int64_t kRowChunk = 64;  // rows whose activations stay in L2
constexpr int64_t kAhead = 1024;   // bytes to prefetch ahead

// One row: bound by memory, so the weights are read in one straight line.
void single(const Linear& l, const Quantised& x, const Rows& rows, int64_t first, int64_t last,
            const Target& target) {
  const int16_t* values = x.values + rows.in(0) * x.stride;
  float* y = target.y + rows.out(0) * target.stride;
  const float scale = x.scale[rows.in(0)];
  for (int64_t n = first; n < last; ++n) {
    const int8_t* w = l.weight + n * l.in;
    __m256i acc[4];
    for (auto& a : acc) a = _mm256_setzero_si256();
    int64_t k = 0;
    for (; k + 64 <= l.in; k += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w + k + kAhead), _MM_HINT_T0);
      for (int c = 0; c < 4; ++c)
        acc[c] = _mm256_add_epi32(
            acc[c], _mm256_madd_epi16(widen(w + k + 16 * c), load(values + k + 16 * c)));
    }
    for (; k < l.in; k += 16)
      acc[0] = _mm256_add_epi32(acc[0], _mm256_madd_epi16(widen(w + k), load(values + k)));
    const __m256i all = _mm256_add_epi32(_mm256_add_epi32(acc[0], acc[1]),
                                         _mm256_add_epi32(acc[2], acc[3]));
    const __m256i zero = _mm256_setzero_si256();
    put(l, y, n, _mm_cvtsi128_si32(sums(all, zero, zero, zero)), scale, target.add);
  }
}

// The last few rows of a chunk, fewer than a tile has.
template <int MR>
inline void last_rows(const Linear& l, const Quantised& x, const Rows& rows, int64_t i, int64_t end,
                      int64_t first, int64_t last, const Target& target) {
  if constexpr (MR > 0) {
    if (end - i == MR) {
      for (int64_t n = first; n < last; ++n) tile<MR>(l, x, rows, i, n, target);
      return;
    }
    last_rows<MR - 1>(l, x, rows, i, end, first, last, target);
  }
}

// Columns first..last of a product, by one thread.
__attribute__((noinline)) void columns(const Linear& l, const Quantised& x, const Rows& rows, int64_t first, int64_t last,
             const Target& target) {
  if (rows.count == 1) return single(l, x, rows, first, last, target);
  for (int64_t chunk = 0; chunk < rows.count; chunk += kRowChunk) {
    const int64_t end = std::min(rows.count, chunk + kRowChunk);
    for (int64_t n = first; n < last; n += kStrip) {
      const int64_t stop = std::min(last, n + kStrip);
      int64_t i = chunk;
      for (; i + kRows <= end; i += kRows)
        for (int64_t c = n; c < stop; ++c) tile<kRows>(l, x, rows, i, c, target);
      last_rows<kRows - 1>(l, x, rows, i, end, n, stop, target);
    }
  }
}

}  // namespace
