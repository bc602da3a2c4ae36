#include "decoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "simd.hpp"

namespace srlm {

std::vector<float> as_floats(const void* data, int64_t size, bool is_bf16) {
  std::vector<float> out(data == nullptr ? 0 : size);
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = is_bf16 ? widen(static_cast<const uint16_t*>(data)[i])
                     : static_cast<const float*>(data)[i];
  return out;
}

Projection::Projection(const void* matrix, const void* bias_or_null, int64_t out, int64_t in,
                       bool is_bf16, bool gated)
    : words(allocate<uint32_t>(packed_words(out, in, is_bf16, gated))),
      bias(as_floats(bias_or_null, out, is_bf16)), weight{words.get(), out, in, is_bf16, gated} {
  pack_weight(matrix, weight, words.get());
}

void Projection::apply(const Operand& x, int64_t rows, float* out, bool add) const {
  packed_linear(x, rows, weight, bias_or_null(), add, out);
}

Operand OperandRows::of(int64_t rows, int64_t width, bool is_bf16) {
  const int64_t stride = padded_depth(width, is_bf16), size = is_bf16 ? 2 : 4;
  if (rows > rows_ || width != width_) {
    rows_ = padded_rows(std::max(rows, width == width_ ? rows_ : 0));
    width_ = width;
    memory_ = allocate<char>(rows_ * stride * size);
    std::memset(memory_.get(), 0, rows_ * stride * size);  // what pads a row stays zero
  }
  return {memory_.get(), stride, is_bf16};
}

Decoder::Decoder(const PageShape& shape, int64_t width, float eps, const void* embedding,
                 std::vector<float> final_norm, Projection head)
    : shape_(shape), width_(width), eps_(eps), embedding_(embedding),
      final_norm_(std::move(final_norm)), head_(std::move(head)) {}

void Decoder::forward(const int64_t* token_ids, int64_t rows, const float* cosines,
                      const float* sines, const int64_t* slots, const PagedBatch& batch,
                      void* hidden) {
  embed(token_ids, rows);
  std::map<int64_t, AttentionPlan> plans;  // by window
  for (const DecoderLayer& layer : layers_) {
    const auto plan = plans.try_emplace(layer.window, batch, shape_, layer.window).first;
    attention(layer, rows, cosines, sines, slots, plan->second);
    feed_forward(layer, rows);
  }
  rms_norm(residual_.data(), rows, width_, final_norm_.data(), eps_, {hidden, width_, is_bf16()});
}

void Decoder::embed(const int64_t* token_ids, int64_t rows) {
  residual_.resize(rows * width_);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = residual_.data() + r * width_;
    if (!is_bf16()) {
      std::copy_n(static_cast<const float*>(embedding_) + token_ids[r] * width_, width_, row);
      continue;
    }
    const uint16_t* source = static_cast<const uint16_t*>(embedding_) + token_ids[r] * width_;
    for (int64_t i = 0; i < width_; ++i) row[i] = widen(source[i]);
  }
}

// residual += o(attend(rope(qkv(norm(residual)))))
void Decoder::attention(const DecoderLayer& layer, int64_t rows, const float* cosines,
                        const float* sines, const int64_t* slots, const AttentionPlan& plan) {
  const int64_t K = shape_.head_dim, q_width = shape_.heads * K, kv_width = shape_.kv_heads * K;
  const int64_t stride = q_width + 2 * kv_width;
  const Operand normed = normed_.of(rows, width_, is_bf16());
  const Operand mixed = mixed_.of(rows, q_width, is_bf16());
  wide_.resize(rows * stride);
  rms_norm(residual_.data(), rows, width_, layer.attn_norm.data(), eps_, normed);
  layer.qkv.apply(normed, rows, wide_.data());
  float *q = wide_.data(), *k = q + q_width, *v = k + kv_width;
  const auto of = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
  const HeadNorms norms{of(layer.q_norm), of(layer.k_norm), eps_};
  rotate_heads(q, rows, shape_.heads, shape_.kv_heads, K, stride, norms, cosines, sines);
  write_pages(k, stride, v, stride, slots, rows, shape_, layer.keys, layer.values);
  const float scale = 1.0f / std::sqrt(static_cast<float>(K));
  paged_attention(q, stride, plan, shape_, layer.keys, layer.values, scale, mixed);
  layer.o.apply(mixed, rows, residual_.data(), true);
}

// residual += down(swiglu(gate_up(norm(residual))))
void Decoder::feed_forward(const DecoderLayer& layer, int64_t rows) {
  const int64_t inner = layer.down.weight.in_width;
  const Operand normed = normed_.of(rows, width_, is_bf16());
  const Operand gated = inner_.of(rows, inner, is_bf16());
  rms_norm(residual_.data(), rows, width_, layer.mlp_norm.data(), eps_, normed);
  packed_swiglu(normed, rows, layer.gate_up.weight, layer.gate_up.bias_or_null(), gated);
  layer.down.apply(gated, rows, residual_.data(), true);
}

void Decoder::head(const void* hidden, const int64_t* wanted, int64_t count, float* logits) {
  const Operand rows = normed_.of(count, width_, is_bf16());
  const int64_t size = is_bf16() ? 2 : 4;
  for (int64_t r = 0; r < count; ++r)
    std::memcpy(static_cast<char*>(rows.data) + r * rows.stride * size,
                static_cast<const char*>(hidden) + wanted[r] * width_ * size, width_ * size);
  head_.apply(rows, count, logits);
}

}  // namespace srlm
