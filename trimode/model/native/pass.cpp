// One forward pass: what PyTorch's operators would do in a thousand small calls.
//
// Contract: the arithmetic of a row is a function of that row and of the keys it sees, never of what
// else is in the pass. Products are exact integers; every float sum has an order of its own, fixed by
// its length. So a token's logits are the same bits alone, packed, in a chunk, cached or recomputed.
//
// int8: weights with one scale per output, activations as 12-bit numbers with one scale per row. Two sets of
// kernels compute the same integers: AMX (packed weights) and AVX2 (plain weights).
// int4: weights and activations in groups with a scale each (groups.h).

#include <cstring>
#include <vector>

#include "attention_amx.h"
#include "groups.h"
#include "linear_avx2.h"
#include "quantise.h"
#include "team.h"
#include "kernels.h"

namespace {

// The form of a model's weights.
enum class Layout { plain, tiles, groups };

inline Layout layout_of(const Linear& l) {
  return l.strip ? Layout::groups : l.packed ? Layout::tiles : Layout::plain;
}

// Room for quantised rows, in the form that the weights need.
struct Room {
  std::vector<int16_t> values;
  TileRows high, low;
  std::vector<int8_t> bytes;
  std::vector<GroupInfo> infos;
  std::vector<float> scale;

  void reserve(Layout layout, int64_t rows, int64_t k) {
    if (layout == Layout::groups) {
      const int64_t size = groups_of(rows, k).size(rows);
      bytes.resize(size * kGroup);
      infos.resize(size);
      return;
    }
    scale.resize(rows);
    if (layout == Layout::plain)
      values.resize(rows * k);
    else
      for (auto* half : {&high, &low}) half->resize(tile_rows(rows, k));
  }
  GroupRows groups_of(int64_t rows, int64_t k) {
    return {bytes.data(), infos.data(), (k + kGroup - 1) / kGroup, std::max<int64_t>(1, std::min(rows, kTileHeight))};
  }
  // Where the quantised rows of k values lie.
  Quantised view(int64_t rows, int64_t k) {
    return {values.data(), high.data()->value, low.data()->value, scale.data(), k, groups_of(rows, k)};
  }
};

// Rows start..stop of a segment and query heads of one key head: they attend together.
struct Item {
  int64_t segment, start, stop, kv, first, heads;
  int64_t before;  // keys that the items before it read
};

// Buffers of a pass; the calling thread keeps them for its next one.
struct Workspace {
  std::vector<float> normed, heads, attended, wide, low;
  Room room, low_room[kMostParts];  // the rows of a product, and those of a low-rank product's parts
  std::vector<int32_t> segment_of;
  std::vector<uint8_t> is_adapted;  // of each row
  std::vector<Item> items;
  int64_t read = 0;      // keys that all items read
  std::vector<std::vector<int32_t>> others;  // of each row, if its segment has a mask
  Layout layout = Layout::plain;
  bool in_tiles = false;
  int64_t spent = 0;  // nanoseconds on products, by the first thread
  std::vector<Reader> readers;

  void prepare(const Model& m, const Pass& p) {
    int64_t rank = 0;
    spent = 0;
    for (int64_t i = 0; i < m.layers; ++i)
      for (const Projection* j : {&m.layer[i].qkv, &m.layer[i].o, &m.layer[i].gate_up, &m.layer[i].down})
        rank = std::max(rank, j->down.out);
    const int64_t widest = std::max({m.hidden, m.intermediate, m.heads * m.head_dim});
    layout = layout_of(m.layer[0].qkv.base);
    normed.resize(p.rows * m.hidden);
    heads.resize(p.rows * (m.heads + 2 * m.kv_heads) * m.head_dim);
    attended.resize(p.rows * m.heads * m.head_dim);
    wide.resize(p.rows * 2 * m.intermediate);
    low.resize(p.adapted * rank);
    room.reserve(layout, p.rows, widest);
    for (Room& part : low_room) part.reserve(layout, p.adapted, rank);
    is_adapted.assign(p.rows, 0);
    for (int64_t i = 0; i < p.adapted; ++i) is_adapted[p.adapter_rows[i]] = 1;
    find_neighbours(p);
    in_tiles = layout != Layout::plain && has_amx() && attends_in_tiles(m.head_dim);
    find_items(m, p);
  }

