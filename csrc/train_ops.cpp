// Training's small operations, forward and backward, each in one pass over its rows. The formulas
// are those of srlm_fast/kernels/{rms_norm,rope,swiglu}.py. A row is one chain of operations and
// sums over rows go by blocks of kBlock rows, so bits do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int64_t kSerial = 16384;  // elements below which a second thread costs more than it saves
constexpr int64_t kSquares = 4096;  // elements whose squares are added up in fp32
constexpr int64_t kBlock = 64;      // rows whose weight gradients one thread adds up

template <typename T>
const T* row_at(const Rows& rows, int64_t i) {
  return static_cast<const T*>(rows.data) + i / rows.inner * rows.outer_stride +
         i % rows.inner * rows.inner_stride;
}

// Sixteen values from column i on, zeros beyond the end.
template <typename T>
SRLM_INLINE v16f load_some(const T* x, int64_t i, int64_t width) {
  if (i + kWide <= width) return load16(x + i);
  T tail[kWide] = {};
  for (int64_t j = i; j < width; ++j) tail[j - i] = x[j];
  return load16(tail);
}
template <typename T>
SRLM_INLINE void store_some(T* x, int64_t i, int64_t width, v16f v) {
  if (i + kWide <= width) return store16(x + i, v);
  T tail[kWide];
  store16(tail, v);
  for (int64_t j = i; j < width; ++j) x[j] = tail[j - i];
}

SRLM_INLINE v16f rounded(v16f v, const float*) { return v; }
SRLM_INLINE v16f rounded(v16f v, const uint16_t*) { return (v16f)(round16(v) << 16); }

// -> 1 / sqrt(mean of squares + eps). total, where given, becomes x + residual, which is normed.
template <typename T>
SRLM_CLONES float norm_row(const T* x, const T* residual, const T* weight, int64_t width, float eps,
                           T* y, T* total) {
  if (residual != nullptr) {
    for (int64_t i = 0; i < width; i += kWide)
      store_some(total, i, width, load_some(x, i, width) + load_some(residual, i, width));
    x = total;
  }
  v16f squares = {};
  for (int64_t i = 0; i < width; i += kWide) {
    const v16f v = load_some(x, i, width);
    squares += v * v;
  }
  const float mean = sum_lanes(squares) / static_cast<float>(width);
  const float scale = 1.0f / std::sqrt(mean + eps);
  for (int64_t i = 0; i < width; i += kWide)
    store_some(y, i, width,
               load_some(weight, i, width) * rounded(load_some(x, i, width) * scale, y));
  return scale;
}

// out = r (g w - n mean(g w n)) + h, and parts += g n where asked for.
template <typename T>
SRLM_CLONES void norm_back_row(const T* grad, const T* grad_total, const T* x, const T* weight,
                               float scale, int64_t width, T* out, float* parts) {
  v16f products = {};
  for (int64_t i = 0; i < width; i += kWide) {
    const v16f g = load_some(grad, i, width), normed = load_some(x, i, width) * scale;
    products += g * load_some(weight, i, width) * normed;
    if (parts != nullptr) store_some(parts, i, width, load_some(parts, i, width) + g * normed);
  }
  const float mean = sum_lanes(products) / static_cast<float>(width);
  for (int64_t i = 0; i < width; i += kWide) {
    const v16f g = load_some(grad, i, width) * load_some(weight, i, width);
    v16f value = (g - load_some(x, i, width) * scale * mean) * scale;
    if (grad_total != nullptr) value += load_some(grad_total, i, width);
    store_some(out, i, width, value);
  }
}

template <typename T>
void norm_rows(const RowsShape& s, const Rows& x, const Rows& residual, const T* weight, float eps,
               T* y, T* total, float* scales) {
#pragma omp parallel for schedule(static) if (s.rows * s.width > kSerial)
  for (int64_t r = 0; r < s.rows; ++r)
    scales[r] = norm_row(row_at<T>(x, r), residual.data ? row_at<T>(residual, r) : nullptr, weight,
                         s.width, eps, y + r * s.width, total + r * s.width);
}

