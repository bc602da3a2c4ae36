// out[j, i] = x[i, j] for values of 16 bits, by blocks that fill whole cache lines on both sides.
#include <algorithm>
#include <cstdint>

#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int64_t kBlock = 32;      // two registers of 16: 64 bytes
constexpr int64_t kAhead = 64;      // rows
constexpr int64_t kSerial = 65536;  // elements below which a second thread costs more than it saves

// Rows a and b of a 16 x 16 tile, STEP apart: the upper STEP columns of every 2 STEP of a against
// the lower ones of b.
template <int STEP>
SRLM_INLINE void exchange(v16h& a, v16h& b) {
  const v16h x = a, y = b;
  if constexpr (STEP == 8) {
    a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    b = __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  } else if constexpr (STEP == 4) {
    a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    b = __builtin_shufflevector(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  } else if constexpr (STEP == 2) {
    a = __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    b = __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  } else {
    a = __builtin_shufflevector(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    b = __builtin_shufflevector(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
}

template <int STEP>
SRLM_INLINE void exchange_all(v16h (&tile)[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if ((i & STEP) == 0) exchange<STEP>(tile[i], tile[i + STEP]);
}

SRLM_INLINE void turn_tile(const uint16_t* x, int64_t stride, uint16_t* out, int64_t out_stride) {
  v16h tile[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) tile[i] = load<v16h>(x + i * stride);
  exchange_all<8>(tile);
  exchange_all<4>(tile);
  exchange_all<2>(tile);
  exchange_all<1>(tile);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) store(out + i * out_stride, tile[i]);
}

// 32 columns from column j on, all rows: 32 rows of `out`.
SRLM_CLONES
void turn_columns(const uint16_t* x, int64_t rows, int64_t stride, uint16_t* out) {
  int64_t i = 0;
  for (; i + kBlock <= rows; i += kBlock) {
    // Each row of a block is on a page of its own, where no processor looks ahead by itself.
    for (int64_t r = i + kAhead; r < std::min(i + kAhead + kBlock, rows); ++r)
      __builtin_prefetch(x + r * stride);
    for (int64_t j = 0; j < kBlock; ++j) __builtin_prefetch(out + j * rows + i + kAhead, 1);
    for (int64_t j = 0; j < kBlock; j += 16)
      for (int64_t h = 0; h < kBlock; h += 16)
        turn_tile(x + (i + h) * stride + j, stride, out + j * rows + i + h, rows);
  }
  for (; i < rows; ++i)
    for (int64_t j = 0; j < kBlock; ++j) out[j * rows + i] = x[i * stride + j];
}

}  // namespace

void transpose(const uint16_t* x, int64_t rows, int64_t width, int64_t stride, uint16_t* out) {
  const int64_t whole = width / kBlock * kBlock;
#pragma omp parallel for schedule(static) if (rows * width > kSerial)
  for (int64_t j = 0; j < whole; j += kBlock) turn_columns(x + j, rows, stride, out + j * rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = whole; j < width; ++j) out[j * rows + i] = x[i * stride + j];
}

}  // namespace srlm
