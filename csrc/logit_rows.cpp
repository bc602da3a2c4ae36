// Rows of a block of logits, in place: exponentials with their statistics, and gradients. The
// formulas are those of srlm_fast/kernels/logit_rows.py. Each row is one chain of operations, so its
// bits depend neither on the other rows nor on the number of threads.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kLowest = std::numeric_limits<float>::lowest();
// A row's offset follows its maximum only when that has risen by more than this: exponentials up to
// e^20 cost fp32 and bf16 nothing, and an offset that stays spares the sums made with it.
constexpr float kLazy = 20.0f;

// The exponential loses digits of tanh near 0; there the series, error below 1e-7.
SRLM_INLINE v16f tanh16(v16f u) {
  const v16f size = u < 0.0f ? -u : u;
  const v16f e = exp16(size * -2.0f);
  const v16f far = (1.0f - e) / (1.0f + e);
  const v16f s = u * u;
  v16f near = (62.0f / 2835) * s + (-17.0f / 315);
  near = near * s + 2.0f / 15;
  near = near * s + -1.0f / 3;
  near = u * (near * s + 1.0f);
  return s < 0.09f ? near : (u < 0.0f ? -far : far);
}

struct Mapped {
  v16f z, bend;
};

template <bool CAP>
SRLM_INLINE Mapped mapped(v16f x, float softcap, float scale) {
  if (!CAP) return {x * scale, v16f{} + scale};
  const v16f t = tanh16(x * (1.0f / softcap));
  return {t * (softcap * scale), (1.0f - t * t) * scale};
}

// Sixteen logits from column i on; what lies beyond the row becomes -inf.
template <bool CAP, typename T>
SRLM_INLINE Mapped load_logits(const T* x, const float* bias, int64_t i, int64_t width,
                               float softcap, float scale) {
  if (i + kWide <= width) {
    v16f v = load16(x + i);
    if (bias != nullptr) v += load16(bias + i);
    return mapped<CAP>(v, softcap, scale);
  }
  T tail[kWide] = {};
  float tail_bias[kWide] = {};
  for (int64_t j = i; j < width; ++j) tail[j - i] = x[j];
  if (bias != nullptr)
    for (int64_t j = i; j < width; ++j) tail_bias[j - i] = bias[j];
  Mapped out = mapped<CAP>(load16(tail) + load16(tail_bias), softcap, scale);
  for (int64_t j = width - i; j < kWide; ++j) out.z[j] = -kInf;
  return out;
}

template <typename T>
SRLM_INLINE void store_logits(T* x, int64_t i, int64_t width, v16f v) {
  if (i + kWide <= width) return store16(x + i, v);
  T tail[kWide];
  store16(tail, v);
  for (int64_t j = i; j < width; ++j) x[j] = tail[j - i];
}

SRLM_INLINE v16f without(v16f z, int64_t i, int64_t own) {
  if (own >= i && own < i + kWide) z[own - i] = -kInf;
  return z;
}

struct RowStatistics {
  float top, total, moment;
};

template <bool CAP, bool STORE, bool MOMENT, typename T>
SRLM_INLINE RowStatistics exponentials(T* x, const float* bias, int64_t width, int64_t own,
                                       float top, float softcap, float scale) {
  v16f high = v16f{} - kInf;
  v16i nans = {};
  for (int64_t i = 0; i < width; i += kWide) {
    const v16f z = load_logits<CAP>(x, bias, i, width, softcap, scale).z;
    nans |= z != z;  // a maximum drops them
    const v16f others = without(z, i, own);
    high = others > high ? others : high;
  }
  const float highest = max_lanes(high);
  top = highest > top + kLazy ? highest : top;
  v16f total = {}, moment = {};
  for (int64_t i = 0; i < width; i += kWide) {
    const Mapped m = load_logits<CAP>(x, bias, i, width, softcap, scale);
    const v16f gap = without(m.z, i, own) - top;
    const v16f e = exp16(gap);
    total += e;
    if (MOMENT) moment += e > 0.0f ? e * gap : v16f{};
    if (STORE) store_logits(x, i, width, e * m.bend);
  }
  float spoilt = 0.0f;
  for (int i = 0; i < kWide; ++i) spoilt = nans[i] ? kNaN : spoilt;
  return {top, sum_lanes(total) + spoilt, sum_lanes(moment) + spoilt};
}

template <bool CAP, typename T>
SRLM_INLINE void slopes(T* x, const float* bias, int64_t width, int64_t own, const RowFacts& f,
                        float softcap, float scale) {
  const float plain = f.grad_lse - f.grad_logp;
  for (int64_t i = 0; i < width; i += kWide) {
    const Mapped m = load_logits<CAP>(x, bias, i, width, softcap, scale);
    v16f log_p = m.z - f.top - f.spread;
    const v16f p = exp16(log_p);
    log_p = log_p > kLowest ? log_p : v16f{} + kLowest;
    v16f grad = p * m.bend * (plain - f.grad_entropy * (log_p + f.entropy));
    if (own >= i && own < i + kWide) grad[own - i] = f.own;
    store_logits(x, i, width, grad);
  }
}

template <typename T>
void fill_nan(T* x, int64_t width) {
  const float one[1] = {kNaN};
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(one) + sizeof(float) - sizeof(T), sizeof(T));
  for (int64_t i = 0; i < width; ++i) x[i] = value;
}

