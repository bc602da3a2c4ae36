// Attention of a packed stream of segments, forward and backward.
//
// A work item is one key/value head of one tree: a segment without a parent and its children. The
// item's rows stand one segment behind the other, each filled up with zeros to whole blocks. Items
// share nothing, and every sum within one is taken in a fixed order, so that the number of threads
// changes no bit.
//
// Forward: a block of queries of one head against all keys that it sees, whose scores fit a cache,
// so the softmax is the plain two-pass one. Backward: a block of keys against the queries that see
// it, in chunks. Scores lie there as [keys, queries], P^T and dS^T, and so stand ready as the left
// operand of dV = P^T dO and dK = dS^T Q and, in pairs of rows, as the right one of dQ^T = K^T dS^T:
//
//     P = exp(scale Q K^T - lse)   dP = dO V^T   dS = scale P (dP - delta)   delta = sum_d dO O
//
// (arXiv 2307.08691, algorithm 2). Products of bfloat16 round P and dS to bfloat16, and sum in fp32.
#include "segment_attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "multiply.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kQueryRows = 32;   // of a head that attend together
constexpr int64_t kQueryChunk = 128;  // columns of P^T at a time: they and dS^T fit a first cache
constexpr int64_t kApart = 16;       // words that keep rows of a large matrix out of one cache set

template <typename T>
constexpr int64_t kPerWord = 4 / sizeof(T);
// Positions of a block: what fills 16 words.
template <typename T>
constexpr int64_t kBlock = kPanel * kPerWord<T>;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A segment: its rows in the stream, and its place among the rows of its tree.
struct Span {
  int64_t start, length, place, padded;
};

// The root comes first.
struct Tree {
  std::vector<Span> spans;
  int64_t padded = 0;

  void add(int64_t start, int64_t length, int64_t unit) {
    spans.push_back({start, length, padded, round_up(length, unit)});
    padded += spans.back().padded;
  }
};

std::vector<Tree> trees_of(const Segmentation& segments, int64_t unit) {
  std::vector<Tree> trees;
  std::vector<size_t> tree_of(segments.count);
  for (int64_t s = 0, start = 0; s < segments.count; start += segments.lengths[s++]) {
    const int64_t parent = segments.parents[s];
    tree_of[s] = parent < 0 ? trees.size() : tree_of[parent];
    if (parent < 0) trees.emplace_back();
    trees[tree_of[s]].add(start, segments.lengths[s], unit);
  }
  return trees;
}

struct Buffer {
  Block<uint32_t> memory;
  size_t size = 0;

  template <typename T = uint32_t>
  T* room(int64_t count) {
    const size_t words = (count * sizeof(T) + 3) / 4;
    if (size < words) memory = allocate<uint32_t>(words), size = words;
    return reinterpret_cast<T*>(memory.get());
  }
  float* zeros(int64_t count) {
    float* out = room<float>(count);
    std::memset(out, 0, count * sizeof(float));
    return out;
  }
};

// Forms of an operand.

// Lane l of the first comes from a where bit STEP of l is clear, else from b STEP lanes before; the
// second has the others.
template <int STEP, int... L>
SRLM_INLINE void exchange(v16u& a, v16u& b, std::integer_sequence<int, L...>) {
  const v16u first = __builtin_shufflevector(a, b, ((L & STEP) == 0 ? L : 16 + L - STEP)...);
  b = __builtin_shufflevector(a, b, ((L & STEP) == 0 ? L + STEP : 16 + L)...);
  a = first;
}
template <int STEP>
SRLM_INLINE void exchange(v16u* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kPanel; ++i)
    if ((i & STEP) == 0)
      exchange<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<int, kPanel>());
}

