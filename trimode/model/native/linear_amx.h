// Linears by AMX: packed weights, activations as two int8 halves.
//
// A tile product takes 16 rows, 64 activations and 16 outputs. Weights are read once, in the order in
// memory, whatever the number of rows; up to 64 rows cost little more than reading them. Activations lie in
// tiles too: rows that lie apart would take two cache lines each, in an order that nothing reads ahead.
#pragma once

#include <cstring>
#include <vector>

#include "cpu.h"
#include "types.h"

namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 1024;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of a packed column of tiles: 16 outputs.
inline int64_t packed_bytes(const Linear& l) { return round_up(l.in, kTileIn) * kTileOut; }

// Quantised rows in tiles: 16 rows of 64 activations, then the same rows' next 64, then the next 16 rows.
struct alignas(64) TileRow {
  int8_t value[kTileIn];
};
using TileRows = std::vector<TileRow>;

// TileRows of `rows` rows of k activations.
inline int64_t tile_rows(int64_t rows, int64_t k) {
  return round_up(rows, kTileRows) * round_up(k, kTileIn) / kTileIn;
}

// Where row i of k activations begins, in bytes. Its next 64 activations lie one tile further on.
inline int64_t tiled(int64_t i, int64_t k) {
  return i / kTileRows * kTileRows * round_up(k, kTileIn) + i % kTileRows * kTileIn;
}

// One of the parts that a product is computed in.
struct Part {
  int64_t index, count;
};

// Columns of tiles first..last of a product that a part consists of: in pairs.
struct Share {
  int64_t first, last;
  Share(const Linear& l, const Part& part) {
    const int64_t columns = (l.out + kTileOut - 1) / kTileOut, pairs = (columns + 1) / 2;
    first = 2 * (pairs * part.index / part.count);
    last = std::min(columns, 2 * (pairs * (part.index + 1) / part.count));
  }
};

// Prefetches the weights, keys and values of one part of a pass, a constant distance ahead of their use, across the ends of
// products. Loads alone keep too few reads under way and get half of the memory's bandwidth.
class Reader {
 public:
  // First name all that the part reads, in order. Then call `advance` as it is read.
  void expect(const void* from, int64_t bytes) {
    if (bytes) stretches_.push_back({static_cast<const char*>(from), bytes});
  }
  void expect(const Linear& l, const Part& part) {
    const Share share(l, part);
    if (l.packed) expect(l.packed + share.first * packed_bytes(l), (share.last - share.first) * packed_bytes(l));
  }
  void start() { advance(kAhead); }
  void advance(int64_t bytes) {
    for (; bytes > 0 && next_ < stretches_.size(); at_ = 0, ++next_) {
      const auto [from, size] = stretches_[next_];
      const int64_t to = std::min(size, at_ + bytes);
      bytes -= to - at_;
      for (; at_ < to; at_ += kLine) _mm_prefetch(from + at_, _MM_HINT_T1);
      at_ = to;
      if (to < size) return;
    }
  }

 private:
  static constexpr int64_t kAhead = 32768, kLine = 64;
  struct Stretch {
    const char* from;
    int64_t bytes;
  };
  std::vector<Stretch> stretches_;
  size_t next_ = 0;
  int64_t at_ = 0;  // bytes of stretch `next_` that were asked for
};

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0-3: sums; 4 and 5: halves of the activations; 6 and 7: weights of two columns of tiles.
TRIMODE_AMX inline void shape_tiles(int64_t rows) {
  TileShapes shapes;
  for (int t = 0; t < 8; ++t) {
    shapes.bytes[t] = 64;
    shapes.rows[t] = static_cast<uint8_t>(t < 6 ? rows : kTileIn / 4);
  }
  asm volatile("" : : "r"(&shapes) : "memory");  // GCC 12 takes the next line for a read of 8 bytes
  _tile_loadconfig(&shapes);
}

// Leaves the tiles as if never used, for others in this thread (oneDNN).
TRIMODE_AMX inline void release_tiles() { _tile_release(); }

// The same numbers as `quantise`, in two halves, each a row of tiles: value = 64 * high + low.
TRIMODE_AMX inline float quantise_halves(const float* x, int64_t k, int8_t* high, int8_t* low) {
  __m512 tops = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 16) tops = _mm512_max_ps(tops, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  const float top = _mm512_reduce_max_ps(tops);
  const __m512 inverse = _mm512_set1_ps(top > 0 ? levels(k) / top : 0.0f);
  const __m512i half = _mm512_set1_epi32(32);
  for (int64_t i = 0; i < k; i += 16) {
    const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(v, half), 6);
    const __m512i lower = _mm512_sub_epi32(v, _mm512_slli_epi32(upper, 6));
    const int64_t at = i / kTileIn * kTileBytes + i % kTileIn;
    _mm_store_si128(reinterpret_cast<__m128i*>(high + at), _mm512_cvtepi32_epi8(upper));
    _mm_store_si128(reinterpret_cast<__m128i*>(low + at), _mm512_cvtepi32_epi8(lower));
  }
  return top / levels(k);
}

