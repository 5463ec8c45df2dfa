// Vectors of eight outputs: AVX2. Included after `quads.h`.

#define TRIMODE_KEEP(x) asm volatile("" : "+x"(x))  // in a register, in this order

struct Avx2 {
  static constexpr int64_t kLanes = 8;
  using Floats = __m256;
  using Integers = __m256i;

  // Rows whose sums fit in the registers, a divisor of kTileHeight.
  template <int BITS>
  static constexpr int rows() { return BITS == 4 ? 8 : 4; }

  // Rows up to which two strips are multiplied at a time: each broadcast of activations serves both.
  static constexpr int kRowsInPairs = 5;

  static Floats zeros() { return _mm256_setzero_ps(); }
  static Floats load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, Floats v) { _mm256_store_ps(p, v); }
  static Floats load_any(const float* p) { return _mm256_loadu_ps(p); }  // at any address
  static void store_any(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static Floats same(float v) { return _mm256_set1_ps(v); }
  static Integers same(int32_t v) { return _mm256_set1_epi32(v); }
  static Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats negative(Floats a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
  static Integers minus(Integers a, Integers b) { return _mm256_sub_epi32(a, b); }
  template <int BITS>
  static Integers shifted(Integers a) { return _mm256_slli_epi32(a, BITS); }
  static Floats floats(Integers a) { return _mm256_cvtepi32_ps(a); }
  static Floats halves(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Floats bytes(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static Floats signed_bytes(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  static Integers read(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Integers masked(Integers a, char byte) { return _mm256_and_si256(a, _mm256_set1_epi8(byte)); }
  static Integers either(Integers a, Integers b) { return _mm256_or_si256(a, b); }
  template <int N>
  static Integers left(Integers a) { return _mm256_slli_epi16(a, N); }
  template <int N>
  static Integers right(Integers a) { return _mm256_srli_epi16(a, N); }
  // Bytes of two nibbles: the upper ones of `upper`, the lower ones of `lower`.
  static Integers nibbles(Integers upper, Integers lower) {
    const Integers mask = _mm256_set1_epi8(15);
    return _mm256_or_si256(_mm256_andnot_si256(mask, upper), _mm256_and_si256(mask, lower));
  }
  static Floats root(Floats a) { return _mm256_sqrt_ps(a); }
  static float highest(Floats a) { return ::highest(a); }
  static Integers four(const int8_t* p) {  // the same four activations for each output
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
  }

  // Sums of value * activation over COUNT fours of inputs, of each output and row. Rows are innermost, so
  // that no chain of additions waits. As many products are added in 16 bits as they can hold:
  // 2 * 15 * 127 * 8, 2 * 31 * 127 * 4 or 2 * 63 * 127 * 2. Bytes are taken as two nibbles.
  // Of N strips, `apart` bytes from each other, for 4 bits alone. t [N][MR].
  template <int BITS, int FIRST, int COUNT, int MR, int N>
  static inline __attribute__((always_inline)) void dots(const uint8_t* w, int64_t apart, const uint8_t* lower,
                                                         const int8_t* a, Integers* t) {
    static_assert(N == 1 || BITS == 4);
    const Integers ones = _mm256_set1_epi16(1);
    if constexpr (BITS == 4) {
      Integers sum[N * MR], packed[N], values[N];
      each<COUNT>([&](auto j) __attribute__((always_inline)) {
        each<N>([&](auto n) __attribute__((always_inline)) {
          if constexpr (j % 2 == 0) {
            packed[n] = read(w + n * apart + 4 * kLanes * (j / 2));
            TRIMODE_KEEP(packed[n]);
          }
          values[n] = masked(j % 2 == 0 ? packed[n] : right<4>(packed[n]), 15);
        });
        each<MR>([&](auto r) __attribute__((always_inline)) {
          const Integers x = four(a + kGroup * r + j % 2 * 16 + j / 2 * 4);
          each<N>([&](auto n) __attribute__((always_inline)) {
            const Integers p = _mm256_maddubs_epi16(values[n], x);
            Integers& all = sum[n * MR + r];
            all = j == 0 ? p : _mm256_add_epi16(all, p);
            TRIMODE_KEEP(all);
          });
        });
      });
      each<N * MR>([&](auto i) __attribute__((always_inline)) { t[i] = _mm256_madd_epi16(sum[i], ones); });
    } else if constexpr (BITS == 8) {
      Integers low[MR], high[MR];
      each<COUNT>([&](auto j) __attribute__((always_inline)) {
        constexpr int at = j % 2 * 4 + j / 2;  // nibbles of one register follow each other
        const Integers below = quad<Avx2, 4, at>(lower, nullptr), above = quad<Avx2, 4, at>(w, nullptr);
        each<MR>([&](auto r) __attribute__((always_inline)) {
          const Integers x = four(a + kGroup * r + 4 * at);
          const Integers p = _mm256_maddubs_epi16(below, x), q = _mm256_maddubs_epi16(above, x);
          low[r] = j == 0 ? p : _mm256_add_epi16(low[r], p);
          high[r] = j == 0 ? q : _mm256_add_epi16(high[r], q);
          TRIMODE_KEEP(low[r]);
          TRIMODE_KEEP(high[r]);
        });
      });
      each<MR>([&](auto r) __attribute__((always_inline)) {
        t[r] = _mm256_add_epi32(_mm256_madd_epi16(low[r], ones),
                                _mm256_madd_epi16(high[r], _mm256_set1_epi16(16)));
      });
    } else {
      constexpr int depth = BITS == 5 ? 4 : 2;
      each<COUNT / depth>([&](auto part) __attribute__((always_inline)) {
        Integers sum[MR];
        each<depth>([&](auto j) __attribute__((always_inline)) {
          constexpr int at = FIRST + part * depth + j;
          const Integers values = quad<Avx2, BITS, at>(w, lower);
          each<MR>([&](auto r) __attribute__((always_inline)) {
            const Integers p = _mm256_maddubs_epi16(values, four(a + kGroup * r + 4 * at));
            sum[r] = j == 0 ? p : _mm256_add_epi16(sum[r], p);
            TRIMODE_KEEP(sum[r]);
          });
        });
        each<MR>([&](auto r) __attribute__((always_inline)) {
          const Integers wide = _mm256_madd_epi16(sum[r], ones);
          t[r] = part == 0 ? wide : _mm256_add_epi32(t[r], wide);
        });
      });
    }
  }
};

#undef TRIMODE_KEEP
