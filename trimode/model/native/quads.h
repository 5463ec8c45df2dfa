// Unpacking of values, and products by instructions that add four of them in 32 bits. Included in the
// namespace of an instruction set, after `unroll.h`.

// Values of inputs 4 J.. of each output. W: the vectors. lower: the lower nibbles of 8 bits.
template <class W, int BITS, int J>
static inline __attribute__((always_inline)) auto quad(const uint8_t* w, const uint8_t* lower) {
  constexpr int64_t size = 4 * W::kLanes;  // bytes of a register
  if constexpr (BITS == 8) {
    const auto above = W::read(w + size * (J % 4)), below = W::read(lower + size * (J % 4));
    if constexpr (J < 4)
      return W::nibbles(W::template left<4>(above), below);
    else
      return W::nibbles(above, W::template right<4>(below));
  } else {
    const auto packed = W::read(w + size * (J % 4));
    const auto low = W::masked(J < 4 ? packed : W::template right<4>(packed), 15);
    if constexpr (BITS == 4) {
      return low;
    } else {
      constexpr int at = BITS == 5 ? J : J % 4 * 2;  // its lowest bit, which goes to bit 4
      const auto above = W::read(w + size * (4 + (BITS == 6 ? J / 4 : 0)));
      const auto moved = at < 4 ? W::template left<at < 4 ? 4 - at : 0>(above)
                                : W::template right<at < 4 ? 0 : at - 4>(above);
      return W::either(low, W::masked(moved, BITS == 5 ? 16 : 48));
    }
  }
}

// Vectors W with an instruction that adds the products of four bytes: all kinds are alike.
template <class W>
struct Vnni : W {
  using Integers = typename W::Integers;
  static constexpr int kRowsInPairs = 0;  // memory is the limit of few rows

  template <int BITS>
  static constexpr int rows() { return W::kRows; }

  template <int BITS, int FIRST, int COUNT, int MR, int N>
  static inline __attribute__((always_inline)) void dots(const uint8_t* w, int64_t, const uint8_t* lower,
                                                         const int8_t* a, Integers* t) {
    static_assert(N == 1);
    each<MR>([&](auto r) __attribute__((always_inline)) { t[r] = W::same(int32_t{0}); });
    each<COUNT>([&](auto j) __attribute__((always_inline)) {
      // Nibbles of one register follow each other.
      constexpr int at = FIRST + (COUNT == 8 ? j % 2 * 4 + j / 2 : j);
      const Integers values = quad<W, BITS, at>(w, lower);
      each<MR>([&](auto r) __attribute__((always_inline)) {
        t[r] = W::product(t[r], values, W::four(a + kGroup * r + 4 * at));
      });
    });
  }
};
