// Kernels for AVX-512 VNNI.

#include "groups.h"
#include "kernels.h"
#include "target.h"

TRIMODE_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
namespace {

#include "unroll.h"
#include "quads.h"

// Vectors of sixteen outputs.
struct Avx512 {
  static constexpr int64_t kLanes = 16;
  static constexpr int kRows = 16;  // whose sums fit in the registers, a divisor of kTileHeight
  using Floats = __m512;
  using Integers = __m512i;

  static Floats zeros() { return _mm512_setzero_ps(); }
  static Floats load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, Floats v) { _mm512_store_ps(p, v); }
  static Floats load_any(const float* p) { return _mm512_loadu_ps(p); }  // at any address
  static void store_any(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static Floats same(float v) { return _mm512_set1_ps(v); }
  static Integers same(int32_t v) { return _mm512_set1_epi32(v); }
  static Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats negative(Floats a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
  static Integers minus(Integers a, Integers b) { return _mm512_sub_epi32(a, b); }
  template <int BITS>
  static Integers shifted(Integers a) { return _mm512_slli_epi32(a, BITS); }
  static Floats floats(Integers a) { return _mm512_cvtepi32_ps(a); }
  static Floats halves(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats bytes(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static Floats signed_bytes(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static Integers read(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Integers masked(Integers a, char byte) { return _mm512_and_si512(a, _mm512_set1_epi8(byte)); }
  static Integers either(Integers a, Integers b) { return _mm512_or_si512(a, b); }
  template <int N>
  static Integers left(Integers a) { return _mm512_slli_epi16(a, N); }
  template <int N>
  static Integers right(Integers a) { return _mm512_srli_epi16(a, N); }
  // Bytes of two nibbles: the upper ones of `upper`, the lower ones of `lower`.
  static Integers nibbles(Integers upper, Integers lower) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), lower, upper, 0xCA);
  }
  static Floats root(Floats a) { return _mm512_sqrt_ps(a); }
  static float highest(Floats a) { return _mm512_reduce_max_ps(a); }
  static Integers four(const int8_t* p) {
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
  }
  static Integers product(Integers sum, Integers values, Integers x) { return _mm512_dpbusd_epi32(sum, values, x); }
};

using V = Vnni<Avx512>;
#include "linear_groups.h"

}  // namespace
TRIMODE_END

const Kernels kAvx512Vnni{"AVX-512 VNNI", kLanes, kStripRows, strip_bounds, 4};
