// What Python hands over and what the kernels share. `structs.py` mirrors the structures and constants;
// `trimode_fact` lets it compare.
#pragma once

#include <algorithm>
#include <cstdint>

using Half = uint16_t;  // bf16: keys and values

constexpr int64_t kMostParts = 3;          // of a projection: queries, keys and values
constexpr int64_t kHeadDimMultiple = 8;
constexpr int64_t kFeatureMultiple = 16;   // of a linear's inputs
constexpr int64_t kWeightLevels = 127;     // largest int8 weight
constexpr int64_t kActivationLevels = 2047;  // largest 12-bit activation
constexpr int64_t kTileOut = 16, kTileIn = 64;  // outputs and inputs of a tile of packed weights

extern "C" {

// A few outputs of a linear whose weights are in groups; see groups.h.
struct Strip {
  const uint8_t *bytes, *lower;
  int64_t kind, first, width;  // outputs first..first + width
};

// One of the three forms of the weights is set, the same one in all linears of a model. int8: `weight` or
// `packed`, which give the same integers. Groups: `strip`.
struct Linear {
  int64_t out, in;        // in: a multiple of kFeatureMultiple
  const int8_t* weight;   // [out, in], or null
  const int8_t* packed;   // [out / kTileOut, in / 4, kTileOut, 4], rounded up to whole tiles, or null
  const float* scale;     // [out], of int8
  const float* bias;      // [out] or null
  const Strip* strip;     // [strips], in order of their outputs, or null
  int64_t strips;
};

struct DeltaPart {
  int64_t first_out, first_rank;  // columns of the result, columns of the low-rank product
  Linear up;
};

struct Projection {
  Linear base;
  Linear down;     // out = 0: no delta
  int64_t parts;
  DeltaPart part[kMostParts];
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
  const Linear* embedding;  // whose weights in groups are the tokens' embeddings, or null
  const float* mask_embedding;  // [hidden], of masks in adapted rows, or null: as any token
  int64_t mask_token;
};

// Rows start..stop of a pass: one sequence's. keys and values: [layers, kv_heads, capacity, head_dim].
struct Segment {
  int64_t start, stop;
  Half *keys, *values;
  int64_t capacity, length;
  int64_t causal;          // if `visible` is null: a row sees earlier rows (1) or all (0)
  const uint8_t* visible;  // [n, n] or null
};

// See `trimode/model/draft_head.py`.
struct DraftHead {
  int64_t dim, inner;
  float state_scale, embedding_scale;
  Linear enter;  // [dim + inner, 2 dim], with a bias
  Linear leave;  // [dim, inner]
  Linear words;  // [words, dim]
};

// See `trimode/model/markov_head.py`.
struct MarkovHead {
  int64_t dim, rank, inner;
  const float *state, *state_bias;  // [inner, dim], [inner]: of a mask's hidden state
  float state_factor;               // by which hidden states are multiplied
  const uint16_t *before, *words;   // fp16 [vocab, rank]
  const float* enter;               // [inner, 2 * rank]: of the two tokens before
  const float* leave;               // [rank, inner]
};

struct Pass {
  int64_t rows;
  float* x;                    // [rows, hidden]: hidden states after the last norm out; embeddings in, or:
  const int64_t* tokens;       // [rows], to be looked up, or null
  const int64_t* positions;    // [rows]
  const float *cos, *sin;      // [places, head_dim / 2]
  int64_t places;              // positions that have a cos and sin
  const float* query_scale;    // [rows] or null
  int64_t adapted;             // how many rows have the delta on
  const int32_t* adapter_rows; // [adapted]
  int64_t segments;
  const Segment* segment;
  int64_t threads;
  double products;             // out: seconds that the first thread spent on products with weights
};
}


// Scale and sums of the activations of a row's group.
struct GroupInfo {
  float scale, scaled_total;  // scaled_total = scale * total
  int32_t total, first;       // of all activations, and of the first half
};

// Rows of activations in groups, for weights in groups: tiles of `height` rows, group after group.
struct GroupRows {
  int8_t* value;
  GroupInfo* info;
  int64_t groups;
  int64_t height;  // of a tile: 16, or all rows if there are fewer
  // Where a row's group lies: `at` in info, 32 * at in value.
  int64_t at(int64_t row, int64_t group) const {
    return (row / height * groups + group) * height + row % height;
  }
  int64_t size(int64_t rows) const { return (rows + height - 1) / height * height * groups; }
};

// Quantised rows of k activations and a scale each: 12-bit numbers in int16, or, for packed weights,
// their halves, value = 64 * high + low, in tiles.
struct Quantised {
  int16_t* values;
  int8_t *high, *low;
  float* scale;
  int64_t stride;  // of `values`
  GroupRows groups;
};

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

// Largest activation: 12 bits, or what an int32 sum of k products can hold.
inline float levels(int64_t k) {
  return static_cast<float>(std::min<int64_t>(kActivationLevels, INT32_MAX / (kWeightLevels * k)));
}
