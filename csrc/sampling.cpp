// One row of logits to a sampled token and its raw log-probability.
//
// Order: repetition penalty, forbidden tokens, temperature, top-k, top-p among those, min-p. Tokens
// rank by probability, equal ones by id. A draw inverts the cumulative distribution of the kept
// tokens, in order of id, at one uniform number of the counter-based generator: no noise per token
// and no full sort. The row is read twice, once for its maximum and once for all exponentials; what
// follows sees only the tokens that can be kept. Sums are in double.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "hash.hpp"
#include "isa.hpp"
#include "kernels.hpp"
#include "simd.hpp"

#if defined(SRLM_X86)
#include <immintrin.h>
#endif

namespace srlm {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int kBuckets = 512;     // 16 per factor of two, down to 2^-32 of the largest probability
constexpr int kBucketShift = 19;  // leaves 4 bits of the significand
typedef double v16d __attribute__((vector_size(128)));

struct Ranked {
  float weight;
  int32_t id;
  bool operator<(const Ranked& other) const {
    return weight != other.weight ? weight > other.weight : id < other.id;
  }
};

// Tokens in order of id, with their weights; the arrays have room for 16 more.
struct Candidates {
  std::vector<float> weights;
  std::vector<int32_t> ids;
  int64_t count = 0;
  double mass = 0.0;

  void reserve(int64_t most) {
    if (static_cast<int64_t>(ids.size()) >= most + kWide) return;
    weights.resize(most + kWide);
    ids.resize(most + kWide);
  }
};

struct Scratch {
  std::vector<float> scores, weights;
  std::vector<double> blocks;
  Candidates kept, tighter;
  std::vector<Ranked> crossing;
  int32_t counts[kBuckets];
  double sums[kBuckets];
};

// The last token kept in ranking order.
struct Cut {
  float weight = 0.0f;
  int32_t id = std::numeric_limits<int32_t>::max();
};

SRLM_INLINE double sum_doubles(v16d v) {
  double x[kWide];
  store(x, v);
  for (int width = kWide / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
}

// Sixteen logits from i on; beyond the row -inf.
SRLM_INLINE v16f load_row(const float* x, int64_t i, int64_t width) {
  if (i + kWide <= width) return load16(x + i);
  float tail[kWide];
  for (int j = 0; j < kWide; ++j) tail[j] = i + j < width ? x[i + j] : kLowest;
  return load16(tail);
}

// The largest of a row; NaN if one is NaN or +inf, or all are -inf.
SRLM_CLONES
float largest(const float* x, int64_t width) {
  v16f best = splat16(kLowest);
  v16i bad = {};
  for (int64_t i = 0; i < width; i += kWide) {
    const v16f v = load_row(x, i, width);
    best = max16(best, v);
    bad |= ~(v <= FLT_MAX);
  }
  int32_t any[kWide], wrong = 0;
  store(any, bad);
  for (int lane = 0; lane < kWide; ++lane) wrong |= any[lane];
  const float top = max_lanes(best);
  return wrong == 0 && top >= -FLT_MAX ? top : std::numeric_limits<float>::quiet_NaN();
}

// A row as it is, and as it is drawn from.
struct Row {
  const float *logits, *scores;
  int64_t width;
  float top, score_top, inverse_temperature;
};

struct Totals {
  double raw, tempered;
};

// weights[i] = exp((score - largest) / temperature), and the sums of these and of the raw row's.
template <bool TEMPERED>
SRLM_INLINE Totals exponentials(const Row& row, float* weights) {
  v16d raw = {}, tempered = {};
  for (int64_t start = 0; start < row.width; start += 4 * kWide) {
    v16f raw_sum = {}, sum = {};
    const int64_t stop = std::min(start + 4 * kWide, row.width);
    for (int64_t i = start; i < stop; i += kWide) {
      v16f w = exp16(load_row(row.logits, i, row.width) - row.top);
      raw_sum += w;
      if (TEMPERED) {
        const v16f score = load_row(row.scores, i, row.width);
        w = exp16((score - row.score_top) * row.inverse_temperature);
        sum += w;
      }
      store16(weights + i, w);
    }
    raw += __builtin_convertvector(raw_sum, v16d);
    if (TEMPERED) tempered += __builtin_convertvector(sum, v16d);
  }
  const double all = sum_doubles(raw);
  return {all, TEMPERED ? sum_doubles(tempered) : all};
}

SRLM_CLONES
Totals weigh(const Row& row, float* weights) {
  const bool same = row.logits == row.scores && row.inverse_temperature == 1.0f;
  return same ? exponentials<false>(row, weights) : exponentials<true>(row, weights);
}

// Those of weights [count] that are at least `threshold`, with their ids (null: their places).
void select_generic(const float* weights, const int32_t* ids, int64_t count, float threshold,
                    Candidates& out) {
  out.count = 0;
  out.mass = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const bool keep = weights[i] >= threshold;
    out.weights[out.count] = weights[i];
    out.ids[out.count] = ids == nullptr ? static_cast<int32_t>(i) : ids[i];
    out.mass += keep ? static_cast<double>(weights[i]) : 0.0;
    out.count += keep;
  }
}

#if defined(SRLM_X86)
SRLM_AVX512 void select_avx512(const float* weights, const int32_t* ids, int64_t count,
                               float threshold, Candidates& out) {
  const __m512 least = _mm512_set1_ps(threshold);
  __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += kWide) {
    const int64_t left = count - i;
    const __mmask16 real = left >= kWide ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
    const __m512 w = _mm512_maskz_loadu_ps(real, weights + i);
    const __mmask16 keep = _mm512_mask_cmp_ps_mask(real, w, least, _CMP_GE_OQ);
    const __m512i own = ids == nullptr ? places : _mm512_maskz_loadu_epi32(real, ids + i);
    places = _mm512_add_epi32(places, _mm512_set1_epi32(kWide));
    if (keep == 0) continue;
    _mm512_storeu_ps(out.weights.data() + found, _mm512_maskz_compress_ps(keep, w));
    _mm512_storeu_si512(out.ids.data() + found, _mm512_maskz_compress_epi32(keep, own));
    const __m512 kept = _mm512_maskz_mov_ps(keep, w);
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(kept)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(kept, 1)));
    found += __builtin_popcount(keep);
  }
  out.count = found;
  out.mass = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}