// out[p, c, i] = x[16 p + i, c]: panels of 16 rows, turned. Rows and columns in multiples of 16.
SRLM_CLONES void turn_panels(const uint32_t* x, int64_t stride, int64_t rows, int64_t columns,
                             uint32_t* out) {
  for (int64_t p = 0; p < rows; p += kPanel)
    for (int64_t c = 0; c < columns; c += kPanel) {
      v16u tile[kPanel];
#pragma GCC unroll 16
      for (int i = 0; i < kPanel; ++i) tile[i] = load<v16u>(x + (p + i) * stride + c);
      exchange<1>(tile);
      exchange<2>(tile);
      exchange<4>(tile);
      exchange<8>(tile);
#pragma GCC unroll 16
      for (int i = 0; i < kPanel; ++i) store(out + p * columns + (c + i) * kPanel, tile[i]);
    }
}

// Pairs of rows in words: out[r, c] = x[2 r, c] and x[2 r + 1, c]. Columns in multiples of 16.
SRLM_CLONES void pair_rows(const uint16_t* x, int64_t stride, int64_t rows, int64_t columns,
                           uint32_t* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < columns; c += kWide) {
      const v16u lower = __builtin_convertvector(load<v16h>(x + r * stride + c), v16u);
      const v16u upper = __builtin_convertvector(load<v16h>(x + (r + 1) * stride + c), v16u);
      store(out + r / 2 * out_stride + c, lower | (upper << 16));
    }
}

// The right operand of a product whose depth are these rows.
const uint32_t* as_depth(const float* rows, int64_t, int64_t, Buffer&) {
  return reinterpret_cast<const uint32_t*>(rows);
}
const uint32_t* as_depth(const uint16_t* rows, int64_t count, int64_t width, Buffer& buffer) {
  uint32_t* out = buffer.room(count / 2 * width);
  pair_rows(rows, width, count, width, out, width);
  return out;
}

// values [width] * scale -> out in its dtype.
template <typename T>
SRLM_CLONES void put_row(const float* x, int64_t width, float scale, T* out) {
  int64_t d = 0;
  for (; d + kWide <= width; d += kWide) store16(out + d, load16(x + d) * scale);
  for (; d < width; ++d) narrow(x[d] * scale, out + d);
}

template <typename T>
SRLM_CLONES float dot_row(const T* a, const T* b, int64_t width) {
  v16f sum = {};
  int64_t d = 0;
  for (; d + kWide <= width; d += kWide) sum += load16(a + d) * load16(b + d);
  float total = sum_lanes(sum);
  for (; d < width; ++d) total += widen(a[d]) * widen(b[d]);
  return total;
}

struct Softmax {
  float total, lse;  // sum of the exponentials above the largest, log of their true sum
};

// scores -> weights exp(scale (score - largest)) of T in the same place. Columns a multiple of 16.
template <typename T>
SRLM_CLONES Softmax softmax_row(float* scores, int64_t columns, float scale) {
  v16f best = splat16(-kInf);
  for (int64_t j = 0; j < columns; j += kWide) best = max16(best, load16(scores + j));
  const float top = max_lanes(best) * scale;
  v16f sum = {};
  T* weights = reinterpret_cast<T*>(scores);
  for (int64_t j = 0; j < columns; j += kWide) {
    const v16f p = exp16(load16(scores + j) * scale - top);
    store16(weights + j, p);
    sum += p;
  }
  const float total = sum_lanes(sum);
  return {total, top + std::log(total)};
}

// One row of P^T and of dS^T, in place of scores and dP: zero but in the columns low .. high - 1.
template <typename T>
SRLM_CLONES void slope_row(float* scores, float* slopes, const float* lse, const float* delta,
                           int64_t columns, int64_t low, int64_t high, float scale) {
  T* p_out = reinterpret_cast<T*>(scores);
  T* ds_out = reinterpret_cast<T*>(slopes);
  for (int64_t c = 0; c < columns; c += kWide) {
    v16f p = {}, ds = {};
    if (c < high && c + kWide > low) {
      p = exp16(load16(scores + c) * scale - load16(lse + c));
      if (c < low || c + kWide > high) {
        const v16i lane = kLaneIds + static_cast<int32_t>(c);
        p = lane < static_cast<int32_t>(low) ? v16f{} : p;
        p = lane < static_cast<int32_t>(high) ? p : v16f{};
      }
      ds = p * ((load16(slopes + c) - load16(delta + c)) * scale);
    }
    store16(p_out + c, p);
    store16(ds_out + c, ds);
  }
}

