// Attention over pages.
//
// A work item is one key/value head of some rows: consecutive rows of one prompt, or the rows of
// samples that share their first pages. All query heads of the key/value head stand in one tile,
// and where rows share a page its keys and values are read once for all of them.
//
// Scores of the whole context are held, so the softmax is the plain two-pass one. Keys are visited
// in order of position, lanes are tied to absolute positions, and each element is one chain of
// multiply-adds. So a row's bits depend on its own context alone, not on chunking, on page
// placement or on which rows share its item.
//
// On bfloat16 pages queries and probabilities are rounded to bfloat16 as well; the probabilities
// are divided by the sum of what they were rounded to.
#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "amx.hpp"
#include "attention.hpp"
#include "isa.hpp"
#include "multiply.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int64_t kLongContext = 4096;  // beyond it fewer rows, or the scores leave the cache
constexpr int kLongRows = 6;
constexpr int kBlock = 16;  // positions that are written, masked and multiplied together

struct Heads {
  int64_t kv_head, first, count;  // one key/value head and query heads that use it
};

struct Level {
  Multiply multiply;  // null: tiles of AMX
  int item_rows, head_rows;
};

// Tiles of AMX take whole 32s of the head width.
Level level_of(const PageShape& shape) {
#if defined(SRLM_AMX)
  if (isa() == Isa::kAmx && shape.is_bf16 && shape.head_dim % kTileDepth == 0)
    return {nullptr, kTileRows, kTileRows};
#endif
  const WordProduct product = word_product(shape.is_bf16);
  return {product.multiply, 24, product.most_rows};
}

template <typename T>
SRLM_INLINE v16f rounded(v16f v) {
  return std::is_same<T, float>::value ? v : (v16f)(round16(v) << 16);
}

// scores[j] for positions begin + j -> weights exp(score - largest), fp32 or bfloat16, in the same
// place from the row's start `base` on; what the row does not see becomes 0. Returns their sum.
template <typename T>
SRLM_CLONES float softmax_row(float* base, int64_t skipped, int64_t low, int64_t end) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const int64_t columns = (end + kBlock - 1) / kBlock * kBlock;
  float* scores = base + skipped;
  T* weights = reinterpret_cast<T*>(base) + skipped;
  for (int64_t j = 0; j < low; j += kWide)
    store16(scores + j, kLaneIds < static_cast<int32_t>(low - j) ? splat16(lowest)
                                                                 : load16(scores + j));
  const int64_t last = columns - kWide;
  store16(scores + last, kLaneIds < static_cast<int32_t>(end - last) ? load16(scores + last)
                                                                     : splat16(lowest));
  v16f best = splat16(lowest);
  for (int64_t j = 0; j < columns; j += kWide) best = max16(best, load16(scores + j));
  const float top = max_lanes(best);
  v16f total = {};
  for (int64_t j = 0; j < columns; j += kWide) {
    const v16f p = exp16(load16(scores + j) - top);
    store16(weights + j, p);
    total += rounded<T>(p);
  }
  return sum_lanes(total);
}

bool reads(const Row& row, int64_t start, int64_t page_tokens) {
  return row.end > start && row.low < start + page_tokens;
}

Group group_of(const Row* rows, int64_t num_rows, int64_t page_tokens) {
  int64_t low = rows[0].low, end = rows[0].end;
  for (int64_t r = 1; r < num_rows; ++r) {
    low = std::min(low, rows[r].low);
    end = std::max(end, rows[r].end);
  }
  const int64_t begin = low / page_tokens * page_tokens;
  Group group{rows, num_rows, begin, (end - begin + page_tokens - 1) / page_tokens * page_tokens, {}};
  for (int64_t start = begin; start < end; start += page_tokens)
    for (int64_t r = 0; r < num_rows; ++r) {
      if (!reads(rows[r], start, page_tokens)) continue;
      const int64_t page = rows[r].pages[start / page_tokens];
      const int64_t used = std::min(page_tokens, rows[r].end - start);
      Run* last = group.runs.empty() ? nullptr : &group.runs.back();
      if (last != nullptr && last->start == start && last->page == page &&
          last->first_row + last->num_rows == r) {
        ++last->num_rows;
        last->used = std::max(last->used, used);
      } else {
        group.runs.push_back({page, start, used, r, 1});
      }
    }
  return group;
}