#endif

void select(const float* weights, const int32_t* ids, int64_t count, float threshold,
            Candidates& out) {
  out.reserve(count);
#if defined(SRLM_X86)
  if (isa() >= Isa::kAvx512) return select_avx512(weights, ids, count, threshold, out);
#endif
  select_generic(weights, ids, count, threshold, out);
}

// What top-p can keep. Tokens below (1 - p) total / V together weigh less than 1 - p, so the one
// that crosses is not among them; half of that leaves room for rounding. And while what is left
// still reaches p by itself, the rest cannot matter.
void prune(float top_p, double target, double total, int64_t vocab, const float* weights,
           Scratch& scratch) {
  const double beyond = (1.0 - static_cast<double>(top_p)) * total;
  float threshold = top_p > 0.9999f ? 0.0f : static_cast<float>(0.5 * beyond / vocab);
  select(weights, nullptr, vocab, std::max(threshold, FLT_MIN), scratch.kept);
  for (; threshold > 0.0f; std::swap(scratch.kept, scratch.tighter)) {
    threshold *= 4.0f;
    const Candidates& kept = scratch.kept;
    select(kept.weights.data(), kept.ids.data(), kept.count, threshold, scratch.tighter);
    if (scratch.tighter.mass < target) return;
  }
}

SRLM_INLINE int bucket_of(float weight) {
  const float one = 1.0f;
  return std::min((load<int32_t>(&one) - load<int32_t>(&weight)) >> kBucketShift, kBuckets - 1);
}

void fill_buckets(const Candidates& tokens, Scratch& scratch) {
  std::fill_n(scratch.counts, kBuckets, 0);
  std::fill_n(scratch.sums, kBuckets, 0.0);
  for (int64_t i = 0; i < tokens.count; ++i) {
    const int b = bucket_of(tokens.weights[i]);
    ++scratch.counts[b];
    scratch.sums[b] += tokens.weights[i];
  }
}

// The members of one bucket in ranking order.
void rank_bucket(const Candidates& tokens, int bucket, std::vector<Ranked>& out) {
  out.clear();
  for (int64_t i = 0; i < tokens.count; ++i)
    if (bucket_of(tokens.weights[i]) == bucket) out.push_back({tokens.weights[i], tokens.ids[i]});
  std::sort(out.begin(), out.end());
}

