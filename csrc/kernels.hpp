// The numeric kernels. Plain addresses of contiguous data, fp32 unless said otherwise; shapes are
// checked by the callers in Python. Shape letters: T rows, D width, V vocabulary, H heads, G
// key/value heads, K head width.
#pragma once

#include <cstdint>

#include "score_table.hpp"

namespace srlm {

// Rows as a matmul reads them: fp32, or bfloat16 with zeros from the width up to `padded_depth`.
// `stride` counts elements. Room for `padded_rows` rows must be there.
struct Operand {
  void* data;
  int64_t stride;
  bool is_bf16;
};

// A weight [N, K] in panels of 16 columns, in 32-bit words: a float each, [N/16, K, 16], or a pair
// of bfloat16 neighbours in K each, [N/16, K/2, 16], K padded with zeros. A gated one holds the
// gates [N/2, K] and what they open [N/2, K], in turn a panel of each.
struct PackedWeight {
  const uint32_t* words;
  int64_t out_width, in_width;
  bool is_bf16, gated;
};
int64_t padded_depth(int64_t in_width, bool is_bf16);
int64_t padded_rows(int64_t rows);
int64_t packed_words(int64_t out_width, int64_t in_width, bool is_bf16, bool gated);
// weight in the same dtype, row-major.
void pack_weight(const void* weight, const PackedWeight& shape, uint32_t* words);
// out[T, N] = x[T, K] w^T (+ bias), or += with `add`.
void packed_linear(const Operand& x, int64_t rows, const PackedWeight& weight, const float* bias,
                   bool add, float* out);
// out[T, N/2] = silu(gates) * the others, of a gated weight.
void packed_swiglu(const Operand& x, int64_t rows, const PackedWeight& weight, const float* bias,
                   const Operand& out);

void rms_norm(const float* x, int64_t rows, int64_t width, const float* weight, float eps,
              const Operand& out);
// In place on rows [T] that hold H query heads and then G key heads of K: the norm of each head
// where the family has one, then the rotation by cosines and sines [T, K/2].
struct HeadNorms {
  const float *q, *k;  // [K] or null
  float eps;
};
void rotate_heads(float* x, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim,
                  int64_t stride, const HeadNorms& norms, const float* cosines, const float* sines);

// One layer's pages in 32-bit words: keys [pages, G, K, P] (a page's tokens side by side), values
// [pages, G, P, Kp] with Kp the head width rounded up to 16. In bfloat16 a word is a pair of
// neighbours in K (keys [pages, G, K/2, P]) or in P (values [pages, G, P/2, Kp]).
struct PageShape {
  int64_t heads, kv_heads, head_dim, value_width, page_tokens;
  bool is_bf16;
};
void write_pages(const float* k, int64_t k_stride, const float* v, int64_t v_stride,
                 const int64_t* slots, int64_t rows, const PageShape& shape, void* keys,
                 void* values);
// The attention itself is in attention.hpp. Sequence s owns rows row_starts[s] .. row_starts[s+1], the last tokens of a context of
// context_lengths[s] keys that stand in the pages block_table[s, :].
struct PagedBatch {
  const int32_t* row_starts;
  const int32_t* context_lengths;
  const int32_t* block_table;
  int64_t num_sequences, table_width;
};
struct SamplingBatch {
  const float* logits;  // [U, V]
  int64_t vocab;
  int64_t num_samples;  // N
  const int64_t* rows;  // [N] row of logits
  const float *temperature, *top_p, *min_p, *repetition_penalty;
  const int32_t* top_k;
  const uint64_t* noise_keys;
  const int64_t* positions;
  const int32_t *history, *history_starts, *banned, *banned_starts;
  const uint32_t* masks;     // [M, V/32] words, bit i of word w: token 32 w + i may be drawn; or null
  const int32_t* mask_rows;  // [N] row of masks, or -1
  const int32_t* forced;     // [N] the token that is scored instead of drawing one, or -1
};
// tokens [N] and their raw log-probabilities at temperature 1 [N], NaN where a row has no finite
// maximum, or none that may be drawn.
void sample(const SamplingBatch& batch, int32_t* tokens, float* logprobs);

// A block of logits [rows, width], fp32 or bf16, worked on in place; see csrc/logit_rows.cpp.
struct LogitMap {
  float softcap;  // 0: none
  float temperature;
};
struct LogitBlock {
  void* data;
  bool is_bf16;
  int64_t rows, width, stride;
  const float* bias;  // [width] or null
  LogitMap map;
};
// What the gradient of one row needs; `own` is that of the target's cell.
struct RowFacts {
  float top, spread, entropy, grad_logp, grad_lse, grad_entropy, own;
};
void logit_exponentials(const LogitBlock& block, const int64_t* targets, int64_t first, float* top,
                        float* total, float* moment, float* shrink, bool store);
// facts [7, rows], upstream [3, rows].
void logit_slopes(const LogitBlock& block, const int64_t* targets, int64_t first,
                  const float* facts, const float* upstream);
// acc[rows, width] += scale[r] part, and out = scale[r] x; part and x fp32 or bf16, contiguous.
void add_scaled_rows(const void* part, bool is_bf16, const float* scale, int64_t rows,
                     int64_t width, float* acc);
void scale_rows(const void* x, bool is_bf16, const float* scale, int64_t rows, int64_t width,
                void* out);

// Training's operations on rows [rows, width] whose columns are adjacent, fp32 or bf16; see
// csrc/train_ops.cpp. Row i begins at i / inner and i % inner times the strides (elements).
struct RowsShape {
  int64_t rows, width;
  bool is_bf16;
};
struct Rows {
  const void* data;  // null: not there
  int64_t inner, outer_stride, inner_stride;
};
// y = norm(x (+ residual)) weight and scales [rows] = 1 / rms; total = x + residual. All out
// contiguous.
void rms_norm_forward(const RowsShape& shape, const Rows& x, const Rows& residual,
                      const void* weight, float eps, void* y, void* total, float* scales);
// out = dL/dx (+ grad_total); grad_weight [width] or null.
void rms_norm_backward(const RowsShape& shape, const Rows& grad, const Rows& grad_total,
                       const Rows& x, const void* weight, const float* scales, void* out,
                       float* grad_weight);
// Rows of heads, the values of a head side by side; strides in elements.
struct HeadRows {
  void* data;
  int64_t row_stride, head_stride;
};
struct Angles {
  const void *cosines, *sines;
  int64_t cosine_stride, sine_stride;
  bool are_bf16;
};
// Heads [rows, heads, head_dim] turned by the angles [rows, head_dim / 2], or back by them.
void turn_heads(const HeadRows& x, const HeadRows& y, bool is_bf16, int64_t rows, int64_t heads,
                int64_t head_dim, const Angles& angles, bool back);
// gate_up [rows, 2 width] -> y [rows, width], and grad [rows, width] -> out [rows, 2 width].
void swiglu_forward(const RowsShape& shape, const void* gate_up, int64_t stride, void* y);
void swiglu_backward(const RowsShape& shape, const void* grad, int64_t grad_stride,
                     const void* gate_up, int64_t stride, void* out);

double sum_of_squares(const void* x, bool is_bf16, int64_t count);
// x [rows, width] of 16 bits each, rows `stride` apart -> out [width, rows].
void transpose(const uint16_t* x, int64_t rows, int64_t width, int64_t stride, uint16_t* out);

// Scores [rows] and their status [rows] from token ids [rows, stride] of int32 or int64.
template <typename Id>
void extract_scores(const Id* ids, int64_t stride, const int64_t* lengths, const bool* finished,
                    int64_t rows, const ScoreTableView& table, float* scores, int32_t* status);

}  // namespace srlm
