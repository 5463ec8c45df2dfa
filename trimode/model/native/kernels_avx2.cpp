// Kernels for AVX2.

#include "groups.h"
#include "kernels.h"

namespace {

#include "unroll.h"
#include "quads.h"
#include "vectors_avx2.h"
using V = Avx2;
#include "linear_groups.h"

}  // namespace

const Kernels kAvx2{"AVX2", kLanes, kStripRows, strip_bounds, 16};
