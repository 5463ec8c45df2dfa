// Products with weights in groups, for one instruction set: included by the file of each
// set, which defines `V`, its vectors. All sets give the same bits.

#define TRIMODE_INLINE __attribute__((always_inline))

constexpr int64_t kLanes = V::kLanes;
constexpr int64_t kAhead = 2048;  // bytes to prefetch ahead

// MR rows of a strip, from row `first` on, which lie in one tile of activations. sums [MR][kLanes].
template <int KIND, int MR>
static __attribute__((noinline)) void tile(const Strip& strip, const GroupRows& x, int64_t first, float* sums) {
  constexpr Form f = kForms[KIND];
  const uint8_t *w = strip.bytes, *lower = strip.lower;
  const int8_t* a = x.value + x.at(first, 0) * kGroup;
  const GroupInfo* info = x.info + x.at(first, 0);
  each<MR>([&](auto r) TRIMODE_INLINE { V::store(sums + kLanes * r, V::zeros()); });
  typename V::Floats factor = V::zeros(), low_factor = V::zeros();
  for (int64_t g = 0; g < x.groups; ++g, a += x.height * kGroup, info += x.height) {
    if constexpr (f.super)
      if (g % kSuper == 0) {
        factor = V::halves(w);
        if constexpr (f.minimum) low_factor = V::halves(w + 2 * kLanes);
        w += factor_bytes(f, kLanes);
      }
    for (int64_t line = 0; line < group_bytes(f, kLanes); line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + line), _MM_HINT_T0);
    for (int64_t line = 0; line < lower_bytes(f, kLanes); line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(lower + kAhead + line), _MM_HINT_T0);
    const uint8_t* scales = w + value_bytes(f, kLanes);
    // Adds scale * (integers - offset) and what the minimum gives to each row's sum.
    const auto add = [&](const typename V::Integers* t, auto scale, auto minimum, auto part) TRIMODE_INLINE {
      each<MR>([&](auto r) TRIMODE_INLINE {
        typename V::Integers whole = t[r];
        if constexpr (f.shift != 0) {
          typename V::Integers all = V::same(part == 1 ? info[r].first : info[r].total);
          if constexpr (part == 2) all = V::minus(all, V::same(info[r].first));
          whole = V::minus(whole, V::template shifted<f.shift>(all));
        }
        auto product = V::times(V::floats(whole), V::times(scale, V::same(info[r].scale)));
        if constexpr (f.minimum) product = V::plus(product, V::times(minimum, V::same(info[r].scaled_total)));
        V::store(sums + kLanes * r, V::plus(V::load(sums + kLanes * r), product));
      });
    };
    typename V::Integers t[MR];
    if constexpr (f.halves) {
      each<2>([&](auto h) TRIMODE_INLINE {
        V::template dots<f.bits, 4 * h, 4, MR>(w, lower, a, t);
        add(t, V::times(factor, V::signed_bytes(scales + h * kLanes)), V::zeros(), Number<1 + h>{});
      });
    } else {
      V::template dots<f.bits, 0, 8, MR>(w, lower, a, t);
      if constexpr (f.super)
        add(t, V::times(factor, V::bytes(scales)),
            V::negative(V::times(low_factor, V::bytes(scales + kLanes))), Number<0>{});
      else if constexpr (f.minimum)
        add(t, V::halves(scales), V::halves(scales + 2 * kLanes), Number<0>{});
      else
        add(t, V::halves(scales), V::zeros(), Number<0>{});
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

// Rows first..last of a strip. `first` begins a tile of activations.
template <int KIND>
static void strip_rows(const Strip& strip, const Linear& l, const GroupRows& x, int64_t first, int64_t last,
                       const Rows& rows, const Target& target) {
  constexpr int most = V::template rows<kForms[KIND].bits>();
  alignas(64) float sums[most * kLanes];
  for (int64_t i = first, n; i < last; i += n) {
    n = last - i < most ? last - i : most;
    each<most>([&](auto m) TRIMODE_INLINE {
      if (n == m + 1) tile<KIND, m + 1>(strip, x, i, sums);
    });
    put_rows(strip, l, i, i + n, rows, target, sums);
  }
}

static const StripRows kStripRows[kKinds] = {
    strip_rows<Q4_0>, strip_rows<Q4_1>, strip_rows<Q5_0>, strip_rows<Q5_1>,
    strip_rows<Q8_0>, strip_rows<Q4_K>, strip_rows<Q5_K>, strip_rows<Q6_K>,
};

// Upper bounds on the products of MR rows with a strip of 8 bits, out of its upper nibbles: bounds [MR][kLanes].
template <int MR>
static __attribute__((noinline)) void bound_tile(const uint8_t* w, const GroupRows& x, const float* spread,
                                                 int64_t first, float* bounds) {
  constexpr Form f = kForms[Q8_0];
  const int8_t* a = x.value + x.at(first, 0) * kGroup;
  const GroupInfo* info = x.info + x.at(first, 0);
  spread += x.at(first, 0);
  alignas(64) float squares[MR * kLanes];
  each<MR>([&](auto r) TRIMODE_INLINE {
    V::store(bounds + kLanes * r, V::zeros());
    V::store(squares + kLanes * r, V::zeros());
  });
  for (int64_t g = 0; g < x.groups; ++g, a += x.height * kGroup, info += x.height, spread += x.height) {
    for (int64_t line = 0; line < group_bytes(f, kLanes); line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + line), _MM_HINT_T0);
    typename V::Integers t[MR];
    V::template dots<4, 0, 8, MR>(w, nullptr, a, t);
    const typename V::Floats scale = V::halves(w + value_bytes(f, kLanes)), squared = V::times(scale, scale);
    each<MR>([&](auto r) TRIMODE_INLINE {
      // Twice what the values are with 7.5 for a lower nibble: 2 * (16 * upper + 7.5 - 128).
      const auto whole = V::minus(V::template shifted<5>(t[r]), V::same(241 * info[r].total));
      const auto product = V::times(V::floats(whole), V::times(scale, V::same(info[r].scale)));
      V::store(bounds + kLanes * r, V::plus(V::load(bounds + kLanes * r), product));
      const auto more = V::times(squared, V::same(spread[r]));
      V::store(squares + kLanes * r, V::plus(V::load(squares + kLanes * r), more));
    });
    w += group_bytes(f, kLanes);
  }
  each<MR>([&](auto r) TRIMODE_INLINE {
    const auto middle = V::times(V::load(bounds + kLanes * r), V::same(0.5f));
    V::store(bounds + kLanes * r, V::plus(middle, V::root(V::load(squares + kLanes * r))));
  });
}

// The highest bound of each row of a strip. `excluded`: an output that does not count.
static void strip_bounds(const Strip& strip, const GroupRows& x, const float* spread, int64_t rows, int64_t excluded,
                         float* tops, int64_t stride) {
  constexpr int most = V::template rows<4>();
  alignas(64) float bounds[most * kLanes];
  for (int64_t i = 0, n; i < rows; i += n) {
    n = rows - i < most ? rows - i : most;
    each<most>([&](auto m) TRIMODE_INLINE {
      if (n == m + 1) bound_tile<m + 1>(strip.bytes, x, spread, i, bounds);
    });
    for (int64_t r = 0; r < n; ++r) {
      float* of = bounds + r * kLanes;
      for (int64_t c = strip.width; c < kLanes; ++c) of[c] = -INFINITY;
      if (excluded >= strip.first && excluded < strip.first + strip.width) of[excluded - strip.first] = -INFINITY;
      tops[(i + r) * stride] = V::highest(V::load(of));
    }
  }
}

#undef TRIMODE_INLINE