// Only the one bucket in which the count or the sum is reached gets sorted.
Cut find_cut(const Candidates& tokens, double total, int32_t top_k, float top_p,
             Scratch& scratch) {
  Cut cut;
  fill_buckets(tokens, scratch);
  int last = kBuckets - 1;
  int64_t within = tokens.count;  // how many of the last bucket may stay
  if (top_k > 0 && top_k < tokens.count) {
    int64_t left = top_k;
    total = 0.0;
    for (last = 0; left > scratch.counts[last]; ++last) {
      left -= scratch.counts[last];
      total += scratch.sums[last];
    }
    within = left;
    rank_bucket(tokens, last, scratch.crossing);
    for (int64_t i = 0; i < within; ++i) total += scratch.crossing[i].weight;
    cut = {scratch.crossing[within - 1].weight, scratch.crossing[within - 1].id};
  }
  if (top_p >= 1.0f) return cut;
  const double target = static_cast<double>(top_p) * total;
  double sum = 0.0;
  int bucket = 0;
  while (bucket < last && sum + scratch.sums[bucket] < target) sum += scratch.sums[bucket++];
  rank_bucket(tokens, bucket, scratch.crossing);
  const int64_t count = static_cast<int64_t>(scratch.crossing.size());
  const int64_t members = bucket == last ? std::min(within, count) : count;
  for (int64_t i = 0; i < members; ++i) {  // the token that crosses the target stays
    cut = {scratch.crossing[i].weight, scratch.crossing[i].id};
    sum += scratch.crossing[i].weight;
    if (sum >= target) break;
  }
  return cut;
}

// Drops what ranks after the cut or weighs less than the floor.
void apply_cut(const Cut& cut, float floor, Candidates& tokens) {
  int64_t kept = 0;
  double mass = 0.0;
  for (int64_t i = 0; i < tokens.count; ++i) {
    const float w = tokens.weights[i];
    const bool early = w > cut.weight || (w == cut.weight && tokens.ids[i] <= cut.id);
    if (!early || w < floor) continue;
    tokens.weights[kept] = w;
    tokens.ids[kept++] = tokens.ids[i];
    mass += w;
  }
  tokens.count = kept;
  tokens.mass = mass;
}

// The first token whose cumulative weight exceeds uniform * total; rounding may leave the target
// just beyond the last one.
int32_t draw(const Candidates& tokens, double uniform) {
  double sum = 0.0;
  for (int64_t i = 0; i < tokens.count; ++i) {
    sum += tokens.weights[i];
    if (sum > uniform * tokens.mass) return tokens.ids[i];
  }
  return tokens.ids[tokens.count - 1];
}

// The sum of every 16 weights.
SRLM_CLONES
double block_sums(const float* weights, int64_t padded, double* blocks) {
  double total = 0.0;
  for (int64_t i = 0; i < padded; i += kWide)
    total += blocks[i / kWide] = static_cast<double>(sum_lanes(load16(weights + i)));
  return total;
}

// The same among all tokens.
int32_t draw_any(const float* weights, int64_t padded, double uniform, double* blocks) {
  const double target = uniform * block_sums(weights, padded, blocks);
  double sum = 0.0;
  int64_t last = 0;
  for (int64_t block = 0; block < padded / kWide; ++block) {
    if (blocks[block] == 0.0) continue;
    last = block;
    if (sum + blocks[block] > target) break;
    sum += blocks[block];
  }
  int64_t token = last * kWide;
  for (int64_t i = last * kWide; i < (last + 1) * kWide; ++i) {
    if (weights[i] == 0.0f) continue;
    token = i;
    sum += weights[i];
    if (sum > target) break;
  }
  return static_cast<int32_t>(token);
}

// scores = logits where the mask's bit is set, -inf elsewhere.
SRLM_CLONES
void mask_row(const float* logits, int64_t width, const uint32_t* mask, float* scores) {
  const v16u bits = {1u << 0, 1u << 1, 1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
                     1u << 8, 1u << 9, 1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15};
  for (int64_t i = 0; i < width; i += kWide) {
    const v16u allowed = bits & (mask[i / 32] >> i % 32);
    const v16f kept = allowed != 0u ? load_row(logits, i, width) : splat16(kLowest);
    if (i + kWide <= width) {
      store16(scores + i, kept);
      continue;
    }
    float tail[kWide];
    store16(tail, kept);
    std::copy_n(tail, width - i, scores + i);
  }
}

