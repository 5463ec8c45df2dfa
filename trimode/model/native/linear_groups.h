// Products with weights in groups, for one instruction set: included by the file of each
// set, which defines `V`, its vectors. All sets give the same bits.

#define TRIMODE_INLINE __attribute__((always_inline))

constexpr int64_t kLanes = V::kLanes;
constexpr int64_t kAhead = 2048;  // bytes to prefetch ahead

// Prefetches strips that lie one after the other, in order, ahead of their use. Of N strips that are used at a time
// the last one has to be there first, so it begins as far ahead.
template <int N>
class Ahead {
 public:
  explicit Ahead(const uint8_t* from, int64_t strip_size) : at_(from + (N - 1) * strip_size + kAhead) {}
  void advance(int64_t bytes) {  // of a strip
    for (int64_t line = 0; line < N * bytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(at_ + line), _MM_HINT_T0);
    at_ += N * bytes;
  }
  void skip(int64_t bytes) { at_ += N * bytes; }

 private:
  const uint8_t* at_;
};

// MR rows of N strips that lie one after the other, from row `first` on, which lie in one tile of activations.
// sums [N][MR][kLanes].
template <int KIND, int MR, int N>
static __attribute__((noinline)) void tile(const Strip& strip, const GroupRows& x, int64_t first, float* sums) {
  constexpr Form f = kForms[KIND];
  const int64_t apart = strip_bytes(f, kLanes, x.groups);
  const uint8_t *w = strip.bytes, *lower = strip.lower;
  Ahead<N> ahead(w, apart);
  Ahead<1> lower_ahead(lower, 0);
  const int8_t* a = x.value + x.at(first, 0) * kGroup;
  const GroupInfo* info = x.info + x.at(first, 0);
  each<N * MR>([&](auto i) TRIMODE_INLINE { V::store(sums + kLanes * i, V::zeros()); });
  typename V::Floats factor[N], low_factor[N];
  for (int64_t g = 0; g < x.groups; ++g, a += x.height * kGroup, info += x.height) {
    if constexpr (f.super)
      if (g % kSuper == 0) {
        each<N>([&](auto n) TRIMODE_INLINE {
          factor[n] = V::halves(w + n * apart);
          if constexpr (f.minimum) low_factor[n] = V::halves(w + n * apart + 2 * kLanes);
        });
        w += factor_bytes(f, kLanes);
        ahead.skip(factor_bytes(f, kLanes));
      }
    ahead.advance(group_bytes(f, kLanes));
    lower_ahead.advance(lower_bytes(f, kLanes));
    // Adds scale * (integers - offset) and what the minimum gives to each row's sum in strip n.
    const auto add = [&](const typename V::Integers* t, auto n, auto scale, auto minimum, auto part) TRIMODE_INLINE {
      each<MR>([&](auto r) TRIMODE_INLINE {
        float* sum = sums + kLanes * (n * MR + r);
        typename V::Integers whole = t[n * MR + r];
        if constexpr (f.shift != 0) {
          typename V::Integers all = V::same(part == 1 ? info[r].first : info[r].total);
          if constexpr (part == 2) all = V::minus(all, V::same(info[r].first));
          whole = V::minus(whole, V::template shifted<f.shift>(all));
        }
        auto product = V::times(V::floats(whole), V::times(scale, V::same(info[r].scale)));
        if constexpr (f.minimum) product = V::plus(product, V::times(minimum, V::same(info[r].scaled_total)));
        V::store(sum, V::plus(V::load(sum), product));
      });
    };
    typename V::Integers t[N * MR];
    if constexpr (f.halves) {
      static_assert(N == 1);
      const uint8_t* scales = w + value_bytes(f, kLanes);
      each<2>([&](auto h) TRIMODE_INLINE {
        V::template dots<f.bits, 4 * h, 4, MR, N>(w, apart, lower, a, t);
        add(t, Number<0>{}, V::times(factor[0], V::signed_bytes(scales + h * kLanes)), V::zeros(), Number<1 + h>{});
      });
    } else {
      V::template dots<f.bits, 0, 8, MR, N>(w, apart, lower, a, t);
      each<N>([&](auto n) TRIMODE_INLINE {
        const uint8_t* scales = w + n * apart + value_bytes(f, kLanes);
        if constexpr (f.super)
          add(t, n, V::times(factor[n], V::bytes(scales)),
              V::negative(V::times(low_factor[n], V::bytes(scales + kLanes))), Number<0>{});
        else if constexpr (f.minimum)
          add(t, n, V::halves(scales), V::halves(scales + 2 * kLanes), Number<0>{});
        else
          add(t, n, V::halves(scales), V::zeros(), Number<0>{});
      });
    }
    w += group_bytes(f, kLanes);
    lower += lower_bytes(f, kLanes);
  }
}

