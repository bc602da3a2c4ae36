// Linear layers on packed weights.
//
// Each output is one chain of multiply-adds over the input width, in order, so a row's bits depend
// on that row and the weights alone: the batch around it, its place in it and the number of
// threads change nothing. That is the ground of the sampler's batch invariance on a CPU. Levels of
// the instruction set differ in the last bits, for bfloat16 also in the order within the chain.
#include <algorithm>
#include <cstring>
#include <vector>

#include "amx.hpp"
#include "isa.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int kStrip = 2 * kPanel;        // columns that are computed together
constexpr int64_t kRowBytes = 1 << 20;    // of rows that a strip, once read, is used for
constexpr int64_t kSerial = 65536;        // multiply-adds that a second thread does not speed up
constexpr int kRowGrain = 32;             // two tiles of AMX

// One strip of outputs. A gated one has a panel of gates and the panel of what they open, and gives
// one panel of columns.
struct Strip {
  const uint32_t* panels;
  int64_t depth;    // words of a panel's column
  int num_panels;   // 1 or 2
  int64_t columns;  // of the output
  const float *bias, *second_bias;  // of the two panels, or null
  bool add;
  float* out;
  int64_t out_stride;
  const Operand* gated;  // takes the place of `out`
  int64_t first_row, first_column;

  // Whether tiles may be stored straight to the output.
  bool direct() const {
    return gated == nullptr && columns == num_panels * kPanel && bias == nullptr && !add;
  }
};

SRLM_INLINE v16f biased(const float* y, const float* bias, int64_t columns) {
  v16f value = load16(y);
  if (bias == nullptr) return value;
  if (columns >= kPanel) return value + load16(bias);
  float tail[kPanel] = {};
  for (int64_t j = 0; j < columns; ++j) tail[j] = bias[j];
  return value + load16(tail);
}

template <typename T>
SRLM_INLINE void store_columns(T* out, v16f value, int64_t columns) {
  if (columns >= kPanel) return store16(out, value);
  T tail[kPanel];
  store16(tail, value);
  for (int64_t j = 0; j < columns; ++j) out[j] = tail[j];
}

SRLM_INLINE v16f silu16(v16f x) { return x / (1.0f + exp16(-x)); }

SRLM_INLINE void finish_gated(const Strip& s, const float* stage, int64_t first, int count) {
  for (int m = 0; m < count; ++m) {
    const float* y = stage + m * kStrip;
    const v16f value = silu16(biased(y, s.bias, s.columns)) *
                       biased(y + kPanel, s.second_bias, s.columns);
    const int64_t place = (s.first_row + first + m) * s.gated->stride + s.first_column;
    if (s.gated->is_bf16)
      store_columns(static_cast<uint16_t*>(s.gated->data) + place, value, s.columns);
    else
      store_columns(static_cast<float*>(s.gated->data) + place, value, s.columns);
  }
}

// From a tile's staging place [count, 32] to the output.
SRLM_INLINE void finish(const Strip& s, const float* stage, int64_t first, int count) {
  if (s.gated != nullptr) return finish_gated(s, stage, first, count);
  for (int m = 0; m < count; ++m) {
    float* row = s.out + (first + m) * s.out_stride;
    for (int64_t j = 0; j < s.columns; j += kPanel) {
      const int64_t left = s.columns - j;
      v16f value = biased(stage + m * kStrip + j, j == 0 ? s.bias : s.second_bias, left);
      if (s.add) value = biased(row + j, nullptr, left) + value;
      store_columns(row + j, value, left);
    }
  }
}