template <typename T>
void norm_back_rows(const RowsShape& s, const Rows& grad, const Rows& grad_total, const Rows& x,
                    const T* weight, const float* scales, T* out, float* grad_weight) {
  const int64_t blocks = (s.rows + kBlock - 1) / kBlock;
  std::vector<float> parts(grad_weight != nullptr ? blocks * s.width : 0);
#pragma omp parallel for schedule(static) if (s.rows * s.width > kSerial)
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t r = b * kBlock; r < std::min(s.rows, (b + 1) * kBlock); ++r)
      norm_back_row(row_at<T>(grad, r), grad_total.data ? row_at<T>(grad_total, r) : nullptr,
                    row_at<T>(x, r), weight, scales[r], s.width, out + r * s.width,
                    grad_weight != nullptr ? parts.data() + b * s.width : nullptr);
  if (grad_weight == nullptr) return;
  std::fill(grad_weight, grad_weight + s.width, 0.0f);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t i = 0; i < s.width; ++i) grad_weight[i] += parts[b * s.width + i];
}

// One head: the pairs (i, i + K/2) turned by the angles of its row. y may be x.
template <typename T, typename A>
SRLM_CLONES void turn_head(const T* x, const A* cosines, const A* sines, float sign, int64_t half,
                           T* y) {
  for (int64_t i = 0; i < half; i += kWide) {
    const v16f c = load_some(cosines, i, half), s = load_some(sines, i, half) * sign;
    const v16f first = load_some(x, i, half), second = load_some(x + half, i, half);
    store_some(y, i, half, first * c - second * s);
    store_some(y + half, i, half, second * c + first * s);
  }
}

template <typename T, typename A>
void turn_rows(const HeadRows& x, const HeadRows& y, int64_t rows, int64_t heads, int64_t half,
               const A* cosines, int64_t cosine_stride, const A* sines, int64_t sine_stride,
               float sign) {
#pragma omp parallel for schedule(static) if (rows * heads * half > kSerial)
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t h = 0; h < heads; ++h)
      turn_head(static_cast<const T*>(x.data) + r * x.row_stride + h * x.head_stride,
                cosines + r * cosine_stride, sines + r * sine_stride, sign, half,
                static_cast<T*>(y.data) + r * y.row_stride + h * y.head_stride);
}

template <typename T>
SRLM_CLONES void swiglu_row(const T* gate, const T* up, int64_t width, T* y) {
  for (int64_t i = 0; i < width; i += kWide) {
    const v16f g = load_some(gate, i, width);
    store_some(y, i, width, g / (1.0f + exp16(-g)) * load_some(up, i, width));
  }
}

template <typename T>
SRLM_CLONES void swiglu_back_row(const T* grad, const T* gate, const T* up, int64_t width,
                                 T* grad_gate, T* grad_up) {
  for (int64_t i = 0; i < width; i += kWide) {
    const v16f d = load_some(grad, i, width), g = load_some(gate, i, width);
    const v16f sigmoid = 1.0f / (1.0f + exp16(-g)), u = load_some(up, i, width);
    store_some(grad_gate, i, width, d * u * sigmoid * (1.0f + g * (1.0f - sigmoid)));
    store_some(grad_up, i, width, d * g * sigmoid);
  }
}

template <typename T>
void swiglu_rows(const RowsShape& s, const T* gate_up, int64_t stride, T* y) {
#pragma omp parallel for schedule(static) if (s.rows * s.width > kSerial)
  for (int64_t r = 0; r < s.rows; ++r)
    swiglu_row(gate_up + r * stride, gate_up + r * stride + s.width, s.width, y + r * s.width);
}

template <typename T>
void swiglu_back_rows(const RowsShape& s, const T* grad, int64_t grad_stride, const T* gate_up,
                      int64_t stride, T* out) {
#pragma omp parallel for schedule(static) if (s.rows * s.width > kSerial)
  for (int64_t r = 0; r < s.rows; ++r) {
    const T* gate = gate_up + r * stride;
    T* row = out + 2 * r * s.width;
    swiglu_back_row(grad + r * grad_stride, gate, gate + s.width, s.width, row, row + s.width);
  }
}