// Results of rows first.. of a strip, [rows][kLanes], to where they belong.
static inline void put_rows(const Strip& strip, const Linear& l, int64_t first, int64_t last, const Rows& rows,
                            const Target& target, const float* results) {
  const float* bias = l.bias ? l.bias + strip.first : nullptr;
  for (int64_t i = first; i < last; ++i, results += kLanes) {
    float* y = target.y + rows.out(i) * target.stride + strip.first;
    if (strip.width == kLanes) {
      typename V::Floats value = V::load(results);
      if (bias) value = V::plus(value, V::load_any(bias));
      V::store_any(y, target.add ? V::plus(V::load_any(y), value) : value);
      continue;
    }
    for (int64_t c = 0; c < strip.width; ++c) {
      const float value = bias ? results[c] + bias[c] : results[c];
      y[c] = target.add ? y[c] + value : value;
    }
  }
}

// f(count), with a count that is a constant: one of 1..MOST.
template <int MOST, class F>
static inline TRIMODE_INLINE void with_rows(int64_t count, const F& f) {
  each<MOST>([&](auto m) TRIMODE_INLINE {
    if (count == m + 1) f(Number<m + 1>{});
  });
}

// Rows first..last of strips of one kind. `first` begins a tile of activations.
template <int KIND>
static void strip_rows(const Strip* strip, const Strip* end, const Linear& l, const GroupRows& x, int64_t first,
                       int64_t last, const Rows& rows, const Target& target) {
  constexpr int bits = kForms[KIND].bits, most = V::template rows<bits>(), in_pairs = bits == 4 ? V::kRowsInPairs : 0;
  alignas(64) float sums[std::max(most, 2 * in_pairs) * kLanes];
  const int64_t count = last - first;
  if constexpr (in_pairs > 0)
    for (; count <= in_pairs && strip + 1 < end; strip += 2) {
      with_rows<in_pairs>(count, [&](auto m) TRIMODE_INLINE { tile<KIND, m, 2>(*strip, x, first, sums); });
      put_rows(strip[0], l, first, last, rows, target, sums);
      put_rows(strip[1], l, first, last, rows, target, sums + count * kLanes);
    }
  for (; strip < end; ++strip)
    for (int64_t i = first, n; i < last; i += n) {
      n = last - i < most ? last - i : most;
      with_rows<most>(n, [&](auto m) TRIMODE_INLINE { tile<KIND, m, 1>(*strip, x, i, sums); });
      put_rows(*strip, l, i, i + n, rows, target, sums);
    }
}

static const StripRows kStripRows[kKinds] = {
    strip_rows<Q4_0>, strip_rows<Q4_1>, strip_rows<Q5_0>, strip_rows<Q5_1>,
    strip_rows<Q8_0>, strip_rows<Q4_K>, strip_rows<Q5_K>, strip_rows<Q6_K>,
};

