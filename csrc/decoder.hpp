// The decoder's forward over a planned step, on weights that are held a second time in panels.
// srlm_fast/model/decoder.py is the same text in PyTorch, and the specification; here it is one
// call per step, with no work of the interpreter per operation.
//
// A bfloat16 model keeps the residual stream and every sum in fp32: values are rounded to bfloat16
// only where they enter a matmul or the pages.
#pragma once

#include <cstdint>
#include <vector>

#include "attention.hpp"
#include "kernels.hpp"
#include "memory.hpp"

namespace srlm {

// A vector of the model, fp32 or bfloat16, copied as fp32; empty where the model has none.
std::vector<float> as_floats(const void* data, int64_t size, bool is_bf16);

// A linear layer: its own copy of the weight in panels.
struct Projection {
  Block<uint32_t> words;
  std::vector<float> bias;
  PackedWeight weight{};

  Projection(const void* matrix, const void* bias_or_null, int64_t out, int64_t in, bool is_bf16,
             bool gated = false);
  const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
  void apply(const Operand& x, int64_t rows, float* out, bool add = false) const;
};

struct DecoderLayer {
  Projection qkv, o, gate_up, down;
  std::vector<float> attn_norm, mlp_norm;
  std::vector<float> q_norm, k_norm;  // empty where the family has none
  int64_t window;                     // 0 is full attention
  void *keys, *values;                // this layer's pages
};

// Rows that a matmul will read, kept between steps.
class OperandRows {
 public:
  Operand of(int64_t rows, int64_t width, bool is_bf16);

 private:
  Block<char> memory_;
  int64_t rows_ = 0, width_ = 0;
};

// The embedding is read where the model holds it.
class Decoder {
 public:
  Decoder(const PageShape& shape, int64_t width, float eps, const void* embedding,
          std::vector<float> final_norm, Projection head);
  void add_layer(DecoderLayer layer) { layers_.push_back(std::move(layer)); }
  bool is_bf16() const { return shape_.is_bf16; }
  int64_t head_dim() const { return shape_.head_dim; }

  // token_ids [T], cosines and sines [T, K/2] -> hidden [T, D] after the final norm, in the
  // model's dtype.
  void forward(const int64_t* token_ids, int64_t rows, const float* cosines, const float* sines,
               const int64_t* slots, const PagedBatch& batch, void* hidden);
  // hidden [T, D], wanted rows [U] -> logits [U, V] fp32.
  void head(const void* hidden, const int64_t* wanted, int64_t count, float* logits);

 private:
  void embed(const int64_t* token_ids, int64_t rows);
  void attention(const DecoderLayer& layer, int64_t rows, const float* cosines, const float* sines,
                 const int64_t* slots, const AttentionPlan& plan);
  void feed_forward(const DecoderLayer& layer, int64_t rows);

  PageShape shape_;
  int64_t width_;
  float eps_;
  const void* embedding_;
  std::vector<float> final_norm_;
  Projection head_;
  std::vector<DecoderLayer> layers_;
  OperandRows normed_, mixed_, inner_;
  std::vector<float> residual_, wide_;  // kept between steps
};

}  // namespace srlm