constexpr size_t kAhead = 2;  // runs

// One layer's attention of one step.
struct Layer {
  const float* q;
  int64_t q_stride;
  const PageShape& shape;
  const uint32_t *keys, *values;
  float scale;
  const Operand& out;

  int64_t per_word() const { return shape.is_bf16 ? 2 : 1; }
  int64_t key_depth() const { return shape.head_dim / per_word(); }
  int64_t key_block() const { return key_depth() * shape.page_tokens; }
  int64_t value_block() const { return shape.page_tokens / per_word() * shape.value_width; }
  const uint32_t* key_page(int64_t page, int64_t head) const {
    return keys + (page * shape.kv_heads + head) * key_block();
  }
  const uint32_t* value_page(int64_t page, int64_t head) const {
    return values + (page * shape.kv_heads + head) * value_block();
  }
};

// Pages lie scattered, too short for the processor's own prefetching: ask for a later one.
SRLM_INLINE void prefetch(const uint32_t* block, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(block + i);
}
void prefetch_keys(const Layer& layer, const Group& group, const Heads& item, size_t run) {
  if (run < group.runs.size())
    prefetch(layer.key_page(group.runs[run].page, item.kv_head), layer.key_block());
}
void prefetch_values(const Layer& layer, const Group& group, const Heads& item, size_t run) {
  if (run < group.runs.size())
    prefetch(layer.value_page(group.runs[run].page, item.kv_head), layer.value_block());
}

// The places of one item's intermediate results, in words; room for whole tiles of AMX.
struct Scratch {
  float *scores, *queries, *sums;

  static int64_t words(const Group& group, const Heads& item, const PageShape& shape) {
    const int64_t rows = group.num_rows * item.count + kBlock;
    return rows * (group.stride + shape.head_dim + shape.value_width);
  }
  Scratch(float* memory, const Group& group, const Heads& item, const PageShape& shape) {
    const int64_t rows = group.num_rows * item.count + kBlock;
    scores = memory;
    queries = scores + rows * group.stride;
    sums = queries + rows * shape.head_dim;
  }
};

template <typename T>
SRLM_CLONES void scale_row(const float* x, int64_t width, float scale, T* out) {
  int64_t d = 0;
  for (; d + kWide <= width; d += kWide) store16(out + d, load16(x + d) * scale);
  for (; d < width; ++d) narrow(x[d] * scale, out + d);
}

void scale_row(const float* x, int64_t width, float scale, bool is_bf16, float* base,
               int64_t index) {
  if (is_bf16) return scale_row(x, width, scale, reinterpret_cast<uint16_t*>(base) + index * width);
  scale_row(x, width, scale, base + index * width);
}

void take_queries(const Layer& layer, const Group& group, const Heads& item, float* queries) {
  const int64_t width = layer.shape.head_dim;
  for (int64_t m = 0; m < group.num_rows * item.count; ++m)
    scale_row(layer.q + group.rows[m / item.count].index * layer.q_stride +
                  (item.first + m % item.count) * width,
              width, layer.scale, layer.shape.is_bf16, queries, m);
}

template <typename T>
void softmax_rows(const Group& group, int64_t heads, int64_t page_tokens, float* scores,
                  float* totals) {
  for (int64_t m = 0; m < group.num_rows * heads; ++m) {
    const Row& row = group.rows[m / heads];
    const int64_t first = row.low / page_tokens * page_tokens;  // where its own pages begin
    const int64_t skipped = first - group.begin, end = row.end - first;
    float* base = scores + m * group.stride;
    totals[m] = softmax_row<T>(base, skipped, row.low - first, end);
    // A row that shares its last page may see less of it than the others: zeros for the rest.
    T* weights = reinterpret_cast<T*>(base) + skipped;
    const int64_t padded = (end + kBlock - 1) / kBlock * kBlock;
    for (int64_t j = padded; j < (end + page_tokens - 1) / page_tokens * page_tokens; ++j)
      weights[j] = T{};
  }
}

