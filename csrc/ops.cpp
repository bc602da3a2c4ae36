// The small operations between the linear layers, each in one pass over its rows.
#include <cmath>

#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int64_t kSerial = 16384;  // elements below which a second thread costs more than it saves

template <typename T>
SRLM_CLONES void rms_norm_row(const float* x, int64_t width, const float* weight, float eps,
                              T* out) {
  v16f squares = {};
  int64_t i = 0;
  for (; i + kWide <= width; i += kWide) squares += load16(x + i) * load16(x + i);
  float total = sum_lanes(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
  for (i = 0; i + kWide <= width; i += kWide)
    store16(out + i, load16(weight + i) * (load16(x + i) * scale));
  for (; i < width; ++i) narrow(weight[i] * (x[i] * scale), out + i);
}

// The pairs (i, i + K/2) of each head, turned by the angles of the row.
SRLM_CLONES
void rotate_row(float* x, int64_t heads, int64_t half, const float* c, const float* s) {
  for (int64_t h = 0; h < heads; ++h, x += 2 * half) {
    int64_t i = 0;
    for (; i + kWide <= half; i += kWide) {
      const v16f first = load16(x + i), second = load16(x + half + i);
      store16(x + i, first * load16(c + i) - second * load16(s + i));
      store16(x + half + i, second * load16(c + i) + first * load16(s + i));
    }
    for (; i < half; ++i) {
      const float first = x[i], second = x[half + i];
      x[i] = first * c[i] - second * s[i];
      x[half + i] = second * c[i] + first * s[i];
    }
  }
}

template <typename T>
void norm_rows(const float* x, int64_t rows, int64_t width, const float* weight, float eps, T* out,
               int64_t stride) {
#pragma omp parallel for schedule(static) if (rows * width > kSerial)
  for (int64_t r = 0; r < rows; ++r)
    rms_norm_row(x + r * width, width, weight, eps, out + r * stride);
}

}  // namespace

void rms_norm(const float* x, int64_t rows, int64_t width, const float* weight, float eps,
              const Operand& out) {
  if (out.is_bf16)
    return norm_rows(x, rows, width, weight, eps, static_cast<uint16_t*>(out.data), out.stride);
  norm_rows(x, rows, width, weight, eps, static_cast<float*>(out.data), out.stride);
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
