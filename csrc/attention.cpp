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
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int kItemRows = 24;           // tile rows of an item
constexpr int64_t kLongContext = 4096;  // beyond it fewer, or the scores leave the cache

// One query row of the item: a token row of the step, all its heads of this key/value head.
struct Row {
  int64_t index;           // in the step's token stream
  const int32_t* pages;    // of its sequence
  int64_t low, end;        // it sees keys at positions low .. end - 1
};

// Neighbouring rows of a group that read the same page, at positions start .. start + used - 1.
struct Run {
  int64_t page, start, used, first_row, num_rows;
};

// Rows that share their first page, and every (row, page) of theirs once, in order of position.
struct Group {
  const Row* rows;
  int64_t num_rows, begin, stride;  // its scores hold positions begin .. begin + stride - 1
  std::vector<Run> runs;
};

struct Heads {
  int64_t kv_head, first, count;  // one key/value head and query heads that use it
};

// scores[j] for positions begin + j; what the row does not see becomes 0. Returns the sum.
SRLM_INLINE float softmax_row(float* scores, int64_t begin, const Row& row) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const int64_t columns = (row.end - begin + kPanel - 1) / kPanel * kPanel;
  for (int64_t j = 0; j < row.low - begin; ++j) scores[j] = lowest;
  for (int64_t j = row.end - begin; j < columns; ++j) scores[j] = lowest;
  v8f best = splat(lowest);
  for (int64_t j = 0; j < columns; j += kLanes) best = max8(best, load8(scores + j));
  const float top = max_lanes(best);
  v8f total = splat(0.0f);
  for (int64_t j = 0; j < columns; j += kLanes) {
    const v8f p = exp8(load8(scores + j) - top);
    store8(scores + j, p);
    total += p;
  }
  return sum_lanes(total);
}

SRLM_INLINE void tile_block(int rows, int64_t depth, const float* a, int64_t a_stride,
                            const float* b, int64_t b_stride, int64_t columns, float* c,
                            int64_t c_stride, bool accumulate) {
  int64_t j = 0;
  if (rows <= 3)  // few rows: wider tiles keep enough multiply-adds in flight
    for (; j + 2 * kPanel <= columns; j += 2 * kPanel) {
      if (rows == 1) tile<1, 4>(depth, a, a_stride, b + j, b_stride, c + j, c_stride, accumulate);
      if (rows == 2) tile<2, 4>(depth, a, a_stride, b + j, b_stride, c + j, c_stride, accumulate);
      if (rows == 3) tile<3, 4>(depth, a, a_stride, b + j, b_stride, c + j, c_stride, accumulate);
    }
  for (; j < columns; j += kPanel)
    tile_rows<2>(rows, depth, a, a_stride, b + j, b_stride, c + j, c_stride, accumulate);
}