void put_result(const Layer& layer, const Group& group, const Heads& item, const float* sums,
                const float* totals) {
  const int64_t width = layer.shape.head_dim;
  for (int64_t m = 0; m < group.num_rows * item.count; ++m) {
    const int64_t place = group.rows[m / item.count].index * layer.out.stride +
                          (item.first + m % item.count) * width;
    const float* source = sums + m * layer.shape.value_width;
    const float inverse = 1.0f / totals[m];
    if (layer.out.is_bf16)
      scale_row(source, width, inverse, static_cast<uint16_t*>(layer.out.data) + place);
    else
      scale_row(source, width, inverse, static_cast<float*>(layer.out.data) + place);
  }
}

void score_words(const Layer& layer, const Group& group, const Heads& item, Multiply multiply,
                 const Scratch& scratch) {
  const int64_t heads = item.count, depth = layer.key_depth();
  const TileShape shape{depth, depth, 1, layer.shape.page_tokens, kPanel, group.stride};
  const auto* queries = reinterpret_cast<const uint32_t*>(scratch.queries);
  for (size_t i = 0; i < group.runs.size(); ++i) {
    const Run& run = group.runs[i];
    prefetch_keys(layer, group, item, i + kAhead);
    multiply(static_cast<int>(run.num_rows * heads), shape,
             queries + run.first_row * heads * depth, layer.key_page(run.page, item.kv_head),
             (run.used + kPanel - 1) / kPanel * kPanel,
             scratch.scores + run.first_row * heads * group.stride + run.start - group.begin,
             false);
  }
}

void sum_words(const Layer& layer, const Group& group, const Heads& item, Multiply multiply,
               const Scratch& scratch) {
  const int64_t heads = item.count, per_word = layer.per_word();
  const int64_t value_width = layer.shape.value_width;
  TileShape shape{0, group.stride, 1, value_width, kPanel, value_width};
  const auto* weights = reinterpret_cast<const uint32_t*>(scratch.scores);
  std::fill_n(scratch.sums, group.num_rows * heads * value_width, 0.0f);
  for (size_t i = 0; i < group.runs.size(); ++i) {
    const Run& run = group.runs[i];
    prefetch_values(layer, group, item, i + kAhead);
    shape.depth = (run.used + per_word - 1) / per_word;
    multiply(static_cast<int>(run.num_rows * heads), shape,
             weights + run.first_row * heads * group.stride + (run.start - group.begin) / per_word,
             layer.value_page(run.page, item.kv_head), value_width,
             scratch.sums + run.first_row * heads * value_width, true);
  }
}

#if defined(SRLM_AMX)
// Tiles 0-3 collect; 4 and 5 hold whole operands, 6 and 7 those of 16 positions.
constexpr TileConfig kAttentionTiles{1,
                                     0,
                                     {},
                                     {64, 64, 64, 64, 64, 64, 32, 64},
                                     {16, 16, 16, 16, 16, 16, 16, 8}};

// Scores of 16 positions in tile T.
#define SRLM_SCORE(T)                                             \
  _tile_zero(T);                                                  \
  for (int64_t k = 0; k < width; k += kTileDepth) {               \
    _tile_loadd(4, own + k, 2 * width);                           \
    _tile_loadd(5, page + k / 2 * P + j, 4 * P);                  \
    _tile_dpbf16ps(T, 4, 5);                                      \
  }                                                               \
  _tile_stored(T, scores + j, 4 * group.stride);

