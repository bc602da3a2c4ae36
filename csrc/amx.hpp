// The tile registers of AMX: 16 rows of 64 bytes each.
//
// GCC's tile intrinsics are bare assembly that does not say which memory it reads: the configuration
// is a constant, so that no store to it can be dropped, and `settle` stands between ordinary stores
// and the tile loads that read them.
#pragma once

#include "isa.hpp"

#if defined(SRLM_AMX)
#include <immintrin.h>

#include <cstdint>

namespace srlm {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // bfloat16 of one row of the left operand

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileConfig kWholeTiles{};

inline void settle() { __asm__ volatile("" ::: "memory"); }

}  // namespace srlm
#endif