SRLM_INLINE void tile_all(int rows, int64_t depth, const float* a, int64_t a_stride,
                          const float* b, int64_t b_stride, int64_t columns, float* c,
                          int64_t c_stride, bool accumulate) {
  for (int m = 0; m < rows; m += kTileRows)
    tile_block(rows - m < kTileRows ? rows - m : kTileRows, depth, a + m * a_stride, a_stride, b,
               b_stride, columns, c + m * c_stride, c_stride, accumulate);
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

// Pages lie scattered, too short for the processor's own prefetching: ask for the one after next.
SRLM_INLINE void prefetch(const float* block, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(block + i);
}

SRLM_CLONES
void attend_item(const Group& group, const Heads& item, const float* q, int64_t q_stride,
                 const PageShape& shape, const float* keys, const float* values, float scale,
                 float* scores, float* out) {
  const Row* rows = group.rows;
  const int64_t begin = group.begin, stride = group.stride;
  const int64_t width = shape.head_dim, value_width = shape.value_width, P = shape.page_tokens;
  const int64_t heads = item.count, tile_count = group.num_rows * heads;
  float* tile_q = scores + tile_count * stride;
  float* tile_out = tile_q + tile_count * width;
  for (int64_t m = 0; m < tile_count; ++m) {
    const float* source =
        q + rows[m / heads].index * q_stride + (item.first + m % heads) * width;
    for (int64_t d = 0; d < width; ++d) tile_q[m * width + d] = source[d] * scale;
    for (int64_t d = 0; d < value_width; ++d) tile_out[m * value_width + d] = 0.0f;
  }
  const int64_t block = width * P, value_block = P * value_width;
  const int64_t num_runs = static_cast<int64_t>(group.runs.size());
  for (int64_t i = 0; i < num_runs; ++i) {
    const Run& run = group.runs[i];
    if (i + 1 < num_runs)
      prefetch(keys + (group.runs[i + 1].page * shape.kv_heads + item.kv_head) * block, block);
    tile_all(static_cast<int>(run.num_rows * heads), width, tile_q + run.first_row * heads * width,
             width, keys + (run.page * shape.kv_heads + item.kv_head) * block, P,
             (run.used + kPanel - 1) / kPanel * kPanel,
             scores + run.first_row * heads * stride + run.start - begin, stride, false);
  }
  float totals[kItemRows];
  for (int64_t m = 0; m < tile_count; ++m) {
    const Row& row = rows[m / heads];
    const int64_t first = row.low / P * P;  // where this row's own pages begin
    float* own = scores + m * stride + first - begin;
    totals[m] = softmax_row(own, first, row);
    // A row that shares its last page may see less of it than the others: zeros for the rest.
    const int64_t padded = (row.end - first + kPanel - 1) / kPanel * kPanel;
    for (int64_t j = padded; j < (row.end - first + P - 1) / P * P; ++j) own[j] = 0.0f;
  }
  for (int64_t i = 0; i < num_runs; ++i) {
    const Run& run = group.runs[i];
    if (i + 1 < num_runs)
      prefetch(values + (group.runs[i + 1].page * shape.kv_heads + item.kv_head) * value_block,
               value_block);
    tile_all(static_cast<int>(run.num_rows * heads), run.used,
             scores + run.first_row * heads * stride + run.start - begin, stride,
             values + (run.page * shape.kv_heads + item.kv_head) * value_block, value_width,
             value_width, tile_out + run.first_row * heads * value_width, value_width, true);
  }
  for (int64_t m = 0; m < tile_count; ++m) {
    float* target =
        out + (rows[m / heads].index * shape.heads + item.first + m % heads) * width;
    for (int64_t d = 0; d < width; ++d) target[d] = tile_out[m * value_width + d] / totals[m];
  }
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
std::vector<Group> groups_of(const std::vector<Row>& rows, int64_t heads, int64_t page_tokens) {
  std::vector<Group> groups;
  for (size_t first = 0, next; first < rows.size(); first = next) {
    const int64_t page = rows[first].low / page_tokens;
    const int64_t most = (rows[first].end > kLongContext ? kTileRows : kItemRows) / heads;
    for (next = first + 1; next < rows.size(); ++next)
      if (static_cast<int64_t>(next - first) >= std::max<int64_t>(most, 1) ||
          !reads(rows[next], page * page_tokens, page_tokens) ||
          rows[next].pages[page] != rows[first].pages[page])
        break;
    groups.push_back(group_of(&rows[first], static_cast<int64_t>(next - first), page_tokens));
  }
  return groups;
}

std::vector<Heads> heads_of(const PageShape& shape) {
  const int64_t group = shape.heads / shape.kv_heads;
  std::vector<Heads> heads;
  for (int64_t g = 0; g < shape.kv_heads; ++g)
    for (int64_t h = 0; h < group; h += kTileRows)
      heads.push_back({g, g * group + h, std::min<int64_t>(kTileRows, group - h)});
  return heads;
}

}  // namespace

void write_pages(const float* k, int64_t k_stride, const float* v, int64_t v_stride,
                 const int64_t* slots, int64_t rows, const PageShape& shape, float* keys,
                 float* values) {
  const int64_t width = shape.head_dim, P = shape.page_tokens;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t page = slots[r] / P, offset = slots[r] % P;
    for (int64_t g = 0; g < shape.kv_heads; ++g) {
      const int64_t head = page * shape.kv_heads + g;
      float* key = keys + head * width * P + offset;
      const float* source = k + r * k_stride + g * width;
      for (int64_t d = 0; d < width; ++d) key[d * P] = source[d];
      std::copy_n(v + r * v_stride + g * width, width,
                  values + (head * P + offset) * shape.value_width);
    }
  }
}

void paged_attention(const float* q, int64_t q_stride, const PagedBatch& batch,
                     const PageShape& shape, const float* keys, const float* values, float scale,
                     int64_t window, float* out) {
  const std::vector<Row> rows = rows_of(batch, window);
  const std::vector<Heads> heads = heads_of(shape);
  const std::vector<Group> groups = groups_of(rows, heads[0].count, shape.page_tokens);
  const int64_t per_row = shape.head_dim + shape.value_width;
#pragma omp parallel
  {
    std::vector<float> scratch;
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (size_t i = 0; i < groups.size(); ++i)
      for (size_t h = 0; h < heads.size(); ++h) {
        const Group& group = groups[i];
        scratch.resize(std::max<size_t>(
            scratch.size(), group.num_rows * heads[h].count * (group.stride + per_row)));
        attend_item(group, heads[h], q, q_stride, shape, keys, values, scale, scratch.data(), out);
      }
  }
}

}  // namespace srlm
