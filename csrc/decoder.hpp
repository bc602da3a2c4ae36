// The decoder's forward over a planned step, for fp32 weights that are small enough to be held a
// second time in panels. srlm_fast/model/decoder.py is the same text in PyTorch, and the
// specification; here it is one call per step, with no work of the interpreter per operation.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.hpp"

namespace srlm {

// A linear layer: its own copy of the weight in panels, the bias by address (0 for none).
struct Projection {
  std::vector<float> panels;
  const float* bias = nullptr;
  int64_t out_width = 0, in_width = 0;

  Projection() = default;
  Projection(const float* weight, const float* bias_or_null, int64_t out, int64_t in);
  void apply(const float* x, int64_t rows, float* out, bool add = false) const;
};

struct DecoderLayer {
  Projection qkv, o, gate_up, down;
  const float *attn_norm, *mlp_norm;
  const float *q_norm, *k_norm;  // null where the family has none
  int64_t window;                // 0 is full attention
  float *keys, *values;          // this layer's pages
};

// Norms, biases and the embedding are read where the model holds them.
class Decoder {
 public:
  Decoder(const PageShape& shape, int64_t width, float eps, const float* embedding,
          const float* final_norm, Projection head);
  void add_layer(DecoderLayer layer) { layers_.push_back(std::move(layer)); }

  // token_ids [T], cosines and sines [T, K/2] -> hidden [T, D] after the final norm.
  void forward(const int64_t* token_ids, int64_t rows, const float* cosines, const float* sines,
               const int64_t* slots, const PagedBatch& batch, float* hidden);
  // hidden [T, D], wanted rows [U] -> logits [U, V].
  void head(const float* hidden, const int64_t* wanted, int64_t count, float* logits);

  int64_t width() const { return width_; }
  int64_t vocab() const { return head_.out_width; }

 private:
  void attention(const DecoderLayer& layer, int64_t rows, const float* cosines, const float* sines,
                 const int64_t* slots, const PagedBatch& batch, float* hidden);
  void feed_forward(const DecoderLayer& layer, int64_t rows, float* hidden);

  PageShape shape_;
  int64_t width_;
  float eps_;
  const float *embedding_, *final_norm_;
  Projection head_;
  std::vector<DecoderLayer> layers_;
  std::vector<float> normed_, wide_, narrow_;  // kept between steps
};

}  // namespace srlm