struct Call {
  const AttentionShape& shape;
  HeadRows q, k, v;
  TileProduct product;
  int64_t window;

  Call(const AttentionShape& shape, HeadRows q, HeadRows k, HeadRows v)
      : shape(shape), q(q), k(k), v(v), product(shape.is_bf16),
        window(shape.window > 0 ? std::min(shape.window, shape.rows) : shape.rows) {}
  int64_t group() const { return shape.heads / shape.kv_heads; }
};

template <typename T>
const T* row_of(HeadRows x, int64_t row, int64_t head) {
  return static_cast<const T*>(x.data) + row * x.row_stride + head * x.head_stride;
}

// What is the same for all items of one dtype.
template <typename T>
struct Item {
  const Call& call;
  const Tree& tree;
  int64_t kv_head;

  int64_t width() const { return round_up(call.shape.width, kBlock<T>); }
  int64_t depth() const { return width() / kPerWord<T>; }
  int64_t rows() const { return tree.padded; }
  int64_t first_head() const { return kv_head * call.group(); }

  // `count` rows of a head from `row` on, and zeros up to `padded` rows.
  void take(HeadRows x, int64_t row, int64_t head, int64_t count, int64_t padded, T* out) const {
    const int64_t own = call.shape.width;
    std::memset(static_cast<void*>(out + count * width()), 0,
                (padded - count) * width() * sizeof(T));
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(out + r * width(), row_of<T>(x, row + r, head), own * sizeof(T));
      std::fill(out + r * width() + own, out + (r + 1) * width(), T{});
    }
  }
  T* take(HeadRows x, int64_t head, Buffer& buffer) const {
    T* out = buffer.room<T>(rows() * width());
    for (const Span& span : tree.spans)
      take(x, span.start, head, span.length, span.padded, out + span.place * width());
    return out;
  }
  // The right operand of a product whose columns are these rows: [rows / 16, depth, 16].
  const uint32_t* as_columns(const T* x, int64_t count, Buffer& buffer) const {
    uint32_t* out = buffer.room(count * depth());
    turn_panels(reinterpret_cast<const uint32_t*>(x), depth(), count, depth(), out);
    return out;
  }
  // Left rows and right columns over the head width -> c.
  void multiply_width(int64_t count, const T* a, const uint32_t* columns, int64_t first,
                      int64_t number, float* c, int64_t c_row) const {
    const TileShape shape{depth(), depth(), 1, kPanel, kPanel * depth(), c_row};
    call.product(count, shape, reinterpret_cast<const uint32_t*>(a), columns + first * depth(),
                 number, c, false);
  }
  // Left rows [count, number] of stride a_row words times rows `first` and on of an operand in the
  // form `as_depth`, added to c [count, width].
  void multiply_rows(int64_t count, const void* a, int64_t a_row, const uint32_t* rows,
                     int64_t first, int64_t number, float* c, bool add) const {
    const TileShape shape{number / kPerWord<T>, a_row, 1, width(), kPanel, width()};
    call.product(count, shape, static_cast<const uint32_t*>(a),
                 rows + first / kPerWord<T> * width(), width(), c, add);
  }
};

// Forward

struct ForwardBuffers {
  Buffer rows, key_columns, value_pairs, queries, scores, sums;
};

template <typename T>
struct Forward : Item<T> {
  using Item<T>::call;
  using Item<T>::tree;
  using Item<T>::width;
  ForwardBuffers& buffers;
  T* out;
  float* lse;
  const uint32_t *keys = nullptr, *values = nullptr;