// The row that is drawn from: the logits themselves, or a changed copy.
const float* scores_of(const SamplingBatch& batch, int64_t n, const float* logits,
                       std::vector<float>& scores) {
  const int32_t *seen = batch.history_starts + n, *banned = batch.banned_starts + n;
  const int32_t mask = batch.masks == nullptr ? -1 : batch.mask_rows[n];
  const float penalty = batch.repetition_penalty[n];
  if (mask < 0 && banned[0] == banned[1] && (seen[0] == seen[1] || penalty == 1.0f)) return logits;
  scores.resize(batch.vocab);
  if (mask < 0)
    std::copy_n(logits, batch.vocab, scores.begin());
  else
    mask_row(logits, batch.vocab, batch.masks + mask * ((batch.vocab + 31) / 32), scores.data());
  for (int32_t i = seen[0]; i < seen[1]; ++i) {
    const int32_t token = batch.history[i];  // from the raw logit, so a repeat counts once
    if (scores[token] == kLowest) continue;
    scores[token] = logits[token] > 0.0f ? logits[token] / penalty : logits[token] * penalty;
  }
  for (int32_t i = banned[0]; i < banned[1]; ++i) scores[batch.banned[i]] = kLowest;
  return scores.data();
}

int32_t choose(const SamplingBatch& batch, int64_t n, const Row& row, double total,
               Scratch& scratch) {
  const int32_t top_k = batch.top_k[n];
  const float top_p = batch.top_p[n], floor = batch.min_p[n];
  const float* weights = scratch.weights.data();
  const double uniform =
      noise_uniform(batch.noise_keys[n], static_cast<uint64_t>(batch.positions[n]));
  const bool by_rank = top_k > 0 && top_k < row.width;
  if (!by_rank && top_p >= 1.0f && floor <= 0.0f)
    return draw_any(weights, static_cast<int64_t>(scratch.weights.size()), uniform,
                    scratch.blocks.data());
  Cut cut;
  if (top_p < 1.0f && !by_rank)
    prune(top_p, static_cast<double>(top_p) * total, total, row.width, weights, scratch);
  else
    select(weights, nullptr, row.width, std::max(by_rank ? 0.0f : floor, FLT_MIN), scratch.kept);
  if (by_rank || top_p < 1.0f) cut = find_cut(scratch.kept, total, top_k, top_p, scratch);
  apply_cut(cut, floor, scratch.kept);
  return draw(scratch.kept, uniform);
}

void sample_row(const SamplingBatch& batch, int64_t n, Scratch& scratch, int32_t* token,
                float* logprob) {
  *token = 0;
  *logprob = std::numeric_limits<float>::quiet_NaN();
  const float* logits = batch.logits + batch.rows[n] * batch.vocab;
  const float* scores = scores_of(batch, n, logits, scratch.scores);
  const float temperature = batch.temperature[n];
  Row row{logits, scores, batch.vocab, largest(logits, batch.vocab), 0.0f, 1.0f};
  row.score_top = scores == logits ? row.top : largest(scores, batch.vocab);
  if (row.top != row.top || row.score_top != row.score_top) return;
  if (temperature > 0.0f) row.inverse_temperature = 1.0f / temperature;
  const int64_t padded = (batch.vocab + kWide - 1) / kWide * kWide;
  scratch.weights.resize(padded);
  scratch.blocks.resize(padded / kWide);
  const Totals totals = weigh(row, scratch.weights.data());
  if (batch.forced[n] >= 0) {
    *token = batch.forced[n];
  } else if (temperature > 0.0f) {
    *token = choose(batch, n, row, totals.tempered, scratch);
  } else {
    *token = static_cast<int32_t>(std::find(scores, scores + row.width, row.score_top) - scores);
  }
  *logprob = static_cast<float>(static_cast<double>(logits[*token]) - row.top -
                                std::log(totals.raw));
}

}  // namespace

void sample(const SamplingBatch& batch, int32_t* tokens, float* logprobs) {
#pragma omp parallel if (batch.num_samples * batch.vocab > 16384)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 4)
    for (int64_t n = 0; n < batch.num_samples; ++n)
      sample_row(batch, n, scratch, tokens + n, logprobs + n);
  }
}

}  // namespace srlm
