// What a machine can do at most: bytes read a second, multiply-adds a second. `roofline.py` compiles it.

#include <chrono>
#include <cstdint>
#include <immintrin.h>
#include <initializer_list>
#include <thread>
#include <vector>

namespace {

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// The time of f(thread), of all threads.
template <class F>
double together(int64_t threads, const F& f) {
  std::vector<std::thread> others;
  const double began = seconds();
  for (int64_t t = 1; t < threads; ++t) others.emplace_back([&f, t] { f(t); });
  f(0);
  for (auto& other : others) other.join();
  return seconds() - began;
}

constexpr int64_t kTimes = 20'000'000;  // of twelve instructions

// Twelve chains of one instruction, each in a register of its own: two begin in a cycle and take five. NEXT(s) may use
// a and b.
#define CHAINS(REGISTER, ONE, NEXT)                                        \
  REGISTER a = ONE(1), b = ONE(2), s0 = ONE(0), s1 = s0, s2 = s0, s3 = s0; \
  REGISTER s4 = s0, s5 = s0, s6 = s0, s7 = s0;                             \
  REGISTER s8 = s0, s9 = s0, s10 = s0, s11 = s0;                           \
  for (int64_t i = 0; i < kTimes; ++i) {                                   \
    NEXT(s0) NEXT(s1) NEXT(s2) NEXT(s3) NEXT(s4) NEXT(s5) NEXT(s6) NEXT(s7) \
    NEXT(s8) NEXT(s9) NEXT(s10) NEXT(s11)                                  \
  }                                                                        \
  int out = 0;                                                             \
  for (const REGISTER& s : {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11}) out += reinterpret_cast<const int&>(s); \
  return out;

int avx2() {  // vpmaddubsw and the addition that goes with it: 32 multiply-adds
#define NEXT(s) asm volatile("" : "+x"(a)); s = _mm256_add_epi16(s, _mm256_maddubs_epi16(a, b)); asm volatile("" : "+x"(s));
  CHAINS(__m256i, _mm256_set1_epi8, NEXT)
#undef NEXT
}

__attribute__((target("avx2,avxvnni"))) int avx_vnni() {
#define NEXT(s) s = _mm256_dpbusd_avx_epi32(s, a, b); asm volatile("" : "+x"(s));
  CHAINS(__m256i, _mm256_set1_epi8, NEXT)
#undef NEXT
}

__attribute__((target("avx512f,avx512vnni"))) int avx512_vnni() {
#define NEXT(s) s = _mm512_dpbusd_epi32(s, a, b); asm volatile("" : "+v"(s));
  CHAINS(__m512i, _mm512_set1_epi32, NEXT)
#undef NEXT
}

}  // namespace

extern "C" {

// Bytes a second, of `bytes` that each thread reads its share of, front to back.
double bandwidth(const char* data, int64_t bytes, int64_t threads) {
  std::vector<int> kept(threads);
  const double took = together(threads, [&](int64_t t) {
    __m256i sum = _mm256_setzero_si256();
    for (const char *p = data + bytes / 256 * t / threads * 256, *end = data + bytes / 256 * (t + 1) / threads * 256; p < end;
         p += 256) {
      _mm_prefetch(p + 4096, _MM_HINT_T0);
      _mm_prefetch(p + 4160, _MM_HINT_T0);
      _mm_prefetch(p + 4224, _MM_HINT_T0);
      _mm_prefetch(p + 4288, _MM_HINT_T0);
      for (int c = 0; c < 8; ++c)
        sum = _mm256_xor_si256(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * c)));
    }
    kept[t] = _mm256_extract_epi32(sum, 0);
  });
  return kept[0] == 12345 ? 0 : static_cast<double>(bytes) / took;
}

// Multiply-adds of bytes a second. kind 0: AVX2, 1: AVX-VNNI, 2: AVX-512 VNNI.
double multiply_adds(int64_t kind, int64_t threads) {
  std::vector<int> kept(threads);
  const double took = together(threads, [&](int64_t t) {
    kept[t] = kind == 0 ? avx2() : kind == 1 ? avx_vnni() : avx512_vnni();
  });
  return kept[0] == 12345 ? 0 : static_cast<double>(threads) * kTimes * 12 * (kind == 2 ? 64 : 32) / took;
}
}