// Rows are read in blocks of ROWS, in each of which the words of one depth stand side by side: an
// inner loop that walks ROWS rows at once would need as many address registers. AT_ONCE panels are
// multiplied together: two where there are registers for them.
template <typename P, int ROWS, int AT_ONCE>
SRLM_INLINE void strip_rows(const Strip& s, const uint32_t* blocks, int64_t rows) {
  alignas(64) float stage[ROWS * kStrip];
  using Word = typename P::Word;
  const Word* b = reinterpret_cast<const Word*>(s.panels);
  const int64_t panel = s.depth * kPanel;
  for (int64_t first = 0; first < rows; first += ROWS) {
    const int count = static_cast<int>(std::min<int64_t>(ROWS, rows - first));
    const Word* a = reinterpret_cast<const Word*>(blocks + first * s.depth);
    float* c = s.direct() ? s.out + first * s.out_stride : stage;
    const TileShape shape{s.depth, 1, ROWS, kPanel, panel, s.direct() ? s.out_stride : kStrip};
    if (AT_ONCE == 2 && s.num_panels == 2) {
      tile_rows<P, ROWS, AT_ONCE>(count, shape, a, b, c, false);
    } else {
      for (int p = 0; p < s.num_panels; ++p)
        tile_rows<P, ROWS, 1>(count, shape, a, b + p * panel, c + p * kPanel, false);
    }
    if (!s.direct()) finish(s, stage, first, count);
  }
}

using Kernel = void (*)(const Strip& s, const uint32_t* blocks, int64_t rows);

constexpr int kNarrowRows = 6, kWideRows = 14;

void floats_generic(const Strip& s, const uint32_t* x, int64_t rows) {
  strip_rows<Floats<v8f>, kNarrowRows, 1>(s, x, rows);
}
void pairs_generic(const Strip& s, const uint32_t* x, int64_t rows) {
  strip_rows<WidenedPairs<v8f, v8u>, kNarrowRows, 1>(s, x, rows);
}
#if defined(SRLM_X86)
SRLM_AVX2 void floats_avx2(const Strip& s, const uint32_t* x, int64_t rows) {
  strip_rows<Floats<v8f>, kNarrowRows, 1>(s, x, rows);
}
SRLM_AVX2 void pairs_avx2(const Strip& s, const uint32_t* x, int64_t rows) {
  strip_rows<WidenedPairs<v8f, v8u>, kNarrowRows, 1>(s, x, rows);
}
SRLM_AVX512 void floats_avx512(const Strip& s, const uint32_t* x, int64_t rows) {
  strip_rows<Floats<v16f>, kWideRows, 2>(s, x, rows);
}
SRLM_AVX512 void pairs_avx512(const Strip& s, const uint32_t* x, int64_t rows) {
  strip_rows<WidenedPairs<v16f, v16u>, kWideRows - 2, 2>(s, x, rows);
}
SRLM_AVX512 void pairs_avx512_bf16(const Strip& s, const uint32_t* x, int64_t rows) {
  strip_rows<DotPairs, kWideRows, 2>(s, x, rows);
}
#endif

struct Choice {
  Kernel kernel;
  int block_rows;
};

Choice choose(bool is_bf16) {
#if defined(SRLM_X86)
  if (isa() >= Isa::kAvx512Bf16 && is_bf16) return {pairs_avx512_bf16, kWideRows};
  if (isa() >= Isa::kAvx512 && is_bf16) return {pairs_avx512, kWideRows - 2};
  if (isa() >= Isa::kAvx512) return {floats_avx512, kWideRows};
  if (isa() >= Isa::kAvx2) return {is_bf16 ? pairs_avx2 : floats_avx2, kNarrowRows};
#endif
  return {is_bf16 ? pairs_generic : floats_generic, kNarrowRows};
}

// x [rows, depth] words -> blocks of `block_rows` rows, each [depth, block_rows].
void block_words(const uint32_t* x, int64_t rows, int64_t depth, int64_t stride, int block_rows,
                 uint32_t* blocks) {
#pragma omp parallel for schedule(static) if (rows * depth > kSerial)
  for (int64_t first = 0; first < rows; first += block_rows)
    for (int64_t m = 0; m < std::min<int64_t>(block_rows, rows - first); ++m)
      for (int64_t k = 0; k < depth; ++k)
        blocks[first * depth + k * block_rows + m] = x[(first + m) * stride + k];
}

