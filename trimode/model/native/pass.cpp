// One forward pass in int8: what PyTorch's operators would do in a thousand small calls.
//
// Contract: the arithmetic of a row is a function of that row and of the keys it sees, never of what
// else is in the pass. Products are exact integers; every float sum has an order of its own, fixed by
// its length. So a token's logits are the same bits alone, packed, in a chunk, cached or recomputed.
//
// Weights are plain int8 matrices [out, in] with one scale an output. Activations are 12-bit numbers in
// int16 with one scale a row: vpmaddwd adds their products exactly on any AVX2 CPU, however wide they are.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <omp.h>
#include <vector>

extern "C" {

struct Linear {
  int64_t out, in;        // in: a multiple of 16
  const int8_t* weight;   // [out, in]
  const float* scale;     // [out]
  const float* bias;      // [out] or null
};

struct DeltaPart {
  int64_t first_out, first_rank;  // columns of the result, columns of the low-rank product
  Linear up;
};

struct Projection {
  Linear base;
  Linear down;     // out = 0: no delta
  int64_t parts;
  DeltaPart part[3];
};

struct Layer {
  const float *input_norm, *mlp_norm;
  const float *q_norm, *k_norm;  // [head_dim] or null
  Projection qkv, o, gate_up, down;
};

struct Model {
  int64_t layers, hidden, heads, kv_heads, head_dim, intermediate;
  float eps;
  const Layer* layer;
  const float* norm;
};

// Rows start..stop of a pass: one sequence's. keys and values: [layers, kv_heads, capacity, head_dim].
struct Segment {
  int64_t start, stop;
  float *keys, *values;
  int64_t capacity, length;
  int64_t causal;          // where `visible` is null: 1 a row sees earlier ones, 0 all
  const uint8_t* visible;  // [n, n] or null
};

struct Pass {
  int64_t rows;
  float* x;                    // [rows, hidden]: embeddings in, hidden states after the last norm out
  const float *cos, *sin;      // [rows, head_dim / 2]
  const float* query_scale;    // [rows] or null
  int64_t adapted;             // how many rows have the delta on
  const int32_t* adapter_rows; // [adapted]
  int64_t segments;
  const Segment* segment;
  int64_t threads;
};
}

