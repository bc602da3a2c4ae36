// Eight-wide float vectors in GCC's portable vector extension, and the one multiply-add tile that
// the linear layers and the attention share.
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

typedef float v8f __attribute__((vector_size(32)));
typedef float v8f_loose __attribute__((vector_size(32), aligned(4)));
typedef int32_t v8i __attribute__((vector_size(32)));

constexpr int kLanes = 8;
constexpr int kPanel = 16;    // columns of a packed weight panel, and of a tile
constexpr int kTileRows = 6;  // 6 x 2 accumulators of 8 lanes: 12 of AVX2's 16 registers

SRLM_INLINE v8f load8(const float* p) { return *reinterpret_cast<const v8f_loose*>(p); }
SRLM_INLINE void store8(float* p, v8f v) { *reinterpret_cast<v8f_loose*>(p) = v; }
SRLM_INLINE v8f splat(float x) { return v8f{x, x, x, x, x, x, x, x}; }
SRLM_INLINE v8f max8(v8f a, v8f b) { return a > b ? a : b; }

// The lanes are always added in the same tree, so a sum's bits depend on its terms alone.
SRLM_INLINE float sum_lanes(v8f v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

SRLM_INLINE float max_lanes(v8f v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
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

SRLM_INLINE v8f exp8(v8f x) { return exp_lanes<v8f, v8i>(x); }

// c[m][j] (+)= sum_k a[m][k] * b[k][j] for m < ROWS, j < 8 * VECTORS.
// Every element is one chain of multiply-adds in the order of k, whatever ROWS and VECTORS are:
// that is why a row's bits do not depend on the rows beside it.
template <int ROWS, int VECTORS>
SRLM_INLINE void tile(int64_t depth, const float* a, int64_t a_stride, const float* b,
                      int64_t b_stride, float* c, int64_t c_stride, bool accumulate) {
  v8f acc[ROWS][VECTORS];
  for (int m = 0; m < ROWS; ++m)
    for (int j = 0; j < VECTORS; ++j)
      acc[m][j] = accumulate ? load8(c + m * c_stride + j * kLanes) : splat(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    v8f row[VECTORS];
    for (int j = 0; j < VECTORS; ++j) row[j] = load8(b + k * b_stride + j * kLanes);
    for (int m = 0; m < ROWS; ++m) {
      const float x = a[m * a_stride + k];  // times a vector: one broadcast instruction
      for (int j = 0; j < VECTORS; ++j) acc[m][j] += x * row[j];
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int j = 0; j < VECTORS; ++j) store8(c + m * c_stride + j * kLanes, acc[m][j]);
}

template <int VECTORS>
SRLM_INLINE void tile_rows(int rows, int64_t depth, const float* a, int64_t a_stride, const float* b,
                           int64_t b_stride, float* c, int64_t c_stride, bool accumulate) {
  switch (rows) {
    case 1: return tile<1, VECTORS>(depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
    case 2: return tile<2, VECTORS>(depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
    case 3: return tile<3, VECTORS>(depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
    case 4: return tile<4, VECTORS>(depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
    case 5: return tile<5, VECTORS>(depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
    default: return tile<6, VECTORS>(depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
  }
}

}  // namespace srlm
