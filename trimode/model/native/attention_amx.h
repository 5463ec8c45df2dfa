// Attention by AMX: up to 16 queries of one key head together, 32 keys at a time.
//
// Keys and values are bf16, as in the cache. Queries and probabilities are two bf16 numbers each, 16 bits
// of a float. A query's values are summed over the keys it sees, in their order, 32 of them in a tile
// product. So what else is computed changes nothing.
#pragma once

#include "attention.h"
#include "elementwise_avx512.h"
#include "linear_amx.h"

namespace {

static_assert(kQueries == kTileRows);
constexpr int64_t kKeys = 32, kPanel = 64;  // kPanel: keys, or dimensions, in four tiles
constexpr int64_t kMostDim = 256;

inline bool attends_in_tiles(int64_t dim) { return dim % 32 == 0 && dim <= kMostDim; }

// Tile loads do not tell the compiler that they read memory.
inline void finish_writes() { asm volatile("" : : : "memory"); }

// Adds to tiles 0 and 1, or to `all` of 0-3: each gets the products of both left parts with its right tile.
TRIMODE_AMX inline void add_products(const void* high, const void* low, int64_t row,
                                     const Half (*tiles)[kTileBytes / 2], bool all) {
  finish_writes();
  _tile_loadd(4, high, row);
  _tile_loadd(5, low, row);
  _tile_loadd(6, tiles[0], 64);
  _tile_loadd(7, tiles[1], 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(0, 5, 6);
  _tile_dpbf16ps(1, 5, 7);
  if (!all) return;
  _tile_loadd(6, tiles[2], 64);
  _tile_loadd(7, tiles[3], 64);
  _tile_dpbf16ps(2, 4, 6);
  _tile_dpbf16ps(3, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Two vectors of floats as 32 bf16 numbers, and their rounding errors as 32 more.
struct Split {
  __m512i high, low;
};

TRIMODE_AMX inline Split split(__m512 a, __m512 b) {
  const __m512 upper = _mm512_castsi512_ps(_mm512_set1_epi32(0xFFFF0000));
  const __m512 high_a = _mm512_and_ps(a, upper), high_b = _mm512_and_ps(b, upper);
  return {reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high_b, high_a)),
          reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_sub_ps(b, high_b), _mm512_sub_ps(a, high_a)))};
}

inline __m128i load8(const Half* x) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)); }

// 32 dimensions of 16 keys as a tile: pairs of dimensions down, keys across.
template <typename Key>
TRIMODE_AMX inline void pack_keys(const Key& key, Half* tile) {
  for (int part = 0; part < 4; ++part) {  // 8 dimensions
    __m512i rows[4];                      // keys c, c + 4, c + 8, c + 12
    for (int c = 0; c < 4; ++c) {
      rows[c] = _mm512_castsi128_si512(load8(key(c) + 8 * part));
      rows[c] = _mm512_inserti32x4(rows[c], load8(key(c + 4) + 8 * part), 1);
      rows[c] = _mm512_inserti32x4(rows[c], load8(key(c + 8) + 8 * part), 2);
      rows[c] = _mm512_inserti32x4(rows[c], load8(key(c + 12) + 8 * part), 3);
    }
    const __m512i ab = _mm512_unpacklo_epi32(rows[0], rows[1]), AB = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i cd = _mm512_unpacklo_epi32(rows[2], rows[3]), CD = _mm512_unpackhi_epi32(rows[2], rows[3]);
    __m512i* to = reinterpret_cast<__m512i*>(tile) + 4 * part;
    _mm512_store_si512(to, _mm512_unpacklo_epi64(ab, cd));
    _mm512_store_si512(to + 1, _mm512_unpackhi_epi64(ab, cd));
    _mm512_store_si512(to + 2, _mm512_unpacklo_epi64(AB, CD));
    _mm512_store_si512(to + 3, _mm512_unpackhi_epi64(AB, CD));
  }
}