  // By segment, then by key head, so that two threads read few of the same keys.
  void find_items(const Model& m, const Pass& p) {
    const int64_t of_key = m.heads / m.kv_heads, most = in_tiles ? kQueries : kAtOnce;
    const int64_t parts_of_heads = (of_key + most - 1) / most;
    const int64_t heads = (of_key + parts_of_heads - 1) / parts_of_heads, rows = most / heads;
    items.clear();
    read = 0;
    for (int64_t s = 0; s < p.segments; ++s) {
      const int64_t start = p.segment[s].start, n = p.segment[s].stop - start, parts = (n + rows - 1) / rows;
      for (int64_t kv = 0; kv < m.kv_heads; ++kv)
        for (int64_t first = 0; first < of_key; first += heads)
          for (int64_t i = 0; i < parts; ++i) {
            items.push_back({s, start + n * i / parts, start + n * (i + 1) / parts, kv, kv * of_key + first,
                             std::min(heads, of_key - first), read});
            read += p.segment[s].length + n;
          }
    }
  }

  // The items of a part of the attention, first..last. All parts read about as many keys.
  std::pair<const Item*, const Item*> share(const Part& part) const {
    const auto at = [&](int64_t index) {
      return std::partition_point(items.data(), items.data() + items.size(),
                                  [&](const Item& i) { return i.before * part.count < read * index; });
    };
    return {at(part.index), at(part.index + 1)};
  }