// A tile's rows beyond the run's spoil scores that later runs overwrite or nobody reads. The tiles
// take turns, so that one block need not wait for another.
SRLM_AMX void score_tiles(const Layer& layer, const Group& group, const Heads& item,
                          const Scratch& scratch) {
  const int64_t width = layer.shape.head_dim, P = layer.shape.page_tokens;
  const auto* queries = reinterpret_cast<const uint16_t*>(scratch.queries);
  int turn = 0;
  for (size_t i = 0; i < group.runs.size(); ++i) {
    const Run& run = group.runs[i];
    prefetch_keys(layer, group, item, i + kAhead);
    const uint32_t* page = layer.key_page(run.page, item.kv_head);
    const int64_t first = run.first_row * item.count;
    float* scores = scratch.scores + first * group.stride + run.start - group.begin;
    const uint16_t* own = queries + first * width;
    for (int64_t j = 0; j < run.used; j += kBlock) {
      switch (turn++ % 4) {
        case 0: SRLM_SCORE(0) break;
        case 1: SRLM_SCORE(1) break;
        case 2: SRLM_SCORE(2) break;
        default: SRLM_SCORE(3)
      }
    }
  }
}
#undef SRLM_SCORE

// The weights of 16 positions for a run of rows; zeros for the item's other rows.
struct alignas(64) RunWeights {
  uint16_t rows[kTileRows][kBlock] = {};

  void set(const uint16_t* weights, int64_t stride, int64_t first, int64_t count) {
    for (int64_t m = first; m < first + count; ++m)
      std::memcpy(rows[m], weights + m * stride, sizeof rows[m]);
  }
  void clear(int64_t first, int64_t count) { std::memset(rows[first], 0, count * sizeof rows[0]); }
};

// Sums of up to 64 columns stay in the tiles over all pages.
SRLM_AMX void sum_tiles(const Layer& layer, const Group& group, const Heads& item, int64_t column,
                        const Scratch& scratch) {
  const int64_t value_width = layer.shape.value_width, all = group.num_rows * item.count;
  const int64_t columns = std::min<int64_t>(4 * kPanel, value_width - column);
  const int64_t stride = 2 * group.stride;  // in halves of words
  const auto* weights = reinterpret_cast<const uint16_t*>(scratch.scores);
  RunWeights own;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t i = 0; i < group.runs.size(); ++i) {
    const Run& run = group.runs[i];
    prefetch_values(layer, group, item, i + kAhead);
    const int64_t first = run.first_row * item.count, count = run.num_rows * item.count;
    for (int64_t t = 0; t < run.used; t += kBlock) {
      const uint16_t* source = weights + run.start - group.begin + t;
      const uint32_t* block =
          layer.value_page(run.page, item.kv_head) + t / 2 * value_width + column;
      if (count < all) own.set(source, stride, first, count);
      settle();
      if (count < all)
        _tile_loadd(6, own.rows, sizeof own.rows[0]);
      else
        _tile_loadd(6, source, 2 * stride);
      _tile_loadd(7, block, 4 * value_width);
      _tile_dpbf16ps(0, 6, 7);
      if (columns > kPanel) {
        _tile_loadd(7, block + kPanel, 4 * value_width);
        _tile_dpbf16ps(1, 6, 7);
      }
      if (columns > 2 * kPanel) {
        _tile_loadd(7, block + 2 * kPanel, 4 * value_width);
        _tile_dpbf16ps(2, 6, 7);
      }
      if (columns > 3 * kPanel) {
        _tile_loadd(7, block + 3 * kPanel, 4 * value_width);
        _tile_dpbf16ps(3, 6, 7);
      }
    }
    if (count < all) own.clear(first, count);
  }
  float* sums = scratch.sums + column;
  _tile_stored(0, sums, 4 * value_width);
  if (columns > kPanel) _tile_stored(1, sums + kPanel, 4 * value_width);
  if (columns > 2 * kPanel) _tile_stored(2, sums + 2 * kPanel, 4 * value_width);
  if (columns > 3 * kPanel) _tile_stored(3, sums + 3 * kPanel, 4 * value_width);
}