// Where the tiles of a product's activations lie.
struct Halves {
  const int8_t *high, *low;
};

// Rows that are not the first ones are gathered first, by each thread for itself.
inline Halves gathered(const Linear& l, const Quantised& x, const Rows& rows) {
  bool in_place = true;
  for (int64_t i = 0; rows.from && i < rows.count; ++i) in_place &= rows.in(i) == i;
  if (in_place) return {x.high, x.low};
  thread_local TileRows room;
  const int64_t half = tile_rows(rows.count, l.in);
  if (static_cast<int64_t>(room.size()) < 2 * half) room.resize(2 * half);
  int8_t *high = room.data()->value, *low = room[half].value;
  for (int64_t i = 0; i < rows.count; ++i)
    for (int64_t k = 0; k < l.in; k += kTileIn) {
      const int64_t from = tiled(rows.in(i), l.in) + k * kTileRows, to = tiled(i, l.in) + k * kTileRows;
      std::memcpy(high + to, x.high + from, kTileIn);
      std::memcpy(low + to, x.low + from, kTileIn);
    }
  return {high, low};
}

// Sums to results: one column of tiles, from output n on.
TRIMODE_AMX inline void put_tile(const Linear& l, const int32_t* high, const int32_t* low, int64_t i,
                                 int64_t n, const Quantised& x, const Rows& rows, const Target& target) {
  const int64_t width = std::min<int64_t>(kTileOut, l.out - n);
  const __mmask16 live = static_cast<__mmask16>((1u << width) - 1);
  const __m512 scales = _mm512_maskz_loadu_ps(live, l.scale + n);
  const __m512 bias = l.bias ? _mm512_maskz_loadu_ps(live, l.bias + n) : _mm512_setzero_ps();
  const int64_t count = std::min(kTileRows, rows.count - i);
  for (int64_t r = 0; r < count; ++r) {
    const __m512i product =
        _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(high + 16 * r), 6), _mm512_load_si512(low + 16 * r));
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(x.scale[rows.in(i + r)]), scales);
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(product), scale);
    if (l.bias) value = _mm512_add_ps(value, bias);
    float* y = target.y + rows.out(i + r) * target.stride + n;
    if (target.add) value = _mm512_add_ps(_mm512_maskz_loadu_ps(live, y), value);
    _mm512_mask_storeu_ps(y, live, value);
  }
}

// Two columns of tiles, or the last one, against all rows.
TRIMODE_AMX inline void tile_columns(const Linear& l, const Halves& a, const Quantised& x, const Rows& rows,
                                     int64_t n, bool two, const Target& target, Reader& reader) {
  alignas(64) int32_t sums[4][kTileRows * kTileOut];
  const int64_t column = packed_bytes(l), steps = column / kTileBytes;
  const int8_t* first = l.packed + n / kTileOut * column;
  const int8_t* second = two ? first + column : first;
  for (int64_t i = 0; i < rows.count; i += kTileRows) {
    const int8_t *high = a.high + tiled(i, l.in), *low = a.low + tiled(i, l.in);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k) {
      if (i == 0) reader.advance((1 + two) * kTileBytes);
      _tile_loadd(4, high + k * kTileBytes, kTileIn);
      _tile_loadd(5, low + k * kTileBytes, kTileIn);
      _tile_loadd(6, first + k * kTileBytes, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 5, 6);
      if (two) {
        _tile_loadd(7, second + k * kTileBytes, 64);
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(3, 5, 7);
      }
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    put_tile(l, sums[0], sums[1], i, n, x, rows, target);
    if (two) {
      _tile_stored(2, sums[2], 64);
      _tile_stored(3, sums[3], 64);
      put_tile(l, sums[2], sums[3], i, n + kTileOut, x, rows, target);
    }
  }
}

// A part of a product.
TRIMODE_AMX inline void multiply_amx(const Linear& l, const Part& part, const Quantised& x, const Rows& rows,
                                     const Target& target, Reader& reader) {
  if (!rows.count) return;
  shape_tiles(std::min(kTileRows, rows.count));
  const Halves a = gathered(l, x, rows);
  const Share share(l, part);
  for (int64_t c = share.first; c < share.last; c += 2)
    tile_columns(l, a, x, rows, c * kTileOut, c + 1 < share.last, target, reader);
}

}  // namespace