  void find_neighbours(const Pass& p) {
    segment_of.resize(p.rows);
    others.resize(p.rows);
    for (int64_t s = 0; s < p.segments; ++s) {
      const Segment& segment = p.segment[s];
      const int64_t n = segment.stop - segment.start;
      for (int64_t i = 0; i < n; ++i) {
        segment_of[segment.start + i] = static_cast<int32_t>(s);
        others[segment.start + i].clear();
        if (!segment.visible) continue;
        for (int64_t j = 0; j < n; ++j)
          if (segment.visible[i * n + j])
            others[segment.start + i].push_back(static_cast<int32_t>(segment.length + j));
      }
    }
  }
};

// Row i of a quantised matrix from k floats.
inline void quantise_row(const float* x, int64_t k, Layout layout, const Quantised& q, int64_t i) {
  if (layout == Layout::groups) return quantise_groups(x, k, q.groups, i);
  const int64_t at = tiled(i, k);
  q.scale[i] = layout == Layout::tiles ? quantise_halves(x, k, q.high + at, q.low + at)
                                       : quantise(x, k, q.values + i * q.stride);
}

inline void norm_row(const float* x, const float* weight, int64_t n, float eps, Layout layout, float* y) {
  return layout == Layout::tiles ? rms_norm16(x, weight, n, eps, y) : rms_norm(x, weight, n, eps, y);
}

// Weights of one output of a linear in strips, in floats [in].
inline void unpack_output(const Linear& l, int64_t output, float* y) {
  const Strip* s = std::partition_point(l.strip, l.strip + l.strips,
                                        [&](const Strip& s) { return s.first + s.width <= output; });
  unpack_lane(*s, kernels().lanes, output - s->first, l.in, y);
}

constexpr int64_t kRowsInCache = 64;  // rows whose activations stay in L2, a multiple of kTileHeight

// The strips from one on that are of one matrix: they lie one after the other.
const Strip* together(const Strip* from, const Strip* last) {
  const Strip* end = from + 1;
  if (end == last) return end;
  const int64_t size = end->bytes - from->bytes;
  while (end < last && end->kind == from->kind && end->bytes - end[-1].bytes == size) ++end;
  return end;
}

void multiply_groups(const Linear& l, const Part& part, const GroupRows& all, const Rows& rows,
                     const Target& target) {
  const GroupRows x = gathered(all, rows);
  const auto begin = [&](int64_t index) {  // kernels may take strips in pairs
    return index == part.count ? l.strips : l.strips * index / part.count / 2 * 2;
  };
  const int64_t first = begin(part.index), last = begin(part.index + 1);
  for (int64_t i = 0; i < rows.count; i += kRowsInCache)
    for (const Strip *s = l.strip + first, *end; s < l.strip + last; s = end) {
      end = together(s, l.strip + last);
      kernels().rows[s->kind](s, end, l, x, i, std::min(rows.count, i + kRowsInCache), rows, target);
    }
}

// In how many parts a product is computed. With AMX a thread keeps to its own columns, whose weights `Reader`
// prefetches.
int64_t parts_of(const Linear& l, int64_t threads) {
  if (l.packed || threads == 1) return threads;
  const int64_t smallest = l.strip ? l.strips : (l.out + kStrip - 1) / kStrip;
  return std::min(smallest, 4 * threads);
}

// A part of a product.
void multiply(const Linear& l, const Part& part, const Quantised& x, const Rows& rows, const Target& target,
              Reader& reader) {
  if (l.strip) return multiply_groups(l, part, x.groups, rows, target);
  if (l.packed) return multiply_amx(l, part, x, rows, target, reader);
  const int64_t strips = (l.out + kStrip - 1) / kStrip;
  columns(l, x, rows, kStrip * (strips * part.index / part.count),
          std::min(l.out, kStrip * (strips * (part.index + 1) / part.count)), target);
}

// The embedding of a row's token, into x.
void look_up(const Model& m, const Pass& pass, const Workspace& w, int64_t i) {
  float* x = pass.x + i * m.hidden;
  if (m.mask_embedding && w.is_adapted[i] && pass.tokens[i] == m.mask_token)
    std::memcpy(x, m.mask_embedding, m.hidden * sizeof *x);
  else
    unpack_output(*m.embedding, pass.tokens[i], x);
}

// The linears of a projection and the delta of the adapted rows; `then` follows once.
template <class F>
void project(Member& member, const Projection& projection, const Quantised& x, const Pass& pass, Workspace& w,
             const Target& target, const F& then) {
  const int64_t began = member.leads() ? nanoseconds() : 0;
  const auto product = [&](const Linear& l, const Quantised& from, const Rows& rows, const Target& to,
                           const auto& next) {
    const int64_t parts = parts_of(l, member.threads());
    member.phase(parts, [&](int64_t p) { multiply(l, {p, parts}, from, rows, to, w.readers[p % member.threads()]); },
                 next);
  };
  const bool adapted = pass.adapted && projection.down.out;
  const auto nothing = [] {};
  if (!adapted) {
    product(projection.base, x, {pass.rows, nullptr, nullptr}, target, then);
  } else {
    product(projection.base, x, {pass.rows, nullptr, nullptr}, target, nothing);
    const int64_t rank = projection.down.out;
    product(projection.down, x, {pass.adapted, pass.adapter_rows, nullptr}, {w.low.data(), rank, false}, nothing);
    const auto part_of = [&](int64_t p) {
      return w.low_room[p].view(pass.adapted, projection.part[p].up.in);
    };
    member.rows(pass.adapted, [&](int64_t i) {
      for (int64_t p = 0; p < projection.parts; ++p) {
        const DeltaPart& part = projection.part[p];
        quantise_row(w.low.data() + i * rank + part.first_rank, part.up.in, w.layout, part_of(p), i);
      }
    });
    for (int64_t p = 0; p < projection.parts; ++p) {
      const Target to{target.y + projection.part[p].first_out, target.stride, true};
      product(projection.part[p].up, part_of(p), {pass.adapted, nullptr, pass.adapter_rows}, to, nothing);
    }
    member.phase(1, [](int64_t) {}, then);
  }
  if (member.leads()) w.spent += nanoseconds() - began;
}

// Norms, rotation and the cache's new keys and values of a row.
void place_heads(const Model& m, const Layer& layer, int64_t index, const Pass& pass, Workspace& w, int64_t i) {
  const int64_t dim = m.head_dim, all = m.heads + 2 * m.kv_heads;
  const int64_t at_position = pass.positions[i] * dim / 2;
  float* row = w.heads.data() + i * all * dim;
  for (int64_t h = 0; h < m.heads + m.kv_heads; ++h) {
    float* head = row + h * dim;
    const float* norm = h < m.heads ? layer.q_norm : layer.k_norm;
    if (norm) rms_norm(head, norm, dim, m.eps, head);
    rotate(head, pass.cos + at_position, pass.sin + at_position, dim / 2);
    if (pass.query_scale && h < m.heads)
      for (int64_t d = 0; d < dim; ++d) head[d] *= pass.query_scale[i];
  }
  const Segment& s = pass.segment[w.segment_of[i]];
  const int64_t place = s.length + i - s.start;
  for (int64_t h = 0; h < m.kv_heads; ++h) {
    const int64_t at = ((index * m.kv_heads + h) * s.capacity + place) * dim;
    to_halves(row + (m.heads + h) * dim, dim, s.keys + at);
    to_halves(row + (m.heads + m.kv_heads + h) * dim, dim, s.values + at);
  }
}

// The keys that a row sees.
Seen seen_by(const Segment& s, int64_t i, const Workspace& w) {
  if (s.visible) {
    const auto& others = w.others[i];
    return {s.length, s.length + static_cast<int64_t>(others.size()), others.data()};
  }
  const int64_t count = s.length + (s.causal ? i + 1 : s.stop) - s.start;
  return {count, count, nullptr};
}

// The cache of an item's key head, in a layer.
int64_t cache_at(const Model& m, int64_t layer, const Segment& s, const Item& item) {
  return (layer * m.kv_heads + item.kv) * s.capacity * m.head_dim;
}

// Whether an item is the first one of its part that reads its keys.
bool reads_first(const Item* item, const Item* first) {
  return item == first || item[-1].segment != item->segment || item[-1].kv != item->kv;
}

// A part of the attention.
void attend_part(const Model& m, int64_t index, const Part& part, const Pass& pass, Workspace& w, Reader& reader) {
  thread_local std::vector<float> scores(4096);
  const int64_t dim = m.head_dim, all = m.heads + 2 * m.kv_heads;
  const auto [first, last] = w.share(part);
  for (const Item* item = first; item < last; ++item) {
    const Segment& s = pass.segment[item->segment];
    Together t{item->stop - item->start, item->heads, {}, {}, {}, 0};
    for (int64_t r = 0, q = 0; r < t.rows; ++r) {
      const int64_t row = item->start + r;
      t.seen[r] = seen_by(s, row, w);
      t.end = std::max(t.end, s.visible ? s.length + s.stop - s.start : t.seen[r].count);
      for (int64_t h = item->first; h < item->first + t.heads; ++h, ++q) {
        t.query[q] = w.heads.data() + (row * all + h) * dim;
        t.out[q] = w.attended.data() + (row * m.heads + h) * dim;
      }
    }
    const int64_t room = round_up(t.end + kPanel, 16), wanted = t.rows * t.heads * room;
    if (static_cast<int64_t>(scores.size()) < wanted) scores.resize(2 * wanted);
    const int64_t at = cache_at(m, index, s, *item);
    const int64_t ahead = reads_first(item, first) ? s.length : 0;
    if (w.in_tiles)
      attend_in_tiles(dim, t, s.keys + at, s.values + at, scores.data(), room,
                      {reader, ahead, dim * static_cast<int64_t>(sizeof(Half))});
    else
      attend(dim, t, s.keys + at, s.values + at, scores.data(), room);
  }
}

// The memory that a part of all products and attention reads in a pass, in order.
void expect_all(const Model& m, const Pass& pass, const Workspace& w, const Part& part, Reader& reader) {
  const auto projection = [&](const Projection& p) {
    reader.expect(p.base, part);
    if (!pass.adapted || !p.down.out) return;
    reader.expect(p.down, part);
    for (int64_t i = 0; i < p.parts; ++i) reader.expect(p.part[i].up, part);
  };
  const auto [first, last] = w.share(part);
  for (int64_t layer = 0; layer < m.layers; ++layer) {
    projection(m.layer[layer].qkv);
    for (const Item* item = first; w.in_tiles && item < last; ++item) {
      if (!reads_first(item, first)) continue;
      const Segment& s = pass.segment[item->segment];
      const int64_t at = cache_at(m, layer, s, *item), bytes = s.length * m.head_dim * sizeof(Half);
      reader.expect(s.keys + at, bytes);
      reader.expect(s.values + at, bytes);
    }
    projection(m.layer[layer].o);
    projection(m.layer[layer].gate_up);
    projection(m.layer[layer].down);
  }
  reader.start();
}

// Rows up to which what is done with each row follows a product at once, by the thread that ends it. That saves a
// wait of all threads.
constexpr int64_t kFewRows = 2;

// f(row) for all rows after a product or the attention: `then` of it, or a phase of its own.
template <class F>
class AfterProduct {
 public:
  AfterProduct(Member& member, int64_t rows, const F& f) : member_(member), rows_(rows), f_(f) {}
  void operator()() const {
    for (int64_t i = 0; rows_ <= kFewRows && i < rows_; ++i) f_(i);
  }
  void rest() const {
    if (rows_ > kFewRows) member_.rows(rows_, f_);
  }

