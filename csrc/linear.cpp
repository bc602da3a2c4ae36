// Linear layers on packed weights.
//
// Each output is one chain of multiply-adds over the input width, in order, so a row's bits depend
// on that row and the weights alone: the batch around it, its place in it and the number of
// threads change nothing. That is the ground of the sampler's batch invariance on a CPU.
#include <algorithm>

#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int64_t kRowBlock = 32 * kTileRows;  // rows that a panel, once read, is used for

// One panel of 16 outputs for up to kRowBlock rows.
SRLM_CLONES
void panel_rows(const float* x, int64_t rows, int64_t depth, const float* panel, int64_t columns,
                const float* bias, bool add, float* out, int64_t out_stride) {
  float edge[kTileRows * kPanel];
  const bool direct = columns == kPanel && bias == nullptr && !add;
  for (int64_t first = 0; first < rows; first += kTileRows) {
    const int count = rows - first < kTileRows ? static_cast<int>(rows - first) : kTileRows;
    float* target = out + first * out_stride;
    tile_rows<2>(count, depth, x + first * depth, depth, panel, kPanel, direct ? target : edge,
                 direct ? out_stride : kPanel, false);
    if (direct) continue;
    for (int m = 0; m < count; ++m) {
      const float* y = edge + m * kPanel;
      float* row = target + m * out_stride;
      if (columns == kPanel) {
        for (int j = 0; j < kPanel; j += kLanes) {
          v8f value = load8(y + j);
          if (bias != nullptr) value += load8(bias + j);
          store8(row + j, add ? load8(row + j) + value : value);
        }
        continue;
      }
      for (int64_t j = 0; j < columns; ++j) {
        const float value = bias != nullptr ? y[j] + bias[j] : y[j];
        row[j] = add ? row[j] + value : value;
      }
    }
  }
}

}  // namespace

int64_t packed_size(int64_t out_width, int64_t in_width) {
  return (out_width + kPanel - 1) / kPanel * kPanel * in_width;
}

void pack_weight(const float* weight, int64_t out_width, int64_t in_width, float* packed) {
  const int64_t panels = (out_width + kPanel - 1) / kPanel;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < panels; ++p) {
    float* panel = packed + p * kPanel * in_width;
    for (int64_t j = 0; j < kPanel; ++j) {
      const int64_t column = p * kPanel + j;
      for (int64_t k = 0; k < in_width; ++k)
        panel[k * kPanel + j] = column < out_width ? weight[column * in_width + k] : 0.0f;
    }
  }
}

void packed_linear(const float* x, int64_t rows, int64_t in_width, const float* packed,
                   int64_t out_width, const float* bias, bool add, float* out) {
  const int64_t panels = (out_width + kPanel - 1) / kPanel;
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
#pragma omp parallel for collapse(2) schedule(static) if (rows * in_width * out_width > 65536)
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = b * kRowBlock;
      panel_rows(x + first * in_width, std::min(kRowBlock, rows - first), in_width,
                 packed + p * kPanel * in_width, std::min<int64_t>(kPanel, out_width - p * kPanel),
                 bias == nullptr ? nullptr : bias + p * kPanel, add,
                 out + first * out_width + p * kPanel, out_width);
    }
}

}  // namespace srlm