  void run() {
    keys = this->as_columns(this->take(call.k, this->kv_head, buffers.rows), this->rows(),
                            buffers.key_columns);
    values = as_depth(this->take(call.v, this->kv_head, buffers.rows), this->rows(), width(),
                      buffers.value_pairs);
    for (const Span& span : tree.spans)
      for (int64_t first = 0; first < span.length; first += kQueryRows)
        for (int64_t h = 0; h < call.group(); ++h) attend(span, this->first_head() + h, first);
  }

  // Rows first .. of a span. Their scores: keys of the parent from `far` on, own ones from `near`.
  void attend(const Span& span, int64_t head, int64_t first) {
    const Span& root = tree.spans[0];
    const bool is_child = &span != &root;
    const int64_t before = is_child ? root.length : 0, window = call.window;
    const int64_t count = std::min(kQueryRows, span.length - first);
    const int64_t padded = round_up(count, kPanel);
    const auto block_of = [](int64_t n) { return std::max<int64_t>(n, 0) / kBlock<T> * kBlock<T>; };
    const int64_t far = std::min(block_of(before + first + 1 - window), is_child ? root.padded : 0);
    const int64_t near = block_of(first + 1 - window);
    const int64_t of_parent = (is_child ? root.padded : 0) - far;
    const int64_t own = round_up(first + count, kBlock<T>) - near;
    const int64_t columns = of_parent + own, stride = columns + kApart;

    T* queries = buffers.queries.room<T>(padded * width());
    this->take(call.q, span.start + first, head, count, padded, queries);
    float* scores = buffers.scores.room<float>(padded * stride);
    if (of_parent > 0) this->multiply_width(padded, queries, keys, far, of_parent, scores, stride);
    this->multiply_width(padded, queries, keys, span.place + near, own, scores + of_parent, stride);
    Softmax found[kQueryRows];
    for (int64_t r = 0; r < count; ++r) {
      float* row = scores + r * stride;
      const int64_t place = first + r, lowest = before + place + 1 - window;
      const auto hide = [&](int64_t from, int64_t to) {
        if (from < to) std::fill(row + from, row + to, -kInf);
      };
      hide(0, std::min(lowest - far, of_parent));
      hide(std::max<int64_t>(before - far, 0), of_parent);
      hide(of_parent, of_parent + lowest - before - near);
      hide(of_parent + place + 1 - near, columns);
      found[r] = softmax_row<T>(row, columns, call.shape.scale);
    }
    float* sums = buffers.sums.room<float>(padded * width());
    if (of_parent > 0)
      this->multiply_rows(padded, scores, stride, values, far, of_parent, sums, false);
    this->multiply_rows(padded, scores + of_parent / kPerWord<T>, stride, values,
                        span.place + near, own, sums, of_parent > 0);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = span.start + first + r;
      put_row(sums + r * width(), call.shape.width, 1.0f / found[r].total,
              out + (row * call.shape.heads + head) * call.shape.width);
      lse[head * call.shape.rows + row] = found[r].lse;
    }
  }
};

// Backward

struct BackwardBuffers {
  Buffer keys, values, key_pairs, turned_keys, queries, query_pairs, query_columns, grads,
      grad_pairs, grad_columns, lse, delta, scores, slopes, slope_pairs, dq, turned_dq, dk, dv;
};

template <typename T>
struct Backward : Item<T> {
  using Item<T>::call;
  using Item<T>::tree;
  using Item<T>::width;
  using Item<T>::rows;
  BackwardBuffers& buffers;
  HeadRows out, grad;
  const float* lse_rows;
  T *dq, *dk, *dv;

  // Of the item: rows of keys and values, blocks of keys turned [rows / block, width, 16].
  const T *keys = nullptr, *values = nullptr;
  const uint32_t* turned_keys = nullptr;
  float *key_sums = nullptr, *value_sums = nullptr;
  // Of a head: queries and gradients as rows of a depth and as columns.
  const uint32_t *queries = nullptr, *query_columns = nullptr;
  const uint32_t *grads = nullptr, *grad_columns = nullptr;
  float *lse = nullptr, *delta = nullptr, *query_sums = nullptr;