namespace {

using Floats = std::vector<float>;
using Shorts = std::vector<int16_t>;

inline __m256i widen(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m256i load(const int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline __m128i sums(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

inline float sum(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// ---- linears ---------------------------------------------------------------------------------

// Quantised rows: values [m, k] and a scale each.
struct Quantised {
  const int16_t* values;
  const float* scale;
  int64_t stride;
};

// Largest activation: 12 bits, or what an int32 sum of k products can hold.
inline float levels(int64_t k) {
  return static_cast<float>(std::min<int64_t>(2047, INT32_MAX / (127 * k)));
}

float quantise(const float* x, int64_t k, int16_t* q) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 tops = _mm256_setzero_ps();
  for (int64_t i = 0; i < k; i += 8)
    tops = _mm256_max_ps(tops, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
  float lanes[8], top = 0;
  _mm256_storeu_ps(lanes, tops);
  for (float lane : lanes) top = std::max(top, lane);
  const __m256 inverse = _mm256_set1_ps(top > 0 ? levels(k) / top : 0.0f);
  for (int64_t i = 0; i < k; i += 8) {
    const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
    const __m128i p = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), p);
  }
  return top / levels(k);
}

// Where rows are read and written: row i of the product comes from row from[i] and goes to row to[i].
struct Rows {
  int64_t count;
  const int32_t *from, *to;  // null: i itself
  int64_t in(int64_t i) const { return from ? from[i] : i; }
  int64_t out(int64_t i) const { return to ? to[i] : i; }
};

struct Target {
  float* y;
  int64_t stride;
  bool add;
};

inline void put(const Linear& l, float* y, int64_t n, int32_t product, float scale, bool add) {
  float value = static_cast<float>(product) * (scale * l.scale[n]);
  if (l.bias) value += l.bias[n];
  y[n] = add ? y[n] + value : value;
}

// MR rows of one column. Eight sums leave room in the 16 registers, and the weights are read in one
// straight line, which is what the memory prefetcher follows: wider tiles were slower (docs/lab.md).
template <int MR>
inline void tile(const Linear& l, const Quantised& x, const Rows& rows, int64_t i, int64_t n,
                 const Target& target) {
  const int16_t* xs[MR];
  for (int m = 0; m < MR; ++m) xs[m] = x.values + rows.in(i + m) * x.stride;
  const int8_t* w = l.weight + n * l.in;
  __m256i acc[MR];
  for (int m = 0; m < MR; ++m) acc[m] = _mm256_setzero_si256();
  for (int64_t k = 0; k < l.in; k += 16) {
    const __m256i weights = widen(w + k);
    for (int m = 0; m < MR; ++m)
      acc[m] = _mm256_add_epi32(acc[m], _mm256_madd_epi16(weights, load(xs[m] + k)));
  }
  alignas(16) int32_t products[8];
  const __m256i zero = _mm256_setzero_si256();
  for (int j = 0; j < MR; j += 4) {
    const __m128i four = sums(acc[j], j + 1 < MR ? acc[j + 1] : zero, j + 2 < MR ? acc[j + 2] : zero,
                              j + 3 < MR ? acc[j + 3] : zero);
    _mm_store_si128(reinterpret_cast<__m128i*>(products + j), four);
  }
  for (int m = 0; m < MR; ++m)
    put(l, target.y + rows.out(i + m) * target.stride, n, products[m], x.scale[rows.in(i + m)],
        target.add);
}

constexpr int kRows = 8;            // of a tile
constexpr int64_t kStrip = 12;     // columns whose weights stay in L1 while rows pass over them
constexpr int64_t kRowChunk = 64;  // rows whose activations stay in L2
constexpr int64_t kAhead = 1024;   // bytes to prefetch ahead

// One row: bound by memory, so the weights are read in one straight line.
void single(const Linear& l, const Quantised& x, const Rows& rows, int64_t first, int64_t last,
            const Target& target) {
  const int16_t* values = x.values + rows.in(0) * x.stride;
  float* y = target.y + rows.out(0) * target.stride;
  const float scale = x.scale[rows.in(0)];
  for (int64_t n = first; n < last; ++n) {
    const int8_t* w = l.weight + n * l.in;
    __m256i acc[4];
    for (auto& a : acc) a = _mm256_setzero_si256();
    int64_t k = 0;
    for (; k + 64 <= l.in; k += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w + k + kAhead), _MM_HINT_T0);
      for (int c = 0; c < 4; ++c)
        acc[c] = _mm256_add_epi32(
            acc[c], _mm256_madd_epi16(widen(w + k + 16 * c), load(values + k + 16 * c)));
    }
    for (; k < l.in; k += 16)
      acc[0] = _mm256_add_epi32(acc[0], _mm256_madd_epi16(widen(w + k), load(values + k)));
    const __m256i all = _mm256_add_epi32(_mm256_add_epi32(acc[0], acc[1]),
                                         _mm256_add_epi32(acc[2], acc[3]));
    const __m256i zero = _mm256_setzero_si256();
    put(l, y, n, _mm_cvtsi128_si32(sums(all, zero, zero, zero)), scale, target.add);
  }
}

// The last few rows of a chunk, fewer than a tile has.
template <int MR>
inline void last_rows(const Linear& l, const Quantised& x, const Rows& rows, int64_t i, int64_t end,
                      int64_t first, int64_t last, const Target& target) {
  if constexpr (MR > 0) {
    if (end - i == MR) {
      for (int64_t n = first; n < last; ++n) tile<MR>(l, x, rows, i, n, target);
      return;
    }
    last_rows<MR - 1>(l, x, rows, i, end, first, last, target);
  }
}

// Columns first..last of a product, by one thread.
void columns(const Linear& l, const Quantised& x, const Rows& rows, int64_t first, int64_t last,
             const Target& target) {
  if (rows.count == 1) return single(l, x, rows, first, last, target);
  for (int64_t chunk = 0; chunk < rows.count; chunk += kRowChunk) {
    const int64_t end = std::min(rows.count, chunk + kRowChunk);
    for (int64_t n = first; n < last; n += kStrip) {
      const int64_t stop = std::min(last, n + kStrip);
      int64_t i = chunk;
      for (; i + kRows <= end; i += kRows)
        for (int64_t c = n; c < stop; ++c) tile<kRows>(l, x, rows, i, c, target);
      last_rows<kRows - 1>(l, x, rows, i, end, n, stop, target);
    }
  }
}

// A product by all threads of the region; no barrier at its end.
void multiply(const Linear& l, const Quantised& x, const Rows& rows, const Target& target) {
  const int64_t threads = omp_get_num_threads(), t = omp_get_thread_num();
  const int64_t share = ((l.out + threads - 1) / threads + kStrip - 1) / kStrip * kStrip;
  columns(l, x, rows, std::min(l.out, t * share), std::min(l.out, (t + 1) * share), target);
}

// ---- small functions ---------------------------------------------------------------------------

// e^x, relative error 2e-7 (Cephes).
inline __m256 exp8(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.0f)), _mm256_set1_ps(88.0f));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i power = _mm256_slli_epi32(
      _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
  __m256 squares = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    squares = _mm256_fmadd_ps(v, v, squares);
  }
  const __m256 factor = _mm256_set1_ps(1.0f / std::sqrt(sum(squares) / n + eps));
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
    _mm256_storeu_ps(y + i, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + i)));
  }
}

