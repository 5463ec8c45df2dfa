// Kernels for weights in groups, one set for each set of instructions, and the choice among them.
#pragma once

#include <vector>

#include "cpu.h"
#include "groups.h"

namespace {

// Functions after it may use more instructions than the rest of the library.
#ifdef __clang__
#define TRIMODE_PRAGMA(x) _Pragma(#x)
#define TRIMODE_BEGIN(set) TRIMODE_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define TRIMODE_END _Pragma("clang attribute pop")
#else
#define TRIMODE_PRAGMA(x) _Pragma(#x)
#define TRIMODE_BEGIN(set) _Pragma("GCC push_options") TRIMODE_PRAGMA(GCC target(set))
#define TRIMODE_END _Pragma("GCC pop_options")
#endif

namespace avx2 {
#include "unroll.h"
#include "quads.h"
#include "vectors_avx2.h"
using V = Avx2;
#include "linear_groups.h"
}  // namespace avx2

TRIMODE_BEGIN("avx2,fma,f16c,avxvnni")
namespace avx_vnni {
#include "unroll.h"
#include "quads.h"
#include "vectors_avx2.h"
#include "vectors_vnni.h"
using V = Vnni<AvxVnni>;
#include "linear_groups.h"
}  // namespace avx_vnni
TRIMODE_END

#define TRIMODE_WIDE
TRIMODE_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
namespace avx512_vnni {
#include "unroll.h"
#include "quads.h"
#include "vectors_vnni.h"
using V = Vnni<Avx512>;
#include "linear_groups.h"
}  // namespace avx512_vnni
TRIMODE_END
#undef TRIMODE_WIDE

#ifdef TRIMODE_EMULATE  // a file with sixteen outputs out of AVX2's vectors, for tests on machines without AVX-512
namespace emulated {
#include "unroll.h"
#include "quads.h"
#include TRIMODE_EMULATE
using V = Vnni<Emulated>;
#include "linear_groups.h"
}  // namespace emulated
#endif

struct Kernels {
  const char* name;
  int64_t lanes;  // outputs of a strip
  const StripRows* rows;
  StripBounds bounds;
  int64_t screened;  // most rows for which it pays to look for the highest output by bounds
};

// Those that this machine can run, the fastest last.
inline const std::vector<Kernels>& all_kernels() {
  static const std::vector<Kernels> found = [] {
    std::vector<Kernels> all{{"AVX2", avx2::kLanes, avx2::kStripRows, avx2::strip_bounds, 16}};
    if (has_avx_vnni())
      all.push_back({"AVX-VNNI", avx_vnni::kLanes, avx_vnni::kStripRows, avx_vnni::strip_bounds, 2});
    if (has_avx512_vnni())
      all.push_back({"AVX-512 VNNI", avx512_vnni::kLanes, avx512_vnni::kStripRows, avx512_vnni::strip_bounds, 4});
#ifdef TRIMODE_EMULATE
    all.push_back({"emulated", emulated::kLanes, emulated::kStripRows, emulated::strip_bounds, 16});
#endif
    return all;
  }();
  return found;
}

// Those in use.
inline Kernels& kernels() {
  static Kernels used = all_kernels().back();
  return used;
}

}  // namespace