// Reads ahead keys or values of `tokens` tokens (none if 0) that the reader expects.
struct KeptAhead {
  Reader& reader;
  int64_t tokens, bytes;  // bytes of a token
  void read(int64_t j, int64_t count) { reader.advance(std::clamp<int64_t>(tokens - j, 0, count) * bytes); }
};

// Queries in two parts, 32 dimensions after the other.
struct Queries {
  alignas(64) Half high[kMostDim * kQueries], low[kMostDim * kQueries];

  TRIMODE_AMX Queries(const float* const* query, int64_t count, int64_t dim) {
    for (int64_t q = 0; q < count; ++q)
      for (int64_t d = 0; d < dim; d += 32) {
        const Split s = split(_mm512_loadu_ps(query[q] + d), _mm512_loadu_ps(query[q] + d + 16));
        _mm512_store_si512(high + d * kQueries + q * 32, s.high);
        _mm512_store_si512(low + d * kQueries + q * 32, s.low);
      }
  }
};

// Scores of all queries with keys 0..end, [queries, room]; up to 63 after the last are written too.
TRIMODE_AMX inline void score_keys(const Queries& queries, const Half* keys, int64_t end, int64_t dim, float* scores,
                                   int64_t room, KeptAhead& ahead) {
  alignas(64) Half tiles[4][kTileBytes / 2];
  const int64_t last = end - 1, row = room * sizeof(float);
  for (int64_t j = 0; j < end; j += kPanel) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < dim; d += 32) {
      for (int64_t g = 0; g < 4; ++g) {
        if (d == 0) ahead.read(j + 16 * g, 16);
        pack_keys([&](int64_t c) { return keys + std::min(j + 16 * g + c, last) * dim + d; }, tiles[g]);
      }
      add_products(queries.high + d * kQueries, queries.low + d * kQueries, 64, tiles, true);
    }
    _tile_stored(0, scores + j, row);
    _tile_stored(1, scores + j + 16, row);
    _tile_stored(2, scores + j + 32, row);
    _tile_stored(3, scores + j + 48, row);
  }
}

// Lanes j..j + 15 that lie before n.
inline uint16_t lanes_before(int64_t n, int64_t j) {
  return n <= j ? 0 : n - j >= 16 ? 0xFFFF : static_cast<uint16_t>((1u << (n - j)) - 1);
}

// Scores to probabilities times their sum, in place: for each 32 scores 32 high parts, then 32 low ones.
// There are zeros from n to `end`, a multiple of 32. Returns the sum.
TRIMODE_AMX inline float softmax(float* scores, int64_t n, int64_t end, float scale) {
  __m512 tops = _mm512_set1_ps(-INFINITY);
  for (int64_t j = 0; j < n; j += 16) tops = _mm512_mask_max_ps(tops, lanes_before(n, j), tops, _mm512_loadu_ps(scores + j));
  const float by = scale * kLog2E;
  const __m512 factor = _mm512_set1_ps(by), most = _mm512_set1_ps(_mm512_reduce_max_ps(tops) * by);
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < n; j += kKeys) {
    __m512 p[2];
    for (int i = 0; i < 2; ++i) {
      p[i] = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(scores + j + 16 * i), factor, most));
      p[i] = _mm512_maskz_mov_ps(lanes_before(n, j + 16 * i), p[i]);
      total = _mm512_add_ps(total, p[i]);
    }
    const Split s = split(p[0], p[1]);
    _mm512_storeu_si512(scores + j, s.high);
    _mm512_storeu_si512(scores + j + 16, s.low);
  }
  for (int64_t j = round_up(n, kKeys); j < end; j += 16) _mm512_storeu_ps(scores + j, _mm512_setzero_ps());
  return _mm512_reduce_add_ps(total);
}