// silu(gate) * up, into gate.
void swiglu(float* gate, const float* up, int64_t n) {
  const __m256 one = _mm256_set1_ps(1.0f), zero = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 g = _mm256_loadu_ps(gate + i);
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exp8(_mm256_sub_ps(zero, g))));
    _mm256_storeu_ps(gate + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
  }
}

// Rotates one head; dimension i pairs with i + half.
void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

// ---- attention ---------------------------------------------------------------------------------

// The keys one row sees, in cache order: `prefix` from the start, then the listed ones.
struct Seen {
  int64_t prefix, count;
  const int32_t* others;
  int64_t place(int64_t j) const { return j < prefix ? j : others[j - prefix]; }
};

// One query over the keys it sees. scores: room for count + 8.
void attend(const float* query, const float* keys, const float* values, const Seen& seen,
            int64_t dim, float* scores, float* out) {
  const int64_t n = seen.count;
  for (int64_t j = 0; j < n; j += 4) {
    const float* key[4];
    for (int c = 0; c < 4; ++c) key[c] = keys + seen.place(std::min(j + c, n - 1)) * dim;
    __m256 acc[4];
    for (auto& a : acc) a = _mm256_setzero_ps();
    for (int64_t d = 0; d < dim; d += 8) {
      const __m256 q = _mm256_loadu_ps(query + d);
      for (int c = 0; c < 4; ++c) acc[c] = _mm256_fmadd_ps(q, _mm256_loadu_ps(key[c] + d), acc[c]);
    }
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(acc[0], acc[1]), _mm256_hadd_ps(acc[2], acc[3]));
    _mm_storeu_ps(scores + j,
                  _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  float top = scores[0];
  for (int64_t j = 1; j < n; ++j) top = std::max(top, scores[j]);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const __m256 most = _mm256_set1_ps(top), by = _mm256_set1_ps(scale);
  for (int64_t j = n; j % 8; ++j) scores[j] = top;  // defined values; they count as 0 below
  __m256 total = _mm256_setzero_ps();
  for (int64_t j = 0; j < n; j += 8) {
    __m256 p = exp8(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(scores + j), most), by));
    if (n - j < 8) {
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      const __m256i live = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n - j)), lane);
      p = _mm256_and_ps(p, _mm256_castsi256_ps(live));
    }
    _mm256_storeu_ps(scores + j, p);
    total = _mm256_add_ps(total, p);
  }
  const __m256 inverse = _mm256_set1_ps(1.0f / sum(total));
  for (int64_t d = 0; d < dim; d += 64) {
    const int64_t width = std::min<int64_t>(64, dim - d) / 8;
    __m256 acc[8];
    for (auto& a : acc) a = _mm256_setzero_ps();
    for (int64_t j = 0; j < n; ++j) {
      const float* value = values + seen.place(j) * dim + d;
      const __m256 p = _mm256_set1_ps(scores[j]);
      if (width == 8)
        for (int c = 0; c < 8; ++c)
          acc[c] = _mm256_fmadd_ps(p, _mm256_loadu_ps(value + c * 8), acc[c]);
      else
        for (int c = 0; c < width; ++c)
          acc[c] = _mm256_fmadd_ps(p, _mm256_loadu_ps(value + c * 8), acc[c]);
    }
    for (int c = 0; c < width; ++c)
      _mm256_storeu_ps(out + d + c * 8, _mm256_mul_ps(acc[c], inverse));
  }
}

