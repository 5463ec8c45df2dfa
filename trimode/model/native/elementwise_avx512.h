// Norms and activation functions: AVX-512, one row at a time.
#pragma once

#include <cmath>

#include "cpu.h"

namespace {

constexpr float kLog2E = 1.44269504088896341f;

// 2^x, relative error 8e-8 (a polynomial fitted to the fraction).
TRIMODE_AMX inline __m512 exp2_16(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.3276471782e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6755413328e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5507132741e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022119724e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314696706e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000000717f));
  return _mm512_scalef_ps(p, n);
}

// n: a multiple of 16.
TRIMODE_AMX inline void rms_norm16(const float* x, const float* weight, int64_t n, float eps, float* y) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / n + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
    _mm512_storeu_ps(y + i, _mm512_mul_ps(scaled, _mm512_loadu_ps(weight + i)));
  }
}

// silu(gate) * up, into gate; n: a multiple of 16.
TRIMODE_AMX inline void swiglu16(float* gate, const float* up, int64_t n) {
  const __m512 one = _mm512_set1_ps(1.0f), by = _mm512_set1_ps(-kLog2E);
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 g = _mm512_loadu_ps(gate + i);
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exp2_16(_mm512_mul_ps(g, by))));
    _mm512_storeu_ps(gate + i, _mm512_mul_ps(silu, _mm512_loadu_ps(up + i)));
  }
}

}  // namespace