  static constexpr int64_t kStride = kQueryChunk + kApart;
  int64_t query_stride() const { return rows() + kApart; }

  void run() {
    keys = this->take(call.k, this->kv_head, buffers.keys);
    values = this->take(call.v, this->kv_head, buffers.values);
    const uint32_t* pairs = as_depth(keys, rows(), width(), buffers.key_pairs);
    uint32_t* turned = buffers.turned_keys.room(rows() / kPerWord<T> * width());
    turn_panels(pairs, width(), rows() / kPerWord<T>, width(), turned);
    turned_keys = turned;
    key_sums = buffers.dk.zeros(rows() * width());
    value_sums = buffers.dv.zeros(rows() * width());
    for (int64_t h = 0; h < call.group(); ++h) differentiate(this->first_head() + h);
    put(key_sums, dk);
    put(value_sums, dv);
  }

  void differentiate(int64_t head) {
    const T* own = this->take(call.q, head, buffers.queries);
    queries = as_depth(own, rows(), width(), buffers.query_pairs);
    query_columns = this->as_columns(own, rows(), buffers.query_columns);
    own = this->take(grad, head, buffers.grads);
    grads = as_depth(own, rows(), width(), buffers.grad_pairs);
    grad_columns = this->as_columns(own, rows(), buffers.grad_columns);
    take_facts(head);
    query_sums = buffers.dq.zeros(width() * query_stride());
    for (const Span& span : tree.spans)
      for (int64_t key = 0; key < span.length; key += kBlock<T>) {
        meet(span, key, span);
        if (&span == &tree.spans[0])
          for (size_t s = 1; s < tree.spans.size(); ++s) meet(span, key, tree.spans[s]);
      }
    put_queries(head);
  }

  // lse and delta of each row.
  void take_facts(int64_t head) {
    lse = buffers.lse.zeros(rows());
    delta = buffers.delta.zeros(rows());
    for (const Span& span : tree.spans)
      for (int64_t r = 0; r < span.length; ++r) {
        const int64_t row = span.start + r;
        lse[span.place + r] = lse_rows[head * call.shape.rows + row];
        delta[span.place + r] =
            dot_row(row_of<T>(grad, row, head), row_of<T>(out, row, head), call.shape.width);
      }
  }

  // A block of keys of one span and the queries of a span that see it.
  void meet(const Span& key_span, int64_t key, const Span& span) {
    const int64_t before = &key_span == &span ? 0 : key_span.length;
    const int64_t last = std::min(key + kBlock<T>, key_span.length) - 1;
    const int64_t end = std::min(span.length, last + call.window - before);
    for (int64_t c = before > 0 ? 0 : key; c < end; c += kQueryChunk)
      meet(key_span, key, span, before, c, std::min(kQueryChunk, span.padded - c));
  }

  void meet(const Span& key_span, int64_t key, const Span& span, int64_t before, int64_t first,
            int64_t columns) {
    const int64_t place = key_span.place + key, column = span.place + first;
    float* scores = buffers.scores.room<float>(kBlock<T> * kStride);
    float* slopes = buffers.slopes.room<float>(kBlock<T> * kStride);
    this->multiply_width(kBlock<T>, keys + place * width(), query_columns, column, columns, scores,
                         kStride);
    this->multiply_width(kBlock<T>, values + place * width(), grad_columns, column, columns, slopes,
                         kStride);
    for (int64_t j = 0; j < kBlock<T>; ++j) {
      const int64_t low = before > 0 ? 0 : key + j;
      const int64_t high = std::min(span.length, key + j + call.window - before);
      slope_row<T>(scores + j * kStride, slopes + j * kStride, lse + column, delta + column,
                   columns, low - first, high - first, call.shape.scale);
    }
    this->multiply_rows(kBlock<T>, scores, kStride, grads, column, columns,
                        value_sums + place * width(), true);
    this->multiply_rows(kBlock<T>, slopes, kStride, queries, column, columns,
                        key_sums + place * width(), true);
    const TileShape shape{kPanel, kPanel, 1, kStride, kPanel, query_stride()};
    call.product(width(), shape, turned_keys + place / kPerWord<T> * width(),
                 as_words(slopes, columns), columns, query_sums + column, true);
  }

