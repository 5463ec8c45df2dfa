// Attention of one row on any CPU with AVX2.
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

// One query over the keys it sees. scores: room for count + 8.
void attend(const float* query, const Half* keys, const Half* values, const Seen& seen,
            int64_t dim, float* scores, float* out) {
  const int64_t n = seen.count;
  for (int64_t j = 0; j < n; j += 4) {
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
  float top = scores[0];
  for (int64_t j = 1; j < n; ++j) top = std::max(top, scores[j]);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const __m256 most = _mm256_set1_ps(top), by = _mm256_set1_ps(scale);
  for (int64_t j = n; j % 8; ++j) scores[j] = top;  // defined values; they count as 0 below
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
  const __m256 inverse = _mm256_set1_ps(1.0f / sum(total));
  for (int64_t d = 0; d < dim; d += 64) {
    const int64_t width = std::min<int64_t>(64, dim - d) / 8;
    __m256 acc[8];
    for (auto& a : acc) a = _mm256_setzero_ps();
    for (int64_t j = 0; j < n; ++j) {
      const Half* value = values + seen.place(j) * dim + d;
      const __m256 p = _mm256_set1_ps(scores[j]);
      if (width == 8)
        for (int c = 0; c < 8; ++c)
          acc[c] = _mm256_fmadd_ps(p, widen_halves(value + c * 8), acc[c]);
      else
        for (int c = 0; c < width; ++c)
          acc[c] = _mm256_fmadd_ps(p, widen_halves(value + c * 8), acc[c]);
    }
    for (int c = 0; c < width; ++c)
      _mm256_storeu_ps(out + d + c * 8, _mm256_mul_ps(acc[c], inverse));
  }
}

}  // namespace
