#include "multiply.hpp"

#include <algorithm>

#include "amx.hpp"
#include "isa.hpp"

namespace srlm {
namespace {

// Few rows: wider tiles keep enough multiply-adds in flight.
template <typename P, int ROWS, int ROWS_OF_2, int ROWS_OF_4>
SRLM_INLINE void multiply_rows(int rows, TileShape s, const uint32_t* a, const uint32_t* b,
                               int64_t columns, float* c, bool accumulate) {
  s.a_step = 1;
  using Word = typename P::Word;
  for (int m = 0; m < rows; m += ROWS) {
    const int count = std::min(ROWS, rows - m);
    const Word* x = reinterpret_cast<const Word*>(a + m * s.a_row);
    const Word* y = reinterpret_cast<const Word*>(b);
    float* z = c + m * s.c_row;
    int64_t j = 0;
    if (count <= ROWS_OF_4)
      for (; j + 4 * kPanel <= columns; j += 4 * kPanel)
        tile_rows<P, ROWS_OF_4, 4>(count, s, x, y + j / kPanel * s.b_panel, z + j, accumulate);
    if (count <= ROWS_OF_2)
      for (; j + 2 * kPanel <= columns; j += 2 * kPanel)
        tile_rows<P, ROWS_OF_2, 2>(count, s, x, y + j / kPanel * s.b_panel, z + j, accumulate);
    for (; j < columns; j += kPanel)
      tile_rows<P, ROWS, 1>(count, s, x, y + j / kPanel * s.b_panel, z + j, accumulate);
  }
}

#define SRLM_MULTIPLY(NAME, TARGET, ...)                                                       \
  TARGET void NAME(int rows, const TileShape& s, const uint32_t* a, const uint32_t* b,         \
                   int64_t columns, float* c, bool accumulate) {                               \
    multiply_rows<__VA_ARGS__>(rows, s, a, b, columns, c, accumulate);                         \
  }
SRLM_MULTIPLY(floats_generic, , Floats<v8f>, 6, 3, 1)
SRLM_MULTIPLY(pairs_generic, , WidenedPairs<v8f, v8u>, 6, 3, 1)
#if defined(SRLM_X86)
SRLM_MULTIPLY(floats_avx2, SRLM_AVX2, Floats<v8f>, 6, 3, 1)
SRLM_MULTIPLY(pairs_avx2, SRLM_AVX2, WidenedPairs<v8f, v8u>, 6, 3, 1)
SRLM_MULTIPLY(floats_avx512, SRLM_AVX512, Floats<v16f>, 12, 12, 6)
SRLM_MULTIPLY(pairs_avx512, SRLM_AVX512, WidenedPairs<v16f, v16u>, 12, 6, 4)
SRLM_MULTIPLY(pairs_avx512_bf16, SRLM_AVX512, DotPairs, 12, 12, 6)
#endif
#undef SRLM_MULTIPLY

#if defined(SRLM_AMX)
// Up to two by two tiles of c.
template <int ROW_TILES, int COLUMN_TILES>
SRLM_AMX void multiply_block(const TileShape& s, const uint32_t* a, const uint32_t* b, float* c,
                             bool accumulate) {
  constexpr bool kBelow = ROW_TILES == 2, kBeside = COLUMN_TILES == 2;
  const uint32_t *below = a + kTileRows * s.a_row, *beside = b + s.b_panel;
  float* c_below = c + kTileRows * s.c_row;
  const int64_t a_bytes = 4 * s.a_row, b_bytes = 4 * s.b_row, c_bytes = 4 * s.c_row;
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (kBeside) _tile_loadd(1, c + kPanel, c_bytes);
    if constexpr (kBelow) _tile_loadd(2, c_below, c_bytes);
    if constexpr (kBelow && kBeside) _tile_loadd(3, c_below + kPanel, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < s.depth; k += kTileDepth / 2) {
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(6, b + k * s.b_row, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kBeside) {
      _tile_loadd(7, beside + k * s.b_row, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kBelow) {
      _tile_loadd(5, below + k, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kBelow && kBeside) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (kBeside) _tile_stored(1, c + kPanel, c_bytes);
  if constexpr (kBelow) _tile_stored(2, c_below, c_bytes);
  if constexpr (kBelow && kBeside) _tile_stored(3, c_below + kPanel, c_bytes);
}

template <int ROW_TILES>
SRLM_AMX void multiply_strip(const TileShape& s, const uint32_t* a, const uint32_t* b,
                             int64_t columns, float* c, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * kPanel <= columns; j += 2 * kPanel)
    multiply_block<ROW_TILES, 2>(s, a, b + j / kPanel * s.b_panel, c + j, accumulate);
  if (j < columns)
    multiply_block<ROW_TILES, 1>(s, a, b + j / kPanel * s.b_panel, c + j, accumulate);
}

SRLM_AMX void multiply_tiles(int rows, const TileShape& s, const uint32_t* a, const uint32_t* b,
                             int64_t columns, float* c, bool accumulate) {
  settle();
  int m = 0;
  for (; m + 2 * kTileRows <= rows; m += 2 * kTileRows)
    multiply_strip<2>(s, a + m * s.a_row, b, columns, c + m * s.c_row, accumulate);
  if (m < rows) multiply_strip<1>(s, a + m * s.a_row, b, columns, c + m * s.c_row, accumulate);
  settle();
}

SRLM_AMX void begin_tiles() { _tile_loadconfig(&kWholeTiles); }
SRLM_AMX void end_tiles() { _tile_release(); }
#endif

}  // namespace

WordProduct word_product(bool is_bf16) {
#if defined(SRLM_X86)
  const bool dots = isa() >= Isa::kAvx512Bf16;
  if (isa() >= Isa::kAvx512)
    return {is_bf16 ? (dots ? pairs_avx512_bf16 : pairs_avx512) : floats_avx512, 12};
  if (isa() >= Isa::kAvx2) return {is_bf16 ? pairs_avx2 : floats_avx2, 6};
#endif
  return {is_bf16 ? pairs_generic : floats_generic, 6};
}

TileProduct::TileProduct(bool is_bf16) : multiply_(word_product(is_bf16).multiply) {
#if defined(SRLM_AMX)
  tiles_ = is_bf16 && isa() == Isa::kAmx;
  if (tiles_) multiply_ = multiply_tiles;
#endif
}

void TileProduct::begin() const {
#if defined(SRLM_AMX)
  if (tiles_) begin_tiles();
#endif
}

void TileProduct::end() const {
#if defined(SRLM_AMX)
  if (tiles_) end_tiles();
#endif
}

}  // namespace srlm