// Adds to tiles 0-3 the values of 32 keys, `width` dimensions (64 or 32), each times its probability. Of each
// 32 dimensions the first tile has 0-3, 8-11, 16-19 and 24-27, and the second has the others.
template <typename Value>
TRIMODE_AMX inline void add_values(const float* probabilities, int64_t room, const Value& value, int64_t width) {
  alignas(64) Half tiles[4][kTileBytes / 2];
  for (int64_t k = 0; k < kKeys; k += 2)
    for (int64_t d = 0; d < width; d += 32) {
      const __m512i a = _mm512_loadu_si512(value(k) + d), b = _mm512_loadu_si512(value(k + 1) + d);
      _mm512_store_si512(tiles[d / 16] + 16 * k, _mm512_unpacklo_epi16(a, b));
      _mm512_store_si512(tiles[d / 16 + 1] + 16 * k, _mm512_unpackhi_epi16(a, b));
    }
  add_products(probabilities, probabilities + 16, room * sizeof(float), tiles, width == kPanel);
}

// Writes tiles 0-3: `width` dimensions of each query, times the query's factor.
TRIMODE_AMX inline void put_values(int64_t queries, const float* factors, float* const* out, int64_t first,
                                   int64_t width) {
  alignas(64) float sums[4][kTileRows * 16];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
  for (int64_t q = 0; q < queries; ++q)
    for (int64_t d = 0; d < width; d += 32) {
      const __m512 factor = _mm512_set1_ps(factors[q]);
      const __m512 even = _mm512_mul_ps(_mm512_load_ps(sums[d / 16] + 16 * q), factor);
      const __m512 odd = _mm512_mul_ps(_mm512_load_ps(sums[d / 16 + 1] + 16 * q), factor);
      _mm512_storeu_ps(out[q] + first + d, _mm512_permutex2var_ps(even, lower, odd));
      _mm512_storeu_ps(out[q] + first + d + 16, _mm512_permutex2var_ps(even, upper, odd));
    }
}

// scores: [queries, room]; room: a multiple of 16, and at least 64 more than the keys.
TRIMODE_AMX inline void attend_in_tiles(int64_t dim, const Together& t, const Half* keys, const Half* values,
                                        float* scores, int64_t room, KeptAhead ahead) {
  const int64_t queries = t.rows * t.heads;
  shape_tiles(queries);
  score_keys(Queries(t.query, queries, dim), keys, t.end, dim, scores, room, ahead);
  // Rows of a segment with a mask have orders of their own from some place on.
  const bool masked = t.seen[0].others;
  int64_t common = round_up(t.end, kKeys);
  if (masked) common = t.seen[0].prefix / kKeys * kKeys;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  float factors[kQueries];
  for (int64_t q = 0; q < queries; ++q) {
    const Seen& seen = t.seen[q / t.heads];
    float* own = scores + q * room;
    for (int64_t j = seen.prefix; j < seen.count; ++j) own[j] = own[seen.place(j)];
    factors[q] = 1.0f / softmax(own, seen.count, common, scale);
  }
  finish_writes();
  alignas(64) float alone[kQueries * kKeys] = {};  // probabilities of one row; of the others, 0
  for (int64_t d = 0; d < dim; d += kPanel) {
    const int64_t width = std::min(kPanel, dim - d);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < common; j += kKeys) {
      if (d == 0) ahead.read(j, kKeys);
      add_values(scores + j, room, [&](int64_t k) { return values + std::min(j + k, t.end - 1) * dim + d; }, width);
    }
    if (d == 0) ahead.read(common, ahead.tokens);
    for (int64_t r = 0; masked && r < t.rows; ++r) {
      const Seen& seen = t.seen[r];
      float* part = alone + r * t.heads * kKeys;
      for (int64_t j = common; j < seen.count; j += kKeys) {
        for (int64_t h = 0; h < t.heads; ++h)
          std::memcpy(part + h * kKeys, scores + (r * t.heads + h) * room + j, kKeys * sizeof(float));
        const auto value = [&](int64_t k) { return values + seen.place(std::min(j + k, seen.count - 1)) * dim + d; };
        add_values(alone, kKeys, value, width);
      }
      std::memset(part, 0, t.heads * kKeys * sizeof(float));
    }
    put_values(queries, factors, t.out, d, width);
  }
}

}  // namespace