// ---- the pass ----------------------------------------------------------------------------------

struct Workspace {
  Floats normed, heads, attended, wide, low, scale, low_scale;
  Shorts q, low_q;
  std::vector<int32_t> segment_of;
  std::vector<std::vector<int32_t>> others;  // of each row, where its segment has a mask

  Workspace(const Model& m, const Pass& p) {
    int64_t rank = 0;
    for (int64_t i = 0; i < m.layers; ++i)
      for (const Projection* j : {&m.layer[i].qkv, &m.layer[i].o, &m.layer[i].gate_up, &m.layer[i].down})
        rank = std::max(rank, j->down.out);
    const int64_t widest = std::max({m.hidden, m.intermediate, m.heads * m.head_dim});
    normed.resize(p.rows * m.hidden);
    heads.resize(p.rows * (m.heads + 2 * m.kv_heads) * m.head_dim);
    attended.resize(p.rows * m.heads * m.head_dim);
    wide.resize(p.rows * 2 * m.intermediate);
    low.resize(p.adapted * rank);
    low_q.resize(p.adapted * rank);
    low_scale.resize(p.adapted * 3);
    scale.resize(p.rows);
    q.resize(p.rows * widest);
    segment_of.resize(p.rows);
    others.resize(p.rows);
    for (int64_t s = 0; s < p.segments; ++s) {
      const Segment& segment = p.segment[s];
      const int64_t n = segment.stop - segment.start;
      for (int64_t i = 0; i < n; ++i) {
        segment_of[segment.start + i] = static_cast<int32_t>(s);
        if (!segment.visible) continue;
        for (int64_t j = 0; j < n; ++j)
          if (segment.visible[i * n + j])
            others[segment.start + i].push_back(static_cast<int32_t>(segment.length + j));
      }
    }
  }
};

// Quantise rows [m, k] of x, split over the threads; ends with a barrier.
Quantised quantise_rows(const float* x, int64_t rows, int64_t k, int64_t stride, Workspace& w) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < rows; ++i) w.scale[i] = quantise(x + i * stride, k, w.q.data() + i * k);
  return {w.q.data(), w.scale.data(), k};
}

// The linears of a projection and the delta of the adapted rows; ends with a barrier.
void project(const Projection& projection, const Quantised& x, const Pass& pass, Workspace& w,
             const Target& target) {
  multiply(projection.base, x, {pass.rows, nullptr, nullptr}, target);
  if (pass.adapted && projection.down.out) {
    const int64_t rank = projection.down.out;
    multiply(projection.down, x, {pass.adapted, pass.adapter_rows, nullptr},
             {w.low.data(), rank, false});
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pass.adapted; ++i)
      for (int64_t p = 0; p < projection.parts; ++p) {
        const DeltaPart& part = projection.part[p];
        const int64_t at = i * rank + part.first_rank;
        w.low_scale[p * pass.adapted + i] =
            quantise(w.low.data() + at, part.up.in, w.low_q.data() + at);
      }
    for (int64_t p = 0; p < projection.parts; ++p) {
      const DeltaPart& part = projection.part[p];
      multiply(part.up,
               {w.low_q.data() + part.first_rank, w.low_scale.data() + p * pass.adapted, rank},
               {pass.adapted, nullptr, pass.adapter_rows},
               {target.y + part.first_out, target.stride, true});
    }
  }
#pragma omp barrier
}

// Norms, rotation and the cache's new rows; ends with a barrier.
void place_heads(const Model& m, const Layer& layer, int64_t index, const Pass& pass, Workspace& w) {
  const int64_t dim = m.head_dim, all = m.heads + 2 * m.kv_heads;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < pass.rows; ++i) {
    float* row = w.heads.data() + i * all * dim;
    for (int64_t h = 0; h < m.heads + m.kv_heads; ++h) {
      float* head = row + h * dim;
      const float* norm = h < m.heads ? layer.q_norm : layer.k_norm;
      if (norm) rms_norm(head, norm, dim, m.eps, head);
      rotate(head, pass.cos + i * dim / 2, pass.sin + i * dim / 2, dim / 2);
      if (pass.query_scale && h < m.heads)
        for (int64_t d = 0; d < dim; ++d) head[d] *= pass.query_scale[i];
    }
    const Segment& s = pass.segment[w.segment_of[i]];
    const int64_t place = s.length + i - s.start;
    for (int64_t h = 0; h < m.kv_heads; ++h) {
      const int64_t at = ((index * m.kv_heads + h) * s.capacity + place) * dim;
      std::memcpy(s.keys + at, row + (m.heads + h) * dim, dim * sizeof(float));
      std::memcpy(s.values + at, row + (m.heads + m.kv_heads + h) * dim, dim * sizeof(float));
    }
  }
}

