// f(0), f(1), ... with numbers that are constants, so that arrays of registers stay in registers. Included
// once for each instruction set: a function for one set cannot be inlined into one for another.

template <int N, int I = 0, class F>
static inline __attribute__((always_inline)) void each(F f) {
  if constexpr (I < N) {
    f(Number<I>{});
    each<N, I + 1>(f);
  }
}
