// The small operations between the linear layers, each in one pass over its rows.
#include <cmath>

#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int64_t kSerial = 16384;  // elements below which a second thread costs more than it saves

SRLM_CLONES
void rms_norm_row(const float* x, int64_t width, const float* weight, float eps, float* out) {
  v8f squares = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) squares += load8(x + i) * load8(x + i);
  float total = sum_lanes(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
  for (i = 0; i + kLanes <= width; i += kLanes)
    store8(out + i, load8(weight + i) * (load8(x + i) * scale));
  for (; i < width; ++i) out[i] = weight[i] * (x[i] * scale);
}

SRLM_INLINE v8f silu8(v8f x) { return x / (splat(1.0f) + exp8(-x)); }

SRLM_CLONES
void swiglu_row(const float* gate, const float* up, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store8(out + i, silu8(load8(gate + i)) * load8(up + i));
  for (; i < width; ++i) out[i] = silu8(splat(gate[i]))[0] * up[i];
}

// The pairs (i, i + K/2) of each head, turned by the angles of the row.
SRLM_CLONES
void rotate_row(float* x, int64_t heads, int64_t half, const float* c, const float* s) {
  for (int64_t h = 0; h < heads; ++h, x += 2 * half) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const v8f first = load8(x + i), second = load8(x + half + i);
      store8(x + i, first * load8(c + i) - second * load8(s + i));
      store8(x + half + i, second * load8(c + i) + first * load8(s + i));
    }
    for (; i < half; ++i) {
      const float first = x[i], second = x[half + i];
      x[i] = first * c[i] - second * s[i];
      x[half + i] = second * c[i] + first * s[i];
    }
  }
}

}  // namespace

void rms_norm(const float* x, int64_t rows, int64_t width, int64_t x_stride, const float* weight,
              float eps, float* out) {
#pragma omp parallel for schedule(static) if (rows * width > kSerial)
  for (int64_t r = 0; r < rows; ++r)
    rms_norm_row(x + r * x_stride, width, weight, eps, out + r * width);
}

void swiglu(const float* gate_up, int64_t rows, int64_t width, float* out) {
#pragma omp parallel for schedule(static) if (rows * width > kSerial / 4)
  for (int64_t r = 0; r < rows; ++r)
    swiglu_row(gate_up + 2 * r * width, gate_up + (2 * r + 1) * width, width, out + r * width);
}

void rotate_heads(float* x, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim,
                  int64_t stride, const HeadNorms& norms, const float* cosines,
                  const float* sines) {
  const int64_t half = head_dim / 2, all = heads + kv_heads;
#pragma omp parallel for schedule(static) if (rows * all * head_dim > kSerial)
  for (int64_t r = 0; r < rows; ++r) {
    float* row = x + r * stride;
    for (int64_t h = 0; h < all; ++h) {
      const float* norm = h < heads ? norms.q : norms.k;
      float* head = row + h * head_dim;
      if (norm != nullptr) rms_norm_row(head, head_dim, norm, norms.eps, head);
    }
    rotate_row(row, all, half, cosines + r * half, sines + r * half);
  }
}

}  // namespace srlm
