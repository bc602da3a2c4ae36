// The numeric kernels. Plain addresses of contiguous fp32 data; shapes are checked by the callers
// in Python. Shape letters: T rows, D width, V vocabulary, H heads, G key/value heads, K head width.
#pragma once

#include <cstdint>

namespace srlm {

// out[T, N] = x[T, K] w^T (+ bias), or += with `add`; w [N, K] is packed in panels of 16 columns.
int64_t packed_size(int64_t out_width, int64_t in_width);
void pack_weight(const float* weight, int64_t out_width, int64_t in_width, float* packed);
void packed_linear(const float* x, int64_t rows, int64_t in_width, const float* packed,
                   int64_t out_width, const float* bias, bool add, float* out);

void rms_norm(const float* x, int64_t rows, int64_t width, int64_t x_stride, const float* weight,
              float eps, float* out);
void swiglu(const float* gate_up, int64_t rows, int64_t width, float* out);
// In place on rows [T] that hold H query heads and then G key heads of K: the norm of each head
// where the family has one, then the rotation by cosines and sines [T, K/2].
struct HeadNorms {
  const float *q, *k;  // [K] or null
  float eps;
};
void rotate_heads(float* x, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim,
                  int64_t stride, const HeadNorms& norms, const float* cosines, const float* sines);

// One layer's pages: keys [pages, G, K, P] (a page's tokens side by side), values [pages, G, P, Kp]
// with Kp the head width rounded up to 16.
struct PageShape {
  int64_t heads, kv_heads, head_dim, value_width, page_tokens;
};
void write_pages(const float* k, int64_t k_stride, const float* v, int64_t v_stride,
                 const int64_t* slots, int64_t rows, const PageShape& shape, float* keys,
                 float* values);
// Sequence s owns rows row_starts[s] .. row_starts[s+1], the last tokens of a context of
// context_lengths[s] keys that stand in the pages block_table[s, :]. window 0 is full attention.
struct PagedBatch {
  const int32_t* row_starts;
  const int32_t* context_lengths;
  const int32_t* block_table;
  int64_t num_sequences, table_width;
};
void paged_attention(const float* q, int64_t q_stride, const PagedBatch& batch,
                     const PageShape& shape, const float* keys, const float* values, float scale,
                     int64_t window, float* out);

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
};
// tokens [N] and their raw log-probabilities at temperature 1 [N], NaN where a row has no finite
// maximum.
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

// The largest ROUGE-L F-measure (2 * LCS / (both lengths)) against any sequence of the pool.
double rouge_l_max(const int32_t* candidate, int64_t length, const int32_t* pool,
                   const int64_t* starts, int64_t num_sequences);

}  // namespace srlm