SRLM_AMX void begin_tiles() { _tile_loadconfig(&kAttentionTiles); }
SRLM_AMX void end_tiles() { _tile_release(); }
#endif

void attend_item(const Layer& layer, const Group& group, const Heads& item, const Level& level,
                 float* memory) {
  const Scratch scratch(memory, group, item, layer.shape);
  float totals[32];
  for (size_t run = 0; run < kAhead; ++run) prefetch_keys(layer, group, item, run);
  take_queries(layer, group, item, scratch.queries);
#if defined(SRLM_AMX)
  if (level.multiply == nullptr) {
    settle();
    score_tiles(layer, group, item, scratch);
    for (size_t run = 0; run < kAhead; ++run) prefetch_values(layer, group, item, run);
    softmax_rows<uint16_t>(group, item.count, layer.shape.page_tokens, scratch.scores, totals);
    for (int64_t column = 0; column < layer.shape.value_width; column += 4 * kPanel)
      sum_tiles(layer, group, item, column, scratch);
    return put_result(layer, group, item, scratch.sums, totals);
  }
#endif
  score_words(layer, group, item, level.multiply, scratch);
  for (size_t run = 0; run < kAhead; ++run) prefetch_values(layer, group, item, run);
  if (layer.shape.is_bf16)
    softmax_rows<uint16_t>(group, item.count, layer.shape.page_tokens, scratch.scores, totals);
  else
    softmax_rows<float>(group, item.count, layer.shape.page_tokens, scratch.scores, totals);
  sum_words(layer, group, item, level.multiply, scratch);
  put_result(layer, group, item, scratch.sums, totals);
}

std::vector<Row> rows_of(const PagedBatch& batch, int64_t window) {
  std::vector<Row> rows;
  for (int64_t s = 0; s < batch.num_sequences; ++s)
    for (int64_t row = batch.row_starts[s]; row < batch.row_starts[s + 1]; ++row) {
      const int64_t end = batch.context_lengths[s] - batch.row_starts[s + 1] + row + 1;
      const int64_t low = window > 0 ? std::max<int64_t>(0, end - window) : 0;
      rows.push_back({row, batch.block_table + s * batch.table_width, low, end});
    }
  return rows;
}

// Which rows share a group changes no row's result, only how often a page is read.
std::vector<Group> groups_of(const std::vector<Row>& rows, int64_t heads, const Level& level,
                             int64_t page_tokens) {
  std::vector<Group> groups;
  for (size_t first = 0, next; first < rows.size(); first = next) {
    const int64_t page = rows[first].low / page_tokens;
    const bool narrow = level.multiply != nullptr && rows[first].end > kLongContext;
    const int64_t most = (narrow ? kLongRows : level.item_rows) / heads;
    for (next = first + 1; next < rows.size(); ++next)
      if (static_cast<int64_t>(next - first) >= std::max<int64_t>(most, 1) ||
          !reads(rows[next], page * page_tokens, page_tokens) ||
          rows[next].pages[page] != rows[first].pages[page])
        break;
    groups.push_back(group_of(&rows[first], static_cast<int64_t>(next - first), page_tokens));
  }
  return groups;
}

int64_t head_rows(const PageShape& shape, const Level& level) {
  return std::min<int64_t>(shape.heads / shape.kv_heads, level.head_rows);
}

std::vector<Heads> heads_of(const PageShape& shape, const Level& level) {
  const int64_t group = shape.heads / shape.kv_heads, most = head_rows(shape, level);
  std::vector<Heads> heads;
  for (int64_t g = 0; g < shape.kv_heads; ++g)
    for (int64_t h = 0; h < group; h += most)
      heads.push_back({g, g * group + h, std::min<int64_t>(most, group - h)});
  return heads;
}