 private:
  Member& member_;
  int64_t rows_;
  const F& f_;
};

// From the layer's normed and quantised input to its output, and `next(row)` of it.
template <class F>
void run_layer(Member& member, const Model& m, int64_t index, const Pass& pass, Workspace& w, const F& next) {
  const Layer& layer = m.layer[index];
  const int64_t hidden = m.hidden, inner = m.intermediate;
  const int64_t attention = m.heads * m.head_dim, qkv = attention + 2 * m.kv_heads * m.head_dim;
  const auto rows_of = [&](int64_t k) { return w.room.view(pass.rows, k); };
  const Target residual{pass.x, hidden, true};
  const auto product = [&](const Projection& p, int64_t k, const Target& target, const auto& f) {
    const AfterProduct then(member, pass.rows, f);
    project(member, p, rows_of(k), pass, w, target, then);
    then.rest();
  };
  product(layer.qkv, hidden, {w.heads.data(), qkv, false},
          [&](int64_t i) { place_heads(m, layer, index, pass, w, i); });
  const auto join = [&](int64_t i) {
    quantise_row(w.attended.data() + i * attention, attention, w.layout, rows_of(attention), i);
  };
  const AfterProduct joined(member, pass.rows, join);
  const int64_t threads = member.threads(), parts = w.in_tiles || threads == 1 ? threads : 4 * threads;
  member.phase(parts, [&](int64_t p) { attend_part(m, index, {p, parts}, pass, w, w.readers[p % threads]); }, joined);
  joined.rest();
  product(layer.o, attention, residual, [&](int64_t i) {
    float* y = w.normed.data() + i * hidden;
    norm_row(pass.x + i * hidden, layer.mlp_norm, hidden, m.eps, w.layout, y);
    quantise_row(y, hidden, w.layout, rows_of(hidden), i);
  });
  product(layer.gate_up, hidden, {w.wide.data(), 2 * inner, false}, [&](int64_t i) {
    float* gate = w.wide.data() + i * 2 * inner;
    if (w.layout == Layout::tiles)
      swiglu16(gate, gate + inner, inner);
    else
      swiglu(gate, gate + inner, inner);
    quantise_row(gate, inner, w.layout, rows_of(inner), i);
  });
  product(layer.down, inner, residual, next);
}

}  // namespace