// A block's sum of squares; blocks begin at fixed places.
template <typename T>
SRLM_CLONES float squares_of(const T* x, int64_t count) {
  v16f sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWide <= count; i += 4 * kWide)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const v16f v = load16(x + i + j * kWide);
      sums[j] += v * v;
    }
  for (; i < count; i += kWide) {
    const v16f v = load_some(x, i, count);
    sums[0] += v * v;
  }
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename T>
double all_squares(const T* x, int64_t count) {
  const int64_t blocks = (count + kSquares - 1) / kSquares;
  std::vector<float> parts(blocks);
#pragma omp parallel for schedule(static) if (count > kSerial)
  for (int64_t b = 0; b < blocks; ++b)
    parts[b] = squares_of(x + b * kSquares, std::min(kSquares, count - b * kSquares));
  double total = 0.0;
  for (const float part : parts) total += part;
  return total;
}

}  // namespace

double sum_of_squares(const void* x, bool is_bf16, int64_t count) {
  if (is_bf16) return all_squares(static_cast<const uint16_t*>(x), count);
  return all_squares(static_cast<const float*>(x), count);
}

void rms_norm_forward(const RowsShape& s, const Rows& x, const Rows& residual, const void* weight,
                      float eps, void* y, void* total, float* scales) {
  const auto run = [&](auto* w) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
    norm_rows<T>(s, x, residual, w, eps, static_cast<T*>(y), static_cast<T*>(total), scales);
  };
  s.is_bf16 ? run(static_cast<const uint16_t*>(weight)) : run(static_cast<const float*>(weight));
}

void rms_norm_backward(const RowsShape& s, const Rows& grad, const Rows& grad_total, const Rows& x,
                       const void* weight, const float* scales, void* out, float* grad_weight) {
  const auto run = [&](auto* w) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
    norm_back_rows<T>(s, grad, grad_total, x, w, scales, static_cast<T*>(out), grad_weight);
  };
  s.is_bf16 ? run(static_cast<const uint16_t*>(weight)) : run(static_cast<const float*>(weight));
}

void turn_heads(const HeadRows& x, const HeadRows& y, bool is_bf16, int64_t rows, int64_t heads,
                int64_t head_dim, const Angles& angles, bool back) {
  const float sign = back ? -1.0f : 1.0f;
  const auto run = [&](auto* typed, auto* cosines) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using A = std::remove_const_t<std::remove_pointer_t<decltype(cosines)>>;
    turn_rows<T, A>(x, y, rows, heads, head_dim / 2, cosines, angles.cosine_stride,
                    static_cast<const A*>(angles.sines), angles.sine_stride, sign);
  };
  if (!is_bf16) return run(static_cast<float*>(x.data), static_cast<const float*>(angles.cosines));
  auto* halves = static_cast<uint16_t*>(x.data);
  if (angles.are_bf16) return run(halves, static_cast<const uint16_t*>(angles.cosines));
  run(halves, static_cast<const float*>(angles.cosines));
}

void swiglu_forward(const RowsShape& s, const void* gate_up, int64_t stride, void* y) {
  if (s.is_bf16)
    return swiglu_rows(s, static_cast<const uint16_t*>(gate_up), stride, static_cast<uint16_t*>(y));
  swiglu_rows(s, static_cast<const float*>(gate_up), stride, static_cast<float*>(y));
}

void swiglu_backward(const RowsShape& s, const void* grad, int64_t grad_stride, const void* gate_up,
                     int64_t stride, void* out) {
  if (s.is_bf16)
    return swiglu_back_rows(s, static_cast<const uint16_t*>(grad), grad_stride,
                            static_cast<const uint16_t*>(gate_up), stride,
                            static_cast<uint16_t*>(out));
  swiglu_back_rows(s, static_cast<const float*>(grad), grad_stride,
                   static_cast<const float*>(gate_up), stride, static_cast<float*>(out));
}

}  // namespace srlm