  // dS^T as the right operand of a product whose depth are its rows.
  const uint32_t* as_words(const float* slopes, int64_t columns) {
    if constexpr (sizeof(T) == 4) {
      return reinterpret_cast<const uint32_t*>(slopes);
    } else {
      uint32_t* out = buffers.slope_pairs.room(kBlock<T> / 2 * kStride);
      pair_rows(reinterpret_cast<const T*>(slopes), 2 * kStride, kBlock<T>, columns, out, kStride);
      return out;
    }
  }

  void put(const float* sums, T* to) {
    const int64_t own = call.shape.width;
    for (const Span& span : tree.spans)
      for (int64_t r = 0; r < span.length; ++r)
        put_row(sums + (span.place + r) * width(), own, 1.0f,
                to + ((span.start + r) * call.shape.kv_heads + this->kv_head) * own);
  }

  void put_queries(int64_t head) {
    const int64_t own = call.shape.width;
    uint32_t* turned = buffers.turned_dq.room(rows() * width());
    turn_panels(reinterpret_cast<const uint32_t*>(query_sums), query_stride(), width(), rows(),
                turned);
    const float* panels = reinterpret_cast<const float*>(turned);
    for (const Span& span : tree.spans)
      for (int64_t r = 0; r < span.length; ++r)
        for (int64_t d = 0; d < own; d += kPanel)
          put_row(panels + d * rows() + (span.place + r) * kPanel, std::min<int64_t>(kPanel, own - d),
                  1.0f, dq + ((span.start + r) * call.shape.heads + head) * own + d);
  }
};

template <typename T>
void forward(const Call& call, const Segmentation& segments, void* out, float* lse) {
  const std::vector<Tree> trees = trees_of(segments, kBlock<T>);
#pragma omp parallel
  {
    static thread_local ForwardBuffers buffers;
    call.product.begin();
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (size_t t = 0; t < trees.size(); ++t)
      for (int64_t g = 0; g < call.shape.kv_heads; ++g)
        Forward<T>{{call, trees[t], g}, buffers, static_cast<T*>(out), lse}.run();
    call.product.end();
  }
}

template <typename T>
void backward(const Call& call, const Segmentation& segments, HeadRows out, HeadRows grad,
              const float* lse, void* dq, void* dk, void* dv) {
  const std::vector<Tree> trees = trees_of(segments, kBlock<T>);
#pragma omp parallel
  {
    static thread_local BackwardBuffers buffers;
    call.product.begin();
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (size_t t = 0; t < trees.size(); ++t)
      for (int64_t g = 0; g < call.shape.kv_heads; ++g)
        Backward<T>{{call, trees[t], g}, buffers,
                    out,                 grad,
                    lse,                 static_cast<T*>(dq),
                    static_cast<T*>(dk), static_cast<T*>(dv)}
            .run();
    call.product.end();
  }
}

}  // namespace

void segment_attention(const AttentionShape& shape, const Segmentation& segments, HeadRows q,
                       HeadRows k, HeadRows v, void* out, float* lse) {
  const Call call(shape, q, k, v);
  if (shape.is_bf16) return forward<uint16_t>(call, segments, out, lse);
  forward<float>(call, segments, out, lse);
}

void segment_attention_backward(const AttentionShape& shape, const Segmentation& segments,
                                HeadRows q, HeadRows k, HeadRows v, HeadRows out, HeadRows grad,
                                const float* lse, void* dq, void* dk, void* dv) {
  const Call call(shape, q, k, v);
  if (shape.is_bf16)
    return backward<uint16_t>(call, segments, out, grad, lse, dq, dk, dv);
  backward<float>(call, segments, out, grad, lse, dq, dk, dv);
}

}  // namespace srlm