#include "draft_head.h"
#include "markov_tree.h"
#include "screen.h"

#pragma GCC visibility push(default)
extern "C" {

int64_t trimode_abi() { return 11; }

// A size or constant that Python assumes too, by its name in `structs.py`; -1 if there is none.
int64_t trimode_fact(const char* name) {
  struct Fact {
    const char* name;
    int64_t value;
  };
  static const Fact facts[] = {
      {"sizeof Strip", sizeof(Strip)},
      {"sizeof Linear", sizeof(Linear)},
      {"sizeof DeltaPart", sizeof(DeltaPart)},
      {"sizeof Projection", sizeof(Projection)},
      {"sizeof Layer", sizeof(Layer)},
      {"sizeof Model", sizeof(Model)},
      {"sizeof Segment", sizeof(Segment)},
      {"sizeof Pass", sizeof(Pass)},
      {"sizeof DraftHead", sizeof(DraftHead)},
      {"sizeof MarkovHead", sizeof(MarkovHead)},
      {"most_parts", kMostParts},
      {"head_dim_multiple", kHeadDimMultiple},
      {"feature_multiple", kFeatureMultiple},
      {"weight_levels", kWeightLevels},
      {"activation_levels", kActivationLevels},
      {"tile_outputs", kTileOut},
      {"tile_inputs", kTileIn},
  };
  for (const Fact& fact : facts)
    if (!std::strcmp(fact.name, name)) return fact.value;
  return -1;
}

// Whether linears should come with packed weights on this machine.
int64_t trimode_wants_packed() { return has_amx(); }

// Runs a pass: x becomes the hidden states after the last norm. New keys and values are written after each
// segment's cache. Returns 0; or, if nothing is done because positions lack cos and sin, how many need one.
int64_t trimode_pass(const Model* model, Pass* pass) {
  const int64_t wanted = *std::max_element(pass->positions, pass->positions + pass->rows) + 1;
  if (wanted > pass->places) return wanted;
  thread_local Workspace own;
  Workspace& workspace = own;
  workspace.prepare(*model, *pass);
  workspace.readers.resize(pass->threads);
  const Model& m = *model;
  const auto norm = [&](const float* weight, int64_t i, float* y) {
    norm_row(pass->x + i * m.hidden, weight, m.hidden, m.eps, workspace.layout, y);
  };
  // Norm and quantisation before a layer; after the last one its norm alone.
  const auto enter = [&](int64_t layer, int64_t i) {
    if (layer == m.layers) return norm(m.norm, i, pass->x + i * m.hidden);
    float* y = workspace.normed.data() + i * m.hidden;
    norm(m.layer[layer].input_norm, i, y);
    quantise_row(y, m.hidden, workspace.layout, workspace.room.view(pass->rows, m.hidden), i);
  };
  Team::run(pass->threads, [&](Member& member) {
    const int64_t threads = member.threads();
    member.phase(threads, [&](int64_t p) {
      workspace.readers[p] = Reader();
      expect_all(m, *pass, workspace, {p, threads}, workspace.readers[p]);
    });
    member.rows(pass->rows, [&](int64_t i) {
      if (pass->tokens) look_up(m, *pass, workspace, i);
      enter(0, i);
    });
    for (int64_t layer = 0; layer < m.layers; ++layer)
      run_layer(member, m, layer, *pass, workspace, [&](int64_t i) { enter(layer + 1, i); });
    if (workspace.in_tiles || workspace.layout == Layout::tiles) release_tiles();
  });
  pass->products = static_cast<double>(workspace.spent) * 1e-9;
  return 0;
}

// The name of the kernels for weights in groups; null if this machine does not have kernels number `index`, of
// which the fastest come last. -1: those in use.
const char* trimode_kernels(int64_t index) {
  if (index < 0) return kernels().name;
  return index < static_cast<int64_t>(all_kernels().size()) ? all_kernels()[index].name : nullptr;
}

// Uses other kernels from now on. Weights that were packed before are of no use afterwards.
void trimode_use_kernels(int64_t index) { kernels() = all_kernels()[index]; }

// Outputs of a strip on this machine.
int64_t trimode_lanes() { return kernels().lanes; }

// Bytes of a strip of a linear with so many inputs.
int64_t trimode_strip_bytes(int64_t kind, int64_t in) {
  return strip_bytes(kForms[kind], trimode_lanes(), (in + kGroup - 1) / kGroup);
}

// Bytes of its lower nibbles, which come after the last strip.
int64_t trimode_lower_bytes(int64_t kind, int64_t in) {
  return (in + kGroup - 1) / kGroup * lower_bytes(kForms[kind], trimode_lanes());
}

// Packs rows of a file's blocks, `stride` bytes apart, into strips.
void trimode_pack(int64_t kind, const uint8_t* blocks, int64_t stride, int64_t rows, int64_t in, uint8_t* strips,
                  int64_t threads) {
  const int64_t lanes = trimode_lanes(), size = trimode_strip_bytes(kind, in);
  const int64_t count = (rows + lanes - 1) / lanes, lower_size = trimode_lower_bytes(kind, in);
  for_each(count, threads, [&](int64_t s) {
    const int64_t i = s * lanes;
    pack_strip(static_cast<Kind>(kind), blocks + i * stride, stride, std::min(lanes, rows - i),
               (in + kGroup - 1) / kGroup, lanes, strips + s * size, strips + count * size + s * lower_size);
  });
}

// Rows of floats, `stride` bytes apart, to blocks of Q4_1 or Q8_0, one row after the other.
void trimode_quantise(int64_t kind, int64_t type, const uint8_t* weights, int64_t stride, int64_t rows, int64_t in,
                      uint8_t* blocks, int64_t threads) {
  const int64_t size = (in + kGroup - 1) / kGroup * kForms[kind].block_bytes;
  for_each(rows, threads, [&](int64_t i) {
    quantise_weights(static_cast<Kind>(kind), static_cast<FloatType>(type), weights + i * stride, in,
                     blocks + i * size);
  });
}

// Rows of a file's blocks, `stride` bytes apart, in floats [count, in]. `index`: which rows; null: the first.
void trimode_unpack(int64_t kind, const uint8_t* blocks, int64_t stride, const int64_t* index, int64_t count,
                    int64_t in, float* y, int64_t threads) {
  for_each(count, count > 64 ? threads : 1, [&](int64_t i) {
    unpack_blocks(static_cast<Kind>(kind), blocks + (index ? index[i] : i) * stride, in, y + i * in);
  });
}

// Weights of some outputs of a linear in strips, in floats [count, in].
void trimode_rows(const Linear* l, const int64_t* outputs, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) unpack_output(*l, outputs[i], y + i * l->in);
}

