// Weights in groups, as GGUF files hold them, and activations in groups of 32.
//
// A weight is scale * (value - offset) + minimum, an activation scale * value. So a group of a product is
// weight scale * activation scale * (exact integer) + minimum * (activation scale * sum of the activations),
// and a product is the sum of its groups in order, without fused operations.
#pragma once

#include <cmath>
#include <cstring>
#include <immintrin.h>

#include <utility>
#include <vector>

#include "elementwise.h"

namespace {

template <int I>
struct Number {
  constexpr operator int() const { return I; }
};

constexpr int64_t kGroup = 32;      // inputs whose activations share a scale
constexpr int64_t kTileHeight = 16;  // rows whose activations lie together
constexpr int64_t kSuper = 8;       // groups of a block of 256 weights

// Kinds of blocks, in the order of Python's `BLOCK_KINDS`.
enum Kind { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, kKinds };

struct Form {
  int bits;      // of a value
  int shift;     // log2 of the offset; 0: no offset
  bool minimum;  // each group has one
  bool super;    // scales (and minima) are bytes; a block has their factors
  bool halves;   // each half of a group has a scale
  int64_t block_bytes, block_groups;  // of a block in a file
};
constexpr Form kForms[kKinds] = {
    {4, 3, false, false, false, 18, 1},  // Q4_0
    {4, 0, true, false, false, 20, 1},   // Q4_1
    {5, 4, false, false, false, 22, 1},  // Q5_0
    {5, 0, true, false, false, 24, 1},   // Q5_1
    {8, 7, false, false, false, 34, 1},  // Q8_0
    {4, 0, true, true, false, 144, 8},   // Q4_K
    {5, 0, true, true, false, 176, 8},   // Q5_K
    {6, 5, false, true, true, 210, 8},   // Q6_K
};

// A strip: `lanes` outputs, group after group. A group is its values, then its scales (and minima), of all
// lanes each; a block's factors come before its first group. Values: bytes of four inputs of each lane, in four
// registers of nibbles, inputs 4 j.. low and 16 + 4 j.. high, then what is above four bits:
//   5 bits: a register whose bit j belongs to inputs 4 j..;
//   6 bits: two registers, two bits for each four inputs.
// Of 8 bits these nibbles are the upper ones. The lower ones, laid out alike, come after the last strip of a
// matrix, so that the upper ones can be read alone; see screen.h.
constexpr int64_t value_bytes(const Form& f, int64_t lanes) { return 4 * (f.bits == 8 ? 4 : f.bits) * lanes; }
constexpr int64_t lower_bytes(const Form& f, int64_t lanes) { return f.bits == 8 ? 16 * lanes : 0; }  // of a group
constexpr int64_t group_bytes(const Form& f, int64_t lanes) {
  return value_bytes(f, lanes) + lanes * (f.super || !f.minimum ? 2 : 4);
}
constexpr int64_t factor_bytes(const Form& f, int64_t lanes) {
  return f.super ? lanes * (f.minimum ? 4 : 2) : 0;
}
inline int64_t strip_bytes(const Form& f, int64_t lanes, int64_t groups) {
  return groups * group_bytes(f, lanes) + (groups + kSuper - 1) / kSuper * factor_bytes(f, lanes);
}

// Quantises a row of k activations, from float at row i of `rows`.
void quantise_groups(const float* x, int64_t k, const GroupRows& rows, int64_t i) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  alignas(32) float last[kGroup];
  for (int64_t g = 0; g < rows.groups; ++g) {
    const float* v = x + g * kGroup;
    if (k - g * kGroup < kGroup) {
      std::memset(last, 0, sizeof last);
      std::memcpy(last, v, (k - g * kGroup) * sizeof *v);
      v = last;
    }
    __m256 f[4], tops = _mm256_setzero_ps();
    for (int c = 0; c < 4; ++c) {
      f[c] = _mm256_loadu_ps(v + 8 * c);
      tops = _mm256_max_ps(tops, _mm256_andnot_ps(sign, f[c]));
    }
    const float top = highest(tops);
    const __m256 inverse = _mm256_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    __m256i n[4];
    for (int c = 0; c < 4; ++c) n[c] = _mm256_cvtps_epi32(_mm256_mul_ps(f[c], inverse));
    const auto total = [](__m256i a, __m256i b) {
      const __m256i both = _mm256_add_epi32(a, b);
      __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
      four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
      return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
    };
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const int64_t at = rows.at(i, g);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows.value + at * kGroup), bytes);
    GroupInfo& info = rows.info[at];
    info.first = total(n[0], n[1]);
    info.total = info.first + total(n[2], n[3]);
    info.scale = top / 127.0f;
    info.scaled_total = info.scale * static_cast<float>(info.total);
  }
}

