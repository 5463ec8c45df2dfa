// Which instructions this CPU and kernel let us use.
#pragma once

#include <cpuid.h>
#include <cstdint>
#include <immintrin.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Functions so marked hold AVX-512 and AMX instructions; they are called only if `has_amx()`.
#define TRIMODE_AMX \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,avx512bf16,amx-tile,amx-int8,amx-bf16")))

namespace {

__attribute__((target("xsave"))) inline uint64_t enabled_states() { return _xgetbv(0); }

// AVX-512 and tiles of integers and bf16, and the kernel's permission to use the tiles (Linux wants a request).
inline bool find_amx() {
#ifdef __linux__
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  constexpr uint32_t kTiles = 1u << 22 | 1u << 24 | 1u << 25;              // AMX-BF16, -TILE, -INT8
  constexpr uint32_t kAvx512Bf16 = 1u << 5;
  constexpr uint64_t kStates = 0xE0 | 0x60000;                             // AVX-512, tiles
  constexpr long kRequestPermission = 0x1023, kTileData = 18;              // arch_prctl(2)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  if ((enabled_states() & kStates) != kStates) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((b & kAvx512) != kAvx512 || (d & kTiles) != kTiles) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kAvx512Bf16)) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Whether the system keeps the registers of `states`, and CPUID's leaf 7 has the bits of `b` and `c`.
inline bool has_features(uint64_t states, unsigned b_wanted, unsigned c_wanted) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  if ((enabled_states() & states) != states) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & b_wanted) == b_wanted && (c & c_wanted) == c_wanted;
}

// AVX-512 F, DQ, BW, VL and VNNI.
inline bool has_avx512_vnni() {
  static const bool found = has_features(0xE6, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, 1u << 11);
  return found;
}

// VNNI for AVX2's registers.
inline bool has_avx_vnni() {
  unsigned a, b, c, d;
  static const bool found =
      has_features(0x6, 1u << 5, 0) && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
  return found;
}

inline bool has_amx() {
  static const bool found = find_amx();
  return found;
}

}  // namespace