// Attention of every row and head; ends with a barrier.
void attend_all(const Model& m, int64_t index, const Pass& pass, Workspace& w, Floats& scores) {
  const int64_t dim = m.head_dim, all = m.heads + 2 * m.kv_heads, group = m.heads / m.kv_heads;
#pragma omp for schedule(dynamic, 3)
  for (int64_t item = 0; item < pass.rows * m.heads; ++item) {
    const int64_t i = item / m.heads, h = item % m.heads;
    const Segment& s = pass.segment[w.segment_of[i]];
    const auto& others = w.others[i];
    Seen seen{s.length, s.length + static_cast<int64_t>(others.size()), others.data()};
    if (!s.visible) seen.prefix = seen.count = s.causal ? s.length + i - s.start + 1 : s.length + s.stop - s.start;
    if (static_cast<int64_t>(scores.size()) < seen.count + 8) scores.resize(2 * seen.count + 8);
    const int64_t at = (index * m.kv_heads + h / group) * s.capacity * dim;
    attend(w.heads.data() + (i * all + h) * dim, s.keys + at, s.values + at, seen, dim,
           scores.data(), w.attended.data() + (i * m.heads + h) * dim);
  }
}

void norm_rows(const float* x, const float* weight, const Model& m, int64_t rows, float* y) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < rows; ++i)
    rms_norm(x + i * m.hidden, weight, m.hidden, m.eps, y + i * m.hidden);
}

void run_layer(const Model& m, int64_t index, const Pass& pass, Workspace& w, Floats& scores) {
  const Layer& layer = m.layer[index];
  const int64_t hidden = m.hidden, inner = m.intermediate;
  const int64_t attention = m.heads * m.head_dim, qkv = attention + 2 * m.kv_heads * m.head_dim;
  const Target residual{pass.x, hidden, true};
  norm_rows(pass.x, layer.input_norm, m, pass.rows, w.normed.data());
  project(layer.qkv, quantise_rows(w.normed.data(), pass.rows, hidden, hidden, w), pass, w,
          {w.heads.data(), qkv, false});
  place_heads(m, layer, index, pass, w);
  attend_all(m, index, pass, w, scores);
  project(layer.o, quantise_rows(w.attended.data(), pass.rows, attention, attention, w), pass, w,
          residual);
  norm_rows(pass.x, layer.mlp_norm, m, pass.rows, w.normed.data());
  project(layer.gate_up, quantise_rows(w.normed.data(), pass.rows, hidden, hidden, w), pass, w,
          {w.wide.data(), 2 * inner, false});
#pragma omp for schedule(static)
  for (int64_t i = 0; i < pass.rows; ++i)
    swiglu(w.wide.data() + i * 2 * inner, w.wide.data() + i * 2 * inner + inner, inner);
  project(layer.down, quantise_rows(w.wide.data(), pass.rows, inner, 2 * inner, w), pass, w,
          residual);
}

}  // namespace

extern "C" {

int64_t trimode_abi() { return 1; }

// Runs a pass: x becomes the hidden states after the last norm; new keys and values lie behind each
// segment's cache.
void trimode_pass(const Model* model, const Pass* pass) {
  Workspace workspace(*model, *pass);
#pragma omp parallel num_threads(static_cast<int>(pass->threads))
  {
    Floats scores(1024);
    for (int64_t i = 0; i < model->layers; ++i) run_layer(*model, i, *pass, workspace, scores);
    norm_rows(pass->x, model->norm, *model, pass->rows, pass->x);
  }
}

// y [rows, out] = linear(x [rows, in]).
void trimode_linear(const Linear* linear, const float* x, int64_t rows, float* y, int64_t threads) {
  Shorts q(rows * linear->in);
  Floats scale(rows);
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i)
      scale[i] = quantise(x + i * linear->in, linear->in, q.data() + i * linear->in);
    multiply(*linear, {q.data(), scale.data(), linear->in}, {rows, nullptr, nullptr},
             {y, linear->out, false});
  }
}
}