// Rows that are not the first ones are gathered first, by each thread for itself.
inline GroupRows gathered(const GroupRows& x, const Rows& rows) {
  bool in_place = true;
  for (int64_t i = 0; rows.from && i < rows.count; ++i) in_place &= rows.in(i) == i;
  if (in_place) return x;
  thread_local std::vector<int8_t> values;
  thread_local std::vector<GroupInfo> infos;
  GroupRows found{nullptr, nullptr, x.groups, std::min(rows.count, kTileHeight)};
  const size_t wanted = found.size(rows.count);
  if (infos.size() < wanted) values.resize(wanted * kGroup), infos.resize(wanted);
  found.value = values.data();
  found.info = infos.data();
  for (int64_t i = 0; i < rows.count; ++i)
    for (int64_t g = 0; g < x.groups; ++g) {
      const int64_t from = x.at(rows.in(i), g), to = found.at(i, g);
      std::memcpy(found.value + to * kGroup, x.value + from * kGroup, kGroup);
      found.info[to] = x.info[from];
    }
  return found;
}

// A group of a block of a file: 32 values, and scales and minima as they are stored.
struct StoredGroup {
  uint8_t value[kGroup];
  uint16_t scale, minimum;  // fp16; or one byte each: scale and minimum, or the scales of both halves
};

StoredGroup read_group(Kind kind, const uint8_t* block, int64_t g) {
  StoredGroup found{};
  const auto half = [&](int64_t at) {
    uint16_t bits;
    std::memcpy(&bits, block + at, sizeof bits);
    return bits;
  };
  const auto nibbles = [&](const uint8_t* from) {
    for (int i = 0; i < 16; ++i) found.value[i] = from[i] & 15, found.value[16 + i] = from[i] >> 4;
  };
  const auto fifth = [&](const uint8_t* from) {
    for (int i = 0; i < 32; ++i) found.value[i] |= (from[i / 8] >> (i % 8) & 1) << 4;
  };
  const auto bytes = [&]() {  // of Q4_K and Q5_K: 6 bits each, over 12 bytes
    const uint8_t* s = block + 4;
    found.scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    found.minimum = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | (s[g] >> 6) << 4;
  };
  switch (kind) {
    case Q4_0: found.scale = half(0), nibbles(block + 2); break;
    case Q4_1: found.scale = half(0), found.minimum = half(2), nibbles(block + 4); break;
    case Q5_0: found.scale = half(0), nibbles(block + 6), fifth(block + 2); break;
    case Q5_1: found.scale = half(0), found.minimum = half(2), nibbles(block + 8), fifth(block + 4); break;
    case Q8_0:
      found.scale = half(0);
      for (int i = 0; i < 32; ++i) found.value[i] = block[2 + i] ^ 128;
      break;
    case Q4_K:
    case Q5_K: {
      bytes();
      const uint8_t* low = block + (kind == Q4_K ? 16 : 48) + g / 2 * 32;
      for (int i = 0; i < 32; ++i) found.value[i] = low[i] >> (g % 2 * 4) & 15;
      if (kind == Q5_K)
        for (int i = 0; i < 32; ++i) found.value[i] |= (block[16 + i] >> g & 1) << 4;
      break;
    }
    case Q6_K: {
      const uint8_t *low = block + g / 4 * 64 + g % 2 * 32, *high = block + 128 + g / 4 * 32;
      for (int i = 0; i < 32; ++i)
        found.value[i] = (low[i] >> (g % 4 / 2 * 4) & 15) | (high[i] >> (g % 4 * 2) & 3) << 4;
      found.scale = block[192 + 2 * g], found.minimum = block[193 + 2 * g];
      break;
    }
    default: break;
  }
  return found;
}

// Fp16 factors of a block of 256: of the scales, and of the minima.
inline uint16_t block_factor(Kind kind, const uint8_t* block, int which) {
  uint16_t bits;
  std::memcpy(&bits, block + (kind == Q6_K ? 208 : 2 * which), sizeof bits);
  return bits;
}

// The first k weights of a row of a file's blocks, in floats.
void unpack_blocks(Kind kind, const uint8_t* blocks, int64_t k, float* out) {
  const Form& f = kForms[kind];
  for (int64_t g = 0; g * kGroup < k; ++g) {
    const uint8_t* block = blocks + g / f.block_groups * f.block_bytes;
    const StoredGroup stored = read_group(kind, block, g % f.block_groups);
    const float factor = f.super ? _cvtsh_ss(block_factor(kind, block, 0)) : 0;
    float scale[2], minimum = 0;
    if (!f.super) {
      scale[0] = scale[1] = _cvtsh_ss(stored.scale);
      minimum = _cvtsh_ss(stored.minimum);
    } else if (f.halves) {
      scale[0] = factor * static_cast<int8_t>(stored.scale);
      scale[1] = factor * static_cast<int8_t>(stored.minimum);
    } else {
      scale[0] = scale[1] = factor * stored.scale;
      minimum = -(_cvtsh_ss(block_factor(kind, block, 1)) * stored.minimum);
    }
    const int offset = f.shift ? 1 << f.shift : 0;
    for (int64_t i = 0; i < std::min(kGroup, k - g * kGroup); ++i) {
      const float product = static_cast<float>(stored.value[i] - offset) * scale[i / 16];
      out[g * kGroup + i] = f.minimum ? product + minimum : product;
    }
  }
}