// A step of a draft head: from the state that chose a token and the token's embedding, each [dim], to the state
// after it [dim] and the logits of what follows [words].
void trimode_draft_step(const DraftHead* head, const float* state, const float* embedded, float* after, float* logits,
                        int64_t threads) {
  draft_step(*head, state, embedded, after, logits, threads);
}

// The likeliest beginnings of what follows a token, as long as their nodes are worth their rows; see draft_head.h.
int64_t trimode_draft_tree(const DraftHead* head, const uint16_t* embeddings, const float* state, const float* embedded,
                           int64_t most, int64_t branches, const float* shares, float trust, int64_t* words,
                           int64_t* parents, float* chances, int64_t threads) {
  return draft_tree(*head, embeddings, state, embedded, {most, branches, shares, trust}, {words, parents, chances},
                    threads);
}

// The likeliest beginnings of an answer by scores [places, vocab], rows `stride` apart, hidden states [places, dim] of
// masks, and a Markov head; see markov_tree.h. earlier, newest: the tokens before the first place.
// tokens, parents, chances: [nodes]. Returns how many there are.
int64_t trimode_markov_tree(const MarkovHead* head, const float* scores, int64_t places, int64_t vocab, int64_t stride,
                            const float* states, float sharpness, int64_t earlier, int64_t newest,
                            int64_t candidates, int64_t branches, int64_t nodes, int64_t* tokens, int64_t* parents,
                            double* chances, int64_t threads) {
  return markov_tree(*head, scores, places, vocab, stride, states, sharpness, {earlier, newest}, candidates, branches,
                     nodes, tokens, parents, chances, threads);
}

