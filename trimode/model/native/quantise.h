// Floats to blocks of a file: Q4_1 and Q8_0. The PyTorch code in `quantised.py` does the same, slowly.
#pragma once

#include "elementwise.h"
#include "groups.h"

namespace {

// Types of floats, by their numbers in Python.
enum class FloatType : int64_t { fp32, fp16, bf16 };

void widen_floats(FloatType type, const void* from, int64_t n, float* to) {
  const auto* halves = static_cast<const uint16_t*>(from);
  if (type == FloatType::fp32) {
    std::memcpy(to, from, n * sizeof *to);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(halves[i]) << 16;
    if (type == FloatType::fp16)
      to[i] = _cvtsh_ss(halves[i]);
    else
      std::memcpy(to + i, &bits, sizeof bits);
  }
}

inline uint16_t half_of(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

// 32 floats.
struct Floats32 {
  __m256 v[4];
  explicit Floats32(const float* x) {
    for (int c = 0; c < 4; ++c) v[c] = _mm256_loadu_ps(x + 8 * c);
  }
  template <class F>
  float sum_of(const F& f) const {
    return sum(_mm256_add_ps(_mm256_add_ps(f(0), f(1)), _mm256_add_ps(f(2), f(3))));
  }
};

inline float lane_extreme(const Floats32& x, bool largest) {
  __m256 found = x.v[0];
  for (int c = 1; c < 4; ++c) found = largest ? _mm256_max_ps(found, x.v[c]) : _mm256_min_ps(found, x.v[c]);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, found);
  float best = lanes[0];
  for (float lane : lanes) best = largest ? std::max(best, lane) : std::min(best, lane);
  return best;
}

// Whole numbers 0..15 nearest to (x - minimum) / scale.
inline void four_bits(const Floats32& x, float scale, float minimum, __m256* q) {
  const __m256 inverse = _mm256_set1_ps(scale != 0 ? 1 / scale : 0), low = _mm256_set1_ps(minimum);
  for (int c = 0; c < 4; ++c) {
    const __m256 steps = _mm256_round_ps(_mm256_mul_ps(_mm256_sub_ps(x.v[c], low), inverse),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    q[c] = _mm256_min_ps(_mm256_max_ps(steps, _mm256_setzero_ps()), _mm256_set1_ps(15));
  }
}

inline float squared_error(const Floats32& x, float scale, float minimum, const __m256* q) {
  return x.sum_of([&](int c) {
    const __m256 back = _mm256_add_ps(_mm256_mul_ps(q[c], _mm256_set1_ps(scale)), _mm256_set1_ps(minimum));
    const __m256 off = _mm256_sub_ps(back, x.v[c]);
    return _mm256_mul_ps(off, off);
  });
}

// To the nearest between the least and the largest, then what least squares make of a few narrower and wider
// ranges: the best one is kept. After `make_qkx2_quants` of ggml in idea.
void to_q4_1(const float* from, uint8_t* block) {
  const Floats32 x(from);
  const float low = lane_extreme(x, false), high = lane_extreme(x, true);
  float scale = _cvtsh_ss(half_of((high - low) / 15)), minimum = _cvtsh_ss(half_of(low));
  __m256 q[4], best[4];
  four_bits(x, scale, minimum, best);
  float least = squared_error(x, scale, minimum, best);
  const float total = x.sum_of([&](int c) { return x.v[c]; });
  for (int candidate = 0; candidate < 9 && high > low; ++candidate) {
    float d = (high - low) / (13 + 0.5f * static_cast<float>(candidate)), m = low;
    for (int round = 0; round < 2; ++round) {
      four_bits(x, d, m, q);
      const float n = x.sum_of([&](int c) { return q[c]; });
      const float squares = x.sum_of([&](int c) { return _mm256_mul_ps(q[c], q[c]); });
      const float products = x.sum_of([&](int c) { return _mm256_mul_ps(q[c], x.v[c]); });
      const float spread = 32 * squares - n * n;
      d = spread > 0 ? (32 * products - total * n) / spread : 0;
      m = (total - d * n) / 32;
    }
    d = _cvtsh_ss(half_of(d)), m = _cvtsh_ss(half_of(m));
    four_bits(x, d, m, q);
    const float error = squared_error(x, d, m, q);
    if (!(error < least)) continue;
    least = error, scale = d, minimum = m;
    for (int c = 0; c < 4; ++c) best[c] = q[c];
  }
  const uint16_t halves[2] = {half_of(scale), half_of(minimum)};
  std::memcpy(block, halves, 4);
  alignas(32) float values[kGroup];
  for (int c = 0; c < 4; ++c) _mm256_store_ps(values + 8 * c, best[c]);
  for (int i = 0; i < 16; ++i)
    block[4 + i] = static_cast<uint8_t>(static_cast<int>(values[i]) | static_cast<int>(values[16 + i]) << 4);
}

void to_q8_0(const float* x, uint8_t* block) {
  float top = 0;
  for (int64_t i = 0; i < kGroup; ++i) top = std::max(top, std::fabs(x[i]));
  const uint16_t half = half_of(top / 127);
  const float scale = _cvtsh_ss(half), inverse = scale != 0 ? 1 / scale : 0;
  std::memcpy(block, &half, 2);
  for (int64_t i = 0; i < kGroup; ++i) {
    const float steps = std::nearbyint(x[i] * inverse);
    block[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::max(-127.0f, std::min(127.0f, steps))));
  }
}

// A row of k weights to blocks; a last group that is not full gets zeros.
void quantise_weights(Kind kind, FloatType type, const void* row, int64_t k, uint8_t* blocks) {
  const int64_t size = type == FloatType::fp32 ? 4 : 2;
  float x[kGroup];
  for (int64_t i = 0; i < k; i += kGroup, blocks += kForms[kind].block_bytes) {
    std::memset(x, 0, sizeof x);
    widen_floats(type, static_cast<const char*>(row) + i * size, std::min(kGroup, k - i), x);
    kind == Q8_0 ? to_q8_0(x, blocks) : to_q4_1(x, blocks);
  }
}

}  // namespace
