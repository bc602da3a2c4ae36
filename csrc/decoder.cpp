#include "decoder.hpp"

#include <algorithm>
#include <cmath>

namespace srlm {

Projection::Projection(const float* weight, const float* bias_or_null, int64_t out, int64_t in)
    : panels(packed_size(out, in)), bias(bias_or_null), out_width(out), in_width(in) {
  pack_weight(weight, out, in, panels.data());
}

void Projection::apply(const float* x, int64_t rows, float* out, bool add) const {
  packed_linear(x, rows, in_width, panels.data(), out_width, bias, add, out);
}

Decoder::Decoder(const PageShape& shape, int64_t width, float eps, const float* embedding,
                 const float* final_norm, Projection head)
    : shape_(shape), width_(width), eps_(eps), embedding_(embedding), final_norm_(final_norm),
      head_(std::move(head)) {}

void Decoder::forward(const int64_t* token_ids, int64_t rows, const float* cosines,
                      const float* sines, const int64_t* slots, const PagedBatch& batch,
                      float* hidden) {
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(embedding_ + token_ids[r] * width_, width_, hidden + r * width_);
  normed_.resize(rows * width_);
  for (const DecoderLayer& layer : layers_) {
    attention(layer, rows, cosines, sines, slots, batch, hidden);
    feed_forward(layer, rows, hidden);
  }
  rms_norm(hidden, rows, width_, width_, final_norm_, eps_, hidden);
}

// hidden += o(attend(rope(qkv(norm(hidden)))))
void Decoder::attention(const DecoderLayer& layer, int64_t rows, const float* cosines,
                        const float* sines, const int64_t* slots, const PagedBatch& batch,
                        float* hidden) {
  const int64_t K = shape_.head_dim, q_width = shape_.heads * K, kv_width = shape_.kv_heads * K;
  const int64_t stride = q_width + 2 * kv_width;
  wide_.resize(rows * stride);
  narrow_.resize(rows * q_width);
  rms_norm(hidden, rows, width_, width_, layer.attn_norm, eps_, normed_.data());
  layer.qkv.apply(normed_.data(), rows, wide_.data());
  float *q = wide_.data(), *k = q + q_width, *v = k + kv_width;
  const HeadNorms norms{layer.q_norm, layer.k_norm, eps_};
  rotate_heads(q, rows, shape_.heads, shape_.kv_heads, K, stride, norms, cosines, sines);
  write_pages(k, stride, v, stride, slots, rows, shape_, layer.keys, layer.values);
  const float scale = 1.0f / std::sqrt(static_cast<float>(K));
  paged_attention(q, stride, batch, shape_, layer.keys, layer.values, scale, layer.window,
                  narrow_.data());
  layer.o.apply(narrow_.data(), rows, hidden, true);
}

// hidden += down(swiglu(gate_up(norm(hidden))))
void Decoder::feed_forward(const DecoderLayer& layer, int64_t rows, float* hidden) {
  const int64_t inner = layer.down.in_width;
  wide_.resize(rows * 2 * inner);
  narrow_.resize(rows * inner);
  rms_norm(hidden, rows, width_, width_, layer.mlp_norm, eps_, normed_.data());
  layer.gate_up.apply(normed_.data(), rows, wide_.data());
  swiglu(wide_.data(), rows, inner, narrow_.data());
  layer.down.apply(narrow_.data(), rows, hidden, true);
}

void Decoder::head(const float* hidden, const int64_t* wanted, int64_t count, float* logits) {
  normed_.resize(count * width_);
  for (int64_t r = 0; r < count; ++r)
    std::copy_n(hidden + wanted[r] * width_, width_, normed_.data() + r * width_);
  head_.apply(normed_.data(), count, logits);
}

}  // namespace srlm
