// What a machine can do at most: bytes read a second, multiply-adds a second. `roofline.py` compiles it.

#include <chrono>
#include <cstdint>
#include <immintrin.h>
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

constexpr int64_t kTimes = 30'000'000;  // of eight instructions
#define EIGHT(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7)

// vpmaddubsw and the addition that goes with it: 32 multiply-adds each, eight chains.
int avx2() {
  __m256i sum[8] = {}, a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2);
  for (int64_t i = 0; i < kTimes; ++i) {
#define STEP(n) sum[n] = _mm256_add_epi16(sum[n], _mm256_maddubs_epi16(a, b)); asm volatile("" : "+x"(sum[n]), "+x"(a));
    EIGHT(STEP)
#undef STEP
  }
  int out = 0;
  for (auto& s : sum) out += _mm256_extract_epi32(s, 0);
  return out;
}

__attribute__((target("avx512f,avx512vnni"))) int avx512_vnni() {
  __m512i sum[8] = {}, a = _mm512_set1_epi32(1), b = _mm512_set1_epi32(2);
  for (int64_t i = 0; i < kTimes; ++i) {
#define STEP(n) sum[n] = _mm512_dpbusd_epi32(sum[n], a, b); asm volatile("" : "+v"(sum[n]));
    EIGHT(STEP)
#undef STEP
  }
  int out = 0;
  for (auto& s : sum) out += _mm_extract_epi32(_mm512_castsi512_si128(s), 0);
  return out;
}

__attribute__((target("avx2,avxvnni"))) int avx_vnni() {
  __m256i sum[8] = {}, a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2);
  for (int64_t i = 0; i < kTimes; ++i) {
#define STEP(n) sum[n] = _mm256_dpbusd_avx_epi32(sum[n], a, b); asm volatile("" : "+x"(sum[n]));
    EIGHT(STEP)
#undef STEP
  }
  int out = 0;
  for (auto& s : sum) out += _mm256_extract_epi32(s, 0);
  return out;
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
  return kept[0] == 12345 ? 0 : static_cast<double>(threads) * kTimes * 8 * (kind == 2 ? 64 : 32) / took;
}
}