// Where input i of a lane lies among the values of a group: its nibble's byte, and its bits above the fourth.
inline int64_t value_at(int64_t lanes, int64_t lane, int64_t i) { return i / 4 % 4 * 4 * lanes + 4 * lane + i % 4; }
inline int64_t high_at(int bits, int64_t lanes, int64_t lane, int64_t i) {
  return 16 * lanes + (bits == 6 ? i / 16 * 4 * lanes : 0) + 4 * lane + i % 4;
}

// Packs up to `lanes` rows of blocks into a strip, and lower nibbles of 8 bits after it into `lower`; absent rows
// become zeros.
void pack_strip(Kind kind, const uint8_t* blocks, int64_t stride, int64_t rows, int64_t groups, int64_t lanes,
                uint8_t* strip, uint8_t* lower) {
  const Form& f = kForms[kind];
  std::memset(strip, 0, strip_bytes(f, lanes, groups));
  std::memset(lower, 0, groups * lower_bytes(f, lanes));
  for (int64_t g = 0; g < groups; ++g) {
    if (f.super && g % kSuper == 0) {
      for (int64_t lane = 0; lane < rows; ++lane)
        for (int which = 0; which < (f.minimum ? 2 : 1); ++which) {
          const uint16_t factor = block_factor(kind, blocks + lane * stride + g / kSuper * f.block_bytes, which);
          std::memcpy(strip + (which * lanes + lane) * 2, &factor, 2);
        }
      strip += factor_bytes(f, lanes);
    }
    uint8_t* scales = strip + value_bytes(f, lanes);
    for (int64_t lane = 0; lane < rows; ++lane) {
      const uint8_t* block = blocks + lane * stride + g / f.block_groups * f.block_bytes;
      const StoredGroup stored = read_group(kind, block, g % f.block_groups);
      for (int64_t i = 0; i < kGroup; ++i) {
        const uint8_t v = stored.value[i];
        const int64_t at = value_at(lanes, lane, i);
        strip[at] |= (f.bits == 8 ? v >> 4 : v & 15) << (i / 16 * 4);
        if (f.bits == 8) lower[at] |= (v & 15) << (i / 16 * 4);
        if (f.bits == 5) strip[high_at(5, lanes, lane, i)] |= (v >> 4) << (i / 4);
        if (f.bits == 6) strip[high_at(6, lanes, lane, i)] |= (v >> 4) << (i / 4 % 4 * 2);
      }
      if (f.super) {
        scales[lane] = static_cast<uint8_t>(stored.scale);
        scales[lanes + lane] = static_cast<uint8_t>(stored.minimum);
      } else {
        std::memcpy(scales + 2 * lane, &stored.scale, 2);
        if (f.minimum) std::memcpy(scales + 2 * (lanes + lane), &stored.minimum, 2);
      }
    }
    strip += group_bytes(f, lanes);
    lower += lower_bytes(f, lanes);
  }
}

// The first k weights of a lane of a strip, in floats.
void unpack_lane(const Strip& s, int64_t lanes, int64_t lane, int64_t k, float* out) {
  const Form& f = kForms[s.kind];
  const uint8_t* strip = s.bytes;
  const uint8_t* lower = s.lower;
  const auto half = [](const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return _cvtsh_ss(bits);
  };
  float factor = 0, low_factor = 0;
  for (int64_t g = 0; g * kGroup < k; ++g) {
    if (f.super && g % kSuper == 0) {
      factor = half(strip + 2 * lane);
      if (f.minimum) low_factor = half(strip + 2 * (lanes + lane));
      strip += factor_bytes(f, lanes);
    }
    const uint8_t* scales = strip + value_bytes(f, lanes);
    float scale[2], minimum = 0;
    if (!f.super) {
      scale[0] = scale[1] = half(scales + 2 * lane);
      if (f.minimum) minimum = half(scales + 2 * (lanes + lane));
    } else if (f.halves) {
      for (int h = 0; h < 2; ++h) scale[h] = factor * static_cast<int8_t>(scales[h * lanes + lane]);
    } else {
      scale[0] = scale[1] = factor * scales[lane];
      minimum = -(low_factor * scales[lanes + lane]);
    }
    for (int64_t i = 0; i < std::min(kGroup, k - g * kGroup); ++i) {
      const int64_t at = value_at(lanes, lane, i);
      int v = strip[at] >> (i / 16 * 4) & 15;
      if (f.bits == 8) v = v << 4 | (lower[at] >> (i / 16 * 4) & 15);
      if (f.bits == 5) v |= (strip[high_at(5, lanes, lane, i)] >> (i / 4) & 1) << 4;
      if (f.bits == 6) v |= (strip[high_at(6, lanes, lane, i)] >> (i / 4 % 4 * 2) & 3) << 4;
      if (f.shift) v -= 1 << f.shift;
      const float product = static_cast<float>(v) * scale[i / 16];
      out[g * kGroup + i] = f.minimum ? product + minimum : product;
    }
    strip += group_bytes(f, lanes);
    lower += lower_bytes(f, lanes);
  }
}

}  // namespace