// Upper bounds on the products of MR rows with N strips of 8 bits that lie one after the other, out of their upper
// nibbles: bounds [N][MR][kLanes].
template <int MR, int N>
static __attribute__((noinline)) void bound_tile(const uint8_t* w, const GroupRows& x, const float* spread,
                                                 int64_t first, float* bounds) {
  constexpr Form f = kForms[Q8_0];
  const int64_t apart = strip_bytes(f, kLanes, x.groups);
  Ahead<N> ahead(w, apart);
  const int8_t* a = x.value + x.at(first, 0) * kGroup;
  const GroupInfo* info = x.info + x.at(first, 0);
  spread += x.at(first, 0);
  alignas(64) float squares[N * MR * kLanes];
  each<N * MR>([&](auto i) TRIMODE_INLINE {
    V::store(bounds + kLanes * i, V::zeros());
    V::store(squares + kLanes * i, V::zeros());
  });
  for (int64_t g = 0; g < x.groups; ++g, a += x.height * kGroup, info += x.height, spread += x.height) {
    ahead.advance(group_bytes(f, kLanes));
    typename V::Integers t[N * MR];
    V::template dots<4, 0, 8, MR, N>(w, apart, nullptr, a, t);
    each<N>([&](auto n) TRIMODE_INLINE {
      const typename V::Floats scale = V::halves(w + n * apart + value_bytes(f, kLanes));
      const typename V::Floats squared = V::times(scale, scale);
      each<MR>([&](auto r) TRIMODE_INLINE {
        const int64_t at = kLanes * (n * MR + r);
        // Twice what the values are with 7.5 for a lower nibble: 2 * (16 * upper + 7.5 - 128).
        const auto whole = V::minus(V::template shifted<5>(t[n * MR + r]), V::same(241 * info[r].total));
        const auto product = V::times(V::floats(whole), V::times(scale, V::same(info[r].scale)));
        V::store(bounds + at, V::plus(V::load(bounds + at), product));
        const auto more = V::times(squared, V::same(spread[r]));
        V::store(squares + at, V::plus(V::load(squares + at), more));
      });
    });
    w += group_bytes(f, kLanes);
  }
  each<N * MR>([&](auto i) TRIMODE_INLINE {
    const auto middle = V::times(V::load(bounds + kLanes * i), V::same(0.5f));
    V::store(bounds + kLanes * i, V::plus(middle, V::root(V::load(squares + kLanes * i))));
  });
}

// The highest bound of each row of strips that lie one after the other. `excluded`: an output that does not count.
// tops: of these strips, those of a row `stride` after those of the row before.
static void strip_bounds(const Strip* strip, const Strip* end, const GroupRows& x, const float* spread, int64_t rows,
                         int64_t excluded, float* tops, int64_t stride) {
  constexpr int most = V::template rows<4>(), in_pairs = V::kRowsInPairs;
  const Strip* const begin = strip;
  alignas(64) float bounds[std::max(most, 2 * in_pairs) * kLanes];
  const auto put = [&](const Strip& strip, int64_t index, int64_t first, int64_t count, float* of) {
    for (int64_t r = 0; r < count; ++r, of += kLanes) {
      for (int64_t c = strip.width; c < kLanes; ++c) of[c] = -INFINITY;
      if (excluded >= strip.first && excluded < strip.first + strip.width) of[excluded - strip.first] = -INFINITY;
      tops[(first + r) * stride + index] = V::highest(V::load(of));
    }
  };
  if constexpr (in_pairs > 0)
    for (; rows <= in_pairs && strip + 1 < end; strip += 2) {
      with_rows<in_pairs>(rows, [&](auto m) TRIMODE_INLINE { bound_tile<m, 2>(strip->bytes, x, spread, 0, bounds); });
      put(strip[0], strip - begin, 0, rows, bounds);
      put(strip[1], strip + 1 - begin, 0, rows, bounds + rows * kLanes);
    }
  for (; strip < end; ++strip)
    for (int64_t i = 0, n; i < rows; i += n) {
      n = rows - i < most ? rows - i : most;
      with_rows<most>(n, [&](auto m) TRIMODE_INLINE { bound_tile<m, 1>(strip->bytes, x, spread, i, bounds); });
      put(*strip, strip - begin, i, n, bounds);
    }
}

#undef TRIMODE_INLINE
