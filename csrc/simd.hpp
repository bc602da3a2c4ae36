// Float vectors in GCC's portable vector extension, and the one multiply-add tile that the linear
// layers and the attention share.
#pragma once

#include <cstdint>
#include <cstring>

// One copy of a kernel per instruction-set level, picked when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define SRLM_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SRLM_CLONES
#endif
// What a cloned kernel calls must be inlined into it, or it would be compiled for the lowest level.
#define SRLM_INLINE static inline __attribute__((always_inline))

namespace srlm {

typedef float v4f __attribute__((vector_size(16)));
typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint32_t v8u __attribute__((vector_size(32)));
// Sixteen lanes: one AVX-512 register; GCC makes pairs of narrower ones of it elsewhere.
typedef float v16f __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));

constexpr v16i kLaneIds = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr int kWide = 16;   // lanes of the small operations
constexpr int kPanel = 16;  // columns of a packed weight panel, and of a tile

template <typename V, typename T>
SRLM_INLINE V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename V, typename T>
SRLM_INLINE void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
SRLM_INLINE v16f load16(const float* p) { return load<v16f>(p); }
SRLM_INLINE void store16(float* p, v16f v) { store(p, v); }
SRLM_INLINE v16f splat16(float x) { return v16f{} + x; }
SRLM_INLINE v16f max16(v16f a, v16f b) { return a > b ? a : b; }

// bfloat16 is the upper half of a float. Rounding is to nearest even; a NaN that the processor makes
// stays one.
SRLM_INLINE v16f load16(const uint16_t* p) {
  return (v16f)(__builtin_convertvector(load<v16h>(p), v16u) << 16);
}
SRLM_INLINE v16u round16(v16f v) {
  const v16u bits = (v16u)v;
  return (bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16;
}
SRLM_INLINE void store16(uint16_t* p, v16f v) {
  store(p, __builtin_convertvector(round16(v), v16h));
}
SRLM_INLINE float widen(float x) { return x; }
SRLM_INLINE float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  return load<float>(&bits);
}
SRLM_INLINE void narrow(float x, float* out) { *out = x; }
SRLM_INLINE void narrow(float x, uint16_t* out) {
  const uint32_t bits = load<uint32_t>(&x);
  *out = static_cast<uint16_t>((bits + ((bits >> 16) & 1u) + 0x7FFFu) >> 16);
}

SRLM_INLINE v8f low_half(v16f v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
}
SRLM_INLINE v8f high_half(v16f v) {
  return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}
SRLM_INLINE v4f low_half(v8f v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
SRLM_INLINE v4f high_half(v8f v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7); }

// The lanes are always added in the same tree, so a sum's bits depend on its terms alone.
SRLM_INLINE float sum_lanes(v16f v) {
  const v8f a = low_half(v) + high_half(v);
  const v4f b = low_half(a) + high_half(a);
  return (b[0] + b[2]) + (b[1] + b[3]);
}
SRLM_INLINE float max_lanes(v16f v) {
  const v8f a = low_half(v) > high_half(v) ? low_half(v) : high_half(v);
  const v4f b = low_half(a) > high_half(a) ? low_half(a) : high_half(a);
  const float even = b[0] > b[2] ? b[0] : b[2], odd = b[1] > b[3] ? b[1] : b[3];
  return even > odd ? even : odd;
}

