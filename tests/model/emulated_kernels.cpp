// Kernels for sixteen outputs out of two of AVX2's vectors, with the products that AVX-512 VNNI has.

#include "groups.h"
#include "kernels.h"

namespace {

#include "unroll.h"
#include "quads.h"

struct Emulated {
  static constexpr int64_t kLanes = 16;
  static constexpr int kRows = 16;
  struct Floats {
    __m256 a, b;
  };
  struct Integers {
    __m256i a, b;
  };

  static Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Floats load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
  static void store(float* p, Floats v) {
    _mm256_store_ps(p, v.a);
    _mm256_store_ps(p + 8, v.b);
  }
  static Floats load_any(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store_any(float* p, Floats v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
  }
  static Floats same(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static Integers same(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  static Floats plus(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static Floats times(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static Floats negative(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
  }
  static Integers minus(Integers x, Integers y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
  template <int BITS>
  static Integers shifted(Integers x) { return {_mm256_slli_epi32(x.a, BITS), _mm256_slli_epi32(x.b, BITS)}; }
  static Floats floats(Integers x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static Floats halves(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
  }
  static Floats bytes(const uint8_t* p) {
    alignas(32) float v[16];
    for (int i = 0; i < 16; ++i) v[i] = p[i];
    return load(v);
  }
  static Floats signed_bytes(const uint8_t* p) {
    alignas(32) float v[16];
    for (int i = 0; i < 16; ++i) v[i] = static_cast<int8_t>(p[i]);
    return load(v);
  }
  static Integers read(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
  }
  static Integers masked(Integers x, char byte) {
    const __m256i m = _mm256_set1_epi8(byte);
    return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
  }
  static Integers either(Integers x, Integers y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
  template <int N>
  static Integers left(Integers x) { return {_mm256_slli_epi16(x.a, N), _mm256_slli_epi16(x.b, N)}; }
  template <int N>
  static Integers right(Integers x) { return {_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N)}; }
  static Integers nibbles(Integers upper, Integers lower) {
    const __m256i m = _mm256_set1_epi8(15);
    return either(masked(lower, 15), {_mm256_andnot_si256(m, upper.a), _mm256_andnot_si256(m, upper.b)});
  }
  static Floats root(Floats x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
  static float highest(Floats x) {
    alignas(32) float v[16];
    store(v, x);
    return *std::max_element(v, v + 16);
  }
  static Integers four(const int8_t* p) {
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return same(v);
  }
  static Integers product(Integers sum, Integers values, Integers x) {
    alignas(32) uint8_t v[64];
    alignas(32) int8_t w[64];
    alignas(32) int32_t s[16];
    std::memcpy(v, &values, 64);
    std::memcpy(w, &x, 64);
    std::memcpy(s, &sum, 64);
    for (int i = 0; i < 64; ++i) s[i / 4] += v[i] * w[i];
    std::memcpy(&sum, s, 64);
    return sum;
  }
};

using V = Vnni<Emulated>;
#include "linear_groups.h"

}  // namespace

const Kernels kEmulated{"emulated", kLanes, kStripRows, strip_bounds, 16};