// Values of positions after the last one written stay zero in its block of 16, so that a product
// over whole blocks meets no remains of another sequence.
void clear_blocks(const int64_t* slots, int64_t rows, const PageShape& shape, uint16_t* values) {
  const int64_t P = shape.page_tokens, block = kBlock * shape.value_width;
  for (int64_t r = 0; r < rows; ++r)
    if (slots[r] % kBlock == 0)
      for (int64_t g = 0; g < shape.kv_heads; ++g)
        std::fill_n(values + (slots[r] / P * shape.kv_heads + g) * P * shape.value_width +
                        slots[r] % P / kBlock * block,
                    block, uint16_t{0});
}

// key [K] and value [K] of one token and head, at `offset` of its page.
void write_token(const float* key, const float* value, int64_t offset, const PageShape& shape,
                 float* keys, float* values) {
  for (int64_t d = 0; d < shape.head_dim; ++d) keys[d * shape.page_tokens + offset] = key[d];
  std::copy_n(value, shape.head_dim, values + offset * shape.value_width);
}

void write_token(const float* key, const float* value, int64_t offset, const PageShape& shape,
                 uint16_t* keys, uint16_t* values) {
  const int64_t P = shape.page_tokens;
  for (int64_t d = 0; d < shape.head_dim; ++d)
    narrow(key[d], keys + (d / 2 * P + offset) * 2 + d % 2);
  uint16_t* row = values + offset / 2 * 2 * shape.value_width + offset % 2;
  for (int64_t d = 0; d < shape.head_dim; ++d) narrow(value[d], row + 2 * d);
}

template <typename T>
void write_rows(const float* k, int64_t k_stride, const float* v, int64_t v_stride,
                const int64_t* slots, int64_t rows, const PageShape& shape, T* keys, T* values) {
  const int64_t width = shape.head_dim, P = shape.page_tokens;
#pragma omp parallel for schedule(static) if (rows > 64)
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t g = 0; g < shape.kv_heads; ++g) {
      const int64_t head = slots[r] / P * shape.kv_heads + g;
      write_token(k + r * k_stride + g * width, v + r * v_stride + g * width, slots[r] % P, shape,
                  keys + head * width * P, values + head * P * shape.value_width);
    }
}

}  // namespace

AttentionPlan::AttentionPlan(const PagedBatch& batch, const PageShape& shape, int64_t window)
    : rows(rows_of(batch, window)) {
  const Level level = level_of(shape);
  groups = groups_of(rows, head_rows(shape, level), level, shape.page_tokens);
}

void write_pages(const float* k, int64_t k_stride, const float* v, int64_t v_stride,
                 const int64_t* slots, int64_t rows, const PageShape& shape, void* keys,
                 void* values) {
  if (shape.is_bf16) {
    auto *own_keys = static_cast<uint16_t*>(keys), *own_values = static_cast<uint16_t*>(values);
    clear_blocks(slots, rows, shape, own_values);
    return write_rows(k, k_stride, v, v_stride, slots, rows, shape, own_keys, own_values);
  }
  write_rows(k, k_stride, v, v_stride, slots, rows, shape, static_cast<float*>(keys),
             static_cast<float*>(values));
}

void paged_attention(const float* q, int64_t q_stride, const AttentionPlan& plan,
                     const PageShape& shape, const void* keys, const void* values, float scale,
                     const Operand& out) {
  const Level level = level_of(shape);
  const std::vector<Heads> heads = heads_of(shape, level);
  const Layer layer{q,     q_stride, shape, static_cast<const uint32_t*>(keys),
                    static_cast<const uint32_t*>(values), scale, out};
#pragma omp parallel
  {
    static thread_local std::vector<float> memory;
#if defined(SRLM_AMX)
    if (level.multiply == nullptr) begin_tiles();
#endif
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (size_t i = 0; i < plan.groups.size(); ++i)
      for (size_t h = 0; h < heads.size(); ++h) {
        const size_t words = Scratch::words(plan.groups[i], heads[h], shape);
        if (memory.size() < words) memory.resize(words);
        attend_item(layer, plan.groups[i], heads[h], level, memory.data());
      }
#if defined(SRLM_AMX)
    if (level.multiply == nullptr) end_tiles();
#endif
  }
}

}  // namespace srlm