// exp(x), relative error below 2e-7; exactly 0 below -87 (so also at -inf), capped above 88.
// Range reduction by ln 2 in two parts, then the degree-6 polynomial of Cephes' expf.
template <typename F, typename I>
SRLM_INLINE F exp_lanes(F x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const I tiny = x < -87.0f;
  x = x > 88.0f ? F{} + 88.0f : x;
  x = tiny ? F{} : x;
  const F shifted = x * 1.44269504088896341f + magic;
  const F n = shifted - magic;
  F r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  F p = F{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const I exponent = ((I)shifted - (I)(F{} + magic)) << 23;
  const F value = (F)((I)p + exponent);
  return tiny ? F{} : value;
}

SRLM_INLINE v16f exp16(v16f x) { return exp_lanes<v16f, v16i>(x); }

// What a tile multiplies. Both operands are 32-bit words: a float, or a pair of bfloat16 (the first
// in the lower half) of two neighbouring positions of the depth.
template <typename F>
struct Floats {
  using Vector = F;
  using Word = float;
  struct Columns {
    F value;
  };
  SRLM_INLINE Columns columns(const Word* b) { return {load<F>(b)}; }
  SRLM_INLINE F multiply_add(F sum, Word a, Columns b) { return sum + a * b.value; }
};

template <typename F, typename U>
struct WidenedPairs {
  using Vector = F;
  using Word = uint32_t;
  struct Columns {
    F even, odd;
  };
  SRLM_INLINE Columns columns(const Word* b) {
    const U bits = load<U>(b);
    return {(F)(bits << 16), (F)(bits & 0xFFFF0000u)};
  }
  SRLM_INLINE F multiply_add(F sum, Word a, Columns b) {
    const U bits = U{} + a;
    sum += (F)(bits << 16) * b.even;
    return sum + (F)(bits & 0xFFFF0000u) * b.odd;
  }
};

#if defined(__x86_64__)
// AVX512_BF16. In assembly, because an intrinsic could not be inlined into a template that is
// written for every level.
struct DotPairs {
  using Vector = v16f;
  using Word = uint32_t;
  struct Columns {
    v16u bits;
  };
  SRLM_INLINE Columns columns(const Word* b) { return {load<v16u>(b)}; }
  SRLM_INLINE v16f multiply_add(v16f sum, Word a, Columns b) {
    const v16u pair = v16u{} + a;
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b.bits), "v"(pair));
    return sum;
  }
};
#endif

// Where the words of the operands stand: a[m, k] at m * a_row + k * a_step; b[k, j] at k * b_row + j
// within a panel, whose neighbour begins b_panel words later.
struct TileShape {
  int64_t depth, a_row, a_step, b_row, b_panel, c_row;
};

// c[m, j] (+)= sum_k a[m, k] b[k, j] for m < ROWS and j < 16 * PANELS.
// Every element is one chain of multiply-adds in the order of k, whatever ROWS and PANELS are:
// that is why a row's bits do not depend on the rows beside it.
template <typename P, int ROWS, int PANELS>
SRLM_INLINE void tile(const TileShape& s, const typename P::Word* a, const typename P::Word* b,
                      float* c, bool accumulate) {
  using F = typename P::Vector;
  constexpr int kLanes = sizeof(F) / sizeof(float), kVectors = kPanel / kLanes;
  F sum[ROWS][PANELS * kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < PANELS * kVectors; ++j)
      sum[m][j] = accumulate ? load<F>(c + m * s.c_row + j * kLanes) : F{};
  for (int64_t k = 0; k < s.depth; ++k) {
    typename P::Columns row[PANELS * kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < PANELS * kVectors; ++j)
      row[j] = P::columns(b + k * s.b_row + j / kVectors * s.b_panel + j % kVectors * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m) {
      const auto x = load<typename P::Word>(a + m * s.a_row + k * s.a_step);
#pragma GCC unroll 8
      for (int j = 0; j < PANELS * kVectors; ++j) sum[m][j] = P::multiply_add(sum[m][j], x, row[j]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < PANELS * kVectors; ++j) store(c + m * s.c_row + j * kLanes, sum[m][j]);
}

// The same for a number of rows up to ROWS.
template <typename P, int ROWS, int PANELS>
SRLM_INLINE void tile_rows(int rows, const TileShape& s, const typename P::Word* a,
                           const typename P::Word* b, float* c, bool accumulate) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return tile_rows<P, ROWS - 1, PANELS>(rows, s, a, b, c, accumulate);
  }
  tile<P, ROWS, PANELS>(s, a, b, c, accumulate);
}

}  // namespace srlm