// Most rows for which `trimode_highest` is faster than the whole product of such a linear; 0 if it cannot be used.
int64_t trimode_screened(const Linear* linear) { return has_bounds(*linear) ? kernels().screened : 0; }

// The first of the highest outputs of each row [rows], `excluded` (or none: -1) left out; see screen.h.
void trimode_highest(const Linear* linear, const float* x, int64_t rows, int64_t excluded, int64_t* best,
                     int64_t threads) {
  highest_outputs(*linear, x, rows, excluded, best, threads);
}

// y [rows, out] = linear(x [rows, in]).
void trimode_linear(const Linear* linear, const float* x, int64_t rows, float* y, int64_t threads) {
  const int64_t k = linear->in;
  const Layout layout = layout_of(*linear);
  thread_local Room room;
  room.reserve(layout, rows, k);
  const Quantised q = room.view(rows, k);
  std::vector<Reader> readers(threads);
  Team::run(threads, [&](Member& member) {
    member.rows(rows, [&](int64_t i) { quantise_row(x + i * k, k, layout, q, i); });
    const int64_t parts = parts_of(*linear, member.threads());
    member.phase(parts, [&](int64_t p) {
      Reader& reader = readers[p % member.threads()];
      reader.expect(*linear, {p, parts});
      reader.start();
      multiply(*linear, {p, parts}, q, {rows, nullptr, nullptr}, {y, linear->out, false}, reader);
    });
    if (layout == Layout::tiles) release_tiles();
  });
}
}
#pragma GCC visibility pop