template <typename T>
SRLM_CLONES void exponentials_row(T* x, const float* bias, int64_t width, int64_t own,
                                  const LogitMap& map, bool store, bool with_moment,
                                  RowStatistics* state) {
  const float cap = map.softcap, scale = 1.0f / map.temperature;
  RowStatistics s;
#define SRLM_CASE(CAP, STORE, MOMENT) \
  s = exponentials<CAP, STORE, MOMENT>(x, bias, width, own, state->top, cap, scale)
  if (cap > 0.0f) {
    if (store) SRLM_CASE(true, true, true); else SRLM_CASE(true, false, true);
  } else if (with_moment) {
    if (store) SRLM_CASE(false, true, true); else SRLM_CASE(false, false, true);
  } else {
    if (store) SRLM_CASE(false, true, false); else SRLM_CASE(false, false, false);
  }
#undef SRLM_CASE
  const float shift = state->top - s.top, shrink = std::exp(shift);
  state->moment = (state->moment + shift * state->total) * shrink + s.moment;
  state->total = state->total * shrink + s.total;
  state->top = s.top;
}

template <typename T>
SRLM_CLONES void slopes_row(T* x, const float* bias, int64_t width, int64_t own,
                            const LogitMap& map, const RowFacts& facts) {
  const float cap = map.softcap, scale = 1.0f / map.temperature;
  if (facts.spread != facts.spread || facts.own != facts.own) return fill_nan(x, width);
  if (cap > 0.0f) return slopes<true>(x, bias, width, own, facts, cap, scale);
  slopes<false>(x, bias, width, own, facts, cap, scale);
}

template <typename T>
void exponentials_rows(const LogitBlock& b, T* x, const int64_t* targets, int64_t first, float* top,
                       float* total, float* moment, float* shrink, bool store) {
#pragma omp parallel for schedule(static) if (b.rows > 1)
  for (int64_t r = 0; r < b.rows; ++r) {
    RowStatistics s = {top[r], total[r], moment != nullptr ? moment[r] : 0.0f};
    exponentials_row(x + r * b.stride, b.bias, b.width, targets[r] - first, b.map, store,
                     moment != nullptr, &s);
    shrink[r] = std::exp(top[r] - s.top);
    top[r] = s.top;
    total[r] = s.total;
    if (moment != nullptr) moment[r] = s.moment;
  }
}

RowFacts facts_of(const float* facts, const float* upstream, int64_t rows, int64_t r) {
  RowFacts f = {facts[r], facts[rows + r], facts[5 * rows + r], upstream[r], upstream[rows + r],
                upstream[2 * rows + r], 0.0f};
  const float miss = facts[2 * rows + r], bend = facts[6 * rows + r];
  const float logp = facts[3 * rows + r] > kLowest ? facts[3 * rows + r] : kLowest;
  const float own = f.grad_lse - f.grad_entropy * (logp + f.entropy);
  f.own = (f.grad_logp * miss + own * std::exp(logp)) * bend;
  return f;
}

template <typename T>
void slopes_rows(const LogitBlock& b, T* x, const int64_t* targets, int64_t first,
                 const float* facts, const float* upstream) {
#pragma omp parallel for schedule(static) if (b.rows > 1)
  for (int64_t r = 0; r < b.rows; ++r)
    slopes_row(x + r * b.stride, b.bias, b.width, targets[r] - first, b.map,
               facts_of(facts, upstream, b.rows, r));
}

// acc[i] += scale * part[i], and out[i] = scale * x[i].
template <typename T>
SRLM_CLONES void add_scaled_row(const T* part, float scale, int64_t width, float* acc) {
  int64_t i = 0;
  for (; i + kWide <= width; i += kWide)
    store16(acc + i, load16(acc + i) + load16(part + i) * scale);
  for (; i < width; ++i) {
    T tail[kWide] = {part[i]};
    acc[i] += load16(tail)[0] * scale;
  }
}

template <typename T>
SRLM_CLONES void scale_row(const T* x, float scale, int64_t width, T* out) {
  if (scale != scale) return fill_nan(out, width);
  for (int64_t i = 0; i < width; i += kWide)
    store_logits(out, i, width, load_logits<false>(x, nullptr, i, width, 0.0f, scale).z);
}

template <typename T>
void add_scaled(const T* part, const float* scale, int64_t rows, int64_t width, float* acc) {
#pragma omp parallel for schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r)
    add_scaled_row(part + r * width, scale[r], width, acc + r * width);
}

template <typename T>
void scaled(const T* x, const float* scale, int64_t rows, int64_t width, T* out) {
#pragma omp parallel for schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) scale_row(x + r * width, scale[r], width, out + r * width);
}

}  // namespace

void add_scaled_rows(const void* part, bool is_bf16, const float* scale, int64_t rows,
                     int64_t width, float* acc) {
  if (is_bf16) return add_scaled(static_cast<const uint16_t*>(part), scale, rows, width, acc);
  add_scaled(static_cast<const float*>(part), scale, rows, width, acc);
}

void scale_rows(const void* x, bool is_bf16, const float* scale, int64_t rows, int64_t width,
                void* out) {
  if (is_bf16)
    return scaled(static_cast<const uint16_t*>(x), scale, rows, width, static_cast<uint16_t*>(out));
  scaled(static_cast<const float*>(x), scale, rows, width, static_cast<float*>(out));
}

void logit_exponentials(const LogitBlock& block, const int64_t* targets, int64_t first, float* top,
                        float* total, float* moment, float* shrink, bool store) {
  if (block.is_bf16)
    return exponentials_rows(block, static_cast<uint16_t*>(block.data), targets, first, top, total,
                             moment, shrink, store);
  exponentials_rows(block, static_cast<float*>(block.data), targets, first, top, total, moment,
                    shrink, store);
}

void logit_slopes(const LogitBlock& block, const int64_t* targets, int64_t first,
                  const float* facts, const float* upstream) {
  if (block.is_bf16)
    return slopes_rows(block, static_cast<uint16_t*>(block.data), targets, first, facts, upstream);
  slopes_rows(block, static_cast<float*>(block.data), targets, first, facts, upstream);
}

}  // namespace srlm