#if defined(SRLM_AMX)
// Two tiles of rows by the two panels of a strip.
template <int ROW_TILES>
SRLM_AMX void strip_tiles(const Strip& s, const uint16_t* x, int64_t stride, int64_t first,
                          int64_t rows) {
  alignas(64) float stage[ROW_TILES * kTileRows * kStrip];
  const bool direct =
      s.direct() && s.num_panels == 2 && rows - first >= ROW_TILES * kTileRows;
  const uint16_t *a = x + first * stride, *below = a + kTileRows * stride;
  const uint32_t *b = s.panels, *beside = b + s.depth * kPanel;
  const int64_t bytes = stride * static_cast<int64_t>(sizeof *a);
  if (s.num_panels == 1) beside = b;  // computed, and not kept
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < s.depth; k += kTileDepth / 2) {
    _tile_loadd(4, a + 2 * k, bytes);
    _tile_loadd(6, b + k * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, beside + k * kPanel, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (ROW_TILES == 2) {
      _tile_loadd(5, below + 2 * k, bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* c = direct ? s.out + first * s.out_stride : stage;
  const int64_t c_row = direct ? s.out_stride : kStrip;
  const int64_t c_bytes = c_row * static_cast<int64_t>(sizeof *c);
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + kPanel, c_bytes);
  if constexpr (ROW_TILES == 2) {
    _tile_stored(2, c + kTileRows * c_row, c_bytes);
    _tile_stored(3, c + kTileRows * c_row + kPanel, c_bytes);
  }
  if (!direct)
    finish(s, stage, first, static_cast<int>(std::min<int64_t>(ROW_TILES * kTileRows, rows - first)));
}

SRLM_AMX void strip_amx(const Strip& s, const uint16_t* x, int64_t stride, int64_t rows) {
  for (int64_t first = 0; first < rows; first += 2 * kTileRows) {
    if (rows - first > kTileRows)
      strip_tiles<2>(s, x, stride, first, rows);
    else
      strip_tiles<1>(s, x, stride, first, rows);
  }
}

SRLM_AMX void begin_tiles() { _tile_loadconfig(&kWholeTiles); }
SRLM_AMX void end_tiles() { _tile_release(); }
#endif

struct Job {
  const Operand& x;
  int64_t rows;
  const PackedWeight& weight;
  const float* bias;
  bool add;
  float* out;
  const Operand* gated;

  int64_t depth() const {
    return padded_depth(weight.in_width, weight.is_bf16) / (weight.is_bf16 ? 2 : 1);
  }
  // Columns of the output, and those of one strip.
  int64_t width() const { return weight.gated ? weight.out_width / 2 : weight.out_width; }
  int64_t step() const { return weight.gated ? kPanel : kStrip; }
  int64_t strips() const { return (width() + step() - 1) / step(); }
  int64_t block_rows(int64_t grain) const {
    return std::max<int64_t>(grain, kRowBytes / (4 * depth()) / grain * grain);
  }
  Strip strip(int64_t index, int64_t first_row) const {
    const int64_t column = index * step(), left = width() - column;
    Strip s{};
    s.panels = weight.words + index * kStrip * depth();
    s.depth = depth();
    s.columns = std::min(step(), left);
    s.num_panels = weight.gated || left > kPanel ? 2 : 1;
    if (bias != nullptr) {
      s.bias = bias + column;
      s.second_bias = s.bias + (weight.gated ? width() : kPanel);
    }
    s.add = add;
    s.out = gated == nullptr ? out + first_row * width() + column : nullptr;
    s.out_stride = width();
    s.gated = gated;
    s.first_row = first_row;
    s.first_column = column;
    return s;
  }
};

bool worth_threads(const Job& job) {
  return job.rows * job.depth() * job.weight.out_width > kSerial;
}

void run_words(const Job& job) {
  const Choice choice = choose(job.weight.is_bf16);
  const int64_t depth = job.depth(), strips = job.strips();
  const int64_t block = job.block_rows(choice.block_rows);
  const int64_t blocks = (job.rows + block - 1) / block;
  const int64_t stride = job.x.is_bf16 ? job.x.stride / 2 : job.x.stride;
  static thread_local std::vector<uint32_t> words;
  words.resize((job.rows + choice.block_rows) * depth);
  uint32_t* ordered = words.data();
  block_words(static_cast<const uint32_t*>(job.x.data), job.rows, depth, stride, choice.block_rows,
              ordered);
#pragma omp parallel for collapse(2) schedule(static) if (worth_threads(job))
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t p = 0; p < strips; ++p)
      choice.kernel(job.strip(p, b * block), ordered + b * block * depth,
                    std::min(block, job.rows - b * block));
}

#if defined(SRLM_AMX)
void run_tiles(const Job& job) {
  const int64_t strips = job.strips(), block = job.block_rows(kRowGrain);
  const int64_t blocks = (job.rows + block - 1) / block;
  const uint16_t* x = static_cast<const uint16_t*>(job.x.data);
#pragma omp parallel if (worth_threads(job))
  {
    begin_tiles();
#pragma omp for collapse(2) schedule(static) nowait
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t p = 0; p < strips; ++p)
        strip_amx(job.strip(p, b * block), x + b * block * job.x.stride, job.x.stride,
                  std::min(block, job.rows - b * block));
    end_tiles();
  }
}
#endif

}  // namespace

