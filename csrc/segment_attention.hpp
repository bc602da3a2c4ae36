// Attention of a packed stream of segments, forward and backward; the formulas are those of
// srlm_fast/kernels/segment_attention.py.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace srlm {

// Segments one behind the other in the stream; parents [count]: an earlier one without a parent, or
// -1.
struct Segmentation {
  const int64_t *lengths, *parents;
  int64_t count;
};

struct AttentionShape {
  int64_t rows, heads, kv_heads, width;
  bool is_bf16;  // otherwise fp32
  float scale;
  int64_t window;  // positions that a row sees, itself included; 0: all
};

// q [T, H, K], k and v [T, G, K] -> out [T, H, K] and the log of each softmax's sum, lse [H, T] fp32.
void segment_attention(const AttentionShape& shape, const Segmentation& segments, HeadRows q,
                       HeadRows k, HeadRows v, void* out, float* lse);

// grad [T, H, K] of out -> dq [T, H, K], dk and dv [T, G, K].
void segment_attention_backward(const AttentionShape& shape, const Segmentation& segments,
                                HeadRows q, HeadRows k, HeadRows v, HeadRows out, HeadRows grad,
                                const float* lse, void* dq, void* dk, void* dv);

}  // namespace srlm
