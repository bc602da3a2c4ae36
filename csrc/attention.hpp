// Which rows of a step attend together: the same for all layers with one window, so planned once.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace srlm {

// One query row: a token row of the step, all its heads of one key/value head.
struct Row {
  int64_t index;         // in the step's token stream
  const int32_t* pages;  // of its sequence
  int64_t low, end;      // it sees keys at positions low .. end - 1
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

// window 0 is full attention.
struct AttentionPlan {
  std::vector<Row> rows;
  std::vector<Group> groups;

  AttentionPlan(const PagedBatch& batch, const PageShape& shape, int64_t window);
};

// q [T, H, K] fp32 -> out [T, H * K].
void paged_attention(const float* q, int64_t q_stride, const AttentionPlan& plan,
                     const PageShape& shape, const void* keys, const void* values, float scale,
                     const Operand& out);

}  // namespace srlm