int64_t padded_depth(int64_t in_width, bool is_bf16) {
  return is_bf16 ? (in_width + 31) / 32 * 32 : in_width;
}

int64_t padded_rows(int64_t rows) { return (rows + kRowGrain - 1) / kRowGrain * kRowGrain; }

int64_t packed_words(int64_t out_width, int64_t in_width, bool is_bf16, bool gated) {
  const int64_t parts = gated ? 2 : 1;
  const int64_t panels = parts * ((out_width / parts + kPanel - 1) / kPanel);
  return panels * kPanel * padded_depth(in_width, is_bf16) / (is_bf16 ? 2 : 1);
}

void pack_weight(const void* weight, const PackedWeight& shape, uint32_t* words) {
  const int64_t size = shape.is_bf16 ? 2 : 4, row_bytes = shape.in_width * size;
  const int64_t depth = padded_depth(shape.in_width, shape.is_bf16) * size / 4;
  const int64_t parts = shape.gated ? 2 : 1, part_width = shape.out_width / parts;
  const int64_t panels = parts * ((part_width + kPanel - 1) / kPanel);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t j = 0; j < kPanel; ++j) {
      uint32_t* target = words + p * depth * kPanel + j;
      const int64_t column = p / parts * kPanel + j;
      const bool real = column < part_width;
      const char* row =
          static_cast<const char*>(weight) + (p % parts * part_width + column) * row_bytes;
      const int64_t whole = real ? row_bytes / 4 : 0;
      for (int64_t k = 0; k < whole; ++k) target[k * kPanel] = load<uint32_t>(row + 4 * k);
      for (int64_t k = whole; k < depth; ++k) target[k * kPanel] = 0;
      if (real && row_bytes % 4 != 0) target[whole * kPanel] = load<uint16_t>(row + 4 * whole);
    }
}

namespace {

void run(const Job& job) {
#if defined(SRLM_AMX)
  if (job.weight.is_bf16 && isa() == Isa::kAmx) return run_tiles(job);
#endif
  run_words(job);
}

}  // namespace

void packed_linear(const Operand& x, int64_t rows, const PackedWeight& weight, const float* bias,
                   bool add, float* out) {
  run({x, rows, weight, bias, add, out, nullptr});
}

void packed_swiglu(const Operand& x, int64_t rows, const PackedWeight& weight, const float* bias,
                   const Operand& out) {
  run({x, rows, weight, bias, false, nullptr, &out});
}

}  // namespace srlm
