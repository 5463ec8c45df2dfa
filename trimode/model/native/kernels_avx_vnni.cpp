// Kernels for AVX-VNNI: AVX2's vectors and one instruction more.

#include "groups.h"
#include "kernels.h"
#include "target.h"

TRIMODE_BEGIN("avx2,fma,f16c,avxvnni")
namespace {

#include "unroll.h"
#include "quads.h"
#include "vectors_avx2.h"

struct AvxVnni : Avx2 {
  static constexpr int kRows = 8;
  static Integers product(Integers sum, Integers values, Integers x) {
    return _mm256_dpbusd_avx_epi32(sum, values, x);
  }
};

using V = Vnni<AvxVnni>;
#include "linear_groups.h"

}  // namespace
TRIMODE_END

const Kernels kAvxVnni{"AVX-VNNI", kLanes, kStripRows, strip_bounds, 2};
