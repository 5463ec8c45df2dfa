// Kernels for weights in groups: one set for each set of instructions, a file of its own each, and the choice among
// them.
#pragma once

#include <vector>

#include "cpu.h"
#include "types.h"

// Rows first..last of the product of strips of one kind, which lie one after the other.
using StripRows = void (*)(const Strip*, const Strip* end, const Linear&, const GroupRows&, int64_t first,
                           int64_t last, const Rows&, const Target&);

// Bounds of the products of strips that lie one after the other: see screen.h. tops: of these strips; those of
// the next row are `stride` further on.
using StripBounds = void (*)(const Strip*, const Strip* end, const GroupRows&, const float* spread, int64_t rows,
                             int64_t excluded, float* tops, int64_t stride);

struct Kernels {
  const char* name;
  int64_t lanes;          // outputs of a strip
  const StripRows* rows;  // by the strip's kind
  StripBounds bounds;
  int64_t screened;  // most rows for which it pays to look for the highest output by bounds
};

extern const Kernels kAvx2, kAvxVnni, kAvx512Vnni;
#ifdef TRIMODE_EMULATED  // of sixteen outputs out of AVX2's vectors, for tests on machines without AVX-512
extern const Kernels kEmulated;
#endif

namespace {

// Those that this machine can run, the fastest last.
inline const std::vector<Kernels>& all_kernels() {
  static const std::vector<Kernels> found = [] {
    std::vector<Kernels> all{kAvx2};
    if (has_avx_vnni()) all.push_back(kAvxVnni);
    if (has_avx512_vnni()) all.push_back(kAvx512Vnni);
#ifdef TRIMODE_EMULATED
    all.push_back(kEmulated);
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
