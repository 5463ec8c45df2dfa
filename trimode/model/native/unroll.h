// f(0), f(1), ... with numbers that are constants, so that arrays of registers stay in registers. Included
// in the namespace of each instruction set: a function for one set cannot be inlined into one for another.

template <class F, int... I>
static inline __attribute__((always_inline)) void each_of(const F& f, std::integer_sequence<int, I...>) {
  (f(Number<I>{}), ...);
}

template <int N, class F>
static inline __attribute__((always_inline)) void each(const F& f) {
  each_of(f, std::make_integer_sequence<int, N>{});
}
