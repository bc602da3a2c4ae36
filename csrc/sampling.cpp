// One pass from logits to a sampled token and its raw log-probability.
//
// Order: repetition penalty, forbidden tokens, temperature, top-k, top-p among those, min-p. Tokens
// rank by probability, equal ones by id. A draw inverts the cumulative distribution of the kept
// tokens, in order of id, at one uniform number of the counter-based generator: no noise per token
// and no full sort. Sums are in double.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "hash.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace srlm {
namespace {

constexpr int kBuckets = 512;     // 16 per factor of two, down to 2^-32 of the largest probability
constexpr int kBucketShift = 19;  // leaves 4 bits of the significand

struct Ranked {
  float weight;
  int32_t id;
  bool operator<(const Ranked& other) const {
    return weight != other.weight ? weight > other.weight : id < other.id;
  }
};

struct Scratch {
  std::vector<float> scores, weights;
  std::vector<double> blocks;
  std::vector<Ranked> crossing;
  int32_t counts[kBuckets];
  double sums[kBuckets];
};

// The last token kept in ranking order, and the floor of min-p.
struct Cut {
  float weight = 0.0f;
  int32_t id = std::numeric_limits<int32_t>::max();
  float floor = 0.0f;
};

struct Mass {
  float top;
  double total;
  bool finite;
};

SRLM_INLINE float largest(const float* x, int64_t padded, bool& finite) {
  v8f best = splat(-std::numeric_limits<float>::infinity());
  v8i bad = best > best;
  for (int64_t i = 0; i < padded; i += kLanes) {
    const v8f v = load8(x + i);
    best = max8(best, v);
    bad |= ~(v <= splat(FLT_MAX));  // NaN or +inf
  }
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= bad[lane];
  const float top = max_lanes(best);
  finite = any == 0 && top >= -FLT_MAX;
  return top;
}

// weights[i] = exp((x[i] - max) * inverse_temperature), 0 beyond the vocabulary; padded to 16.
SRLM_CLONES
Mass weigh(const float* x, int64_t padded, float inverse_temperature, float* weights) {
  Mass mass{0.0f, 0.0, false};
  mass.top = largest(x, padded, mass.finite);
  const v8f top = splat(mass.top), factor = splat(inverse_temperature);
  for (int64_t start = 0; start < padded; start += 64) {
    v8f sum = splat(0.0f);
    const int64_t stop = std::min(start + 64, padded);
    for (int64_t i = start; i < stop; i += kLanes) {
      const v8f w = exp8((load8(x + i) - top) * factor);
      store8(weights + i, w);
      sum += w;
    }
    mass.total += static_cast<double>(sum_lanes(sum));
  }
  return mass;
}

SRLM_INLINE int bucket_of(float weight) {
  int32_t one_bits, bits;
  const float one = 1.0f;
  std::memcpy(&one_bits, &one, 4);
  std::memcpy(&bits, &weight, 4);
  return std::min((one_bits - bits) >> kBucketShift, kBuckets - 1);
}

void fill_buckets(const float* weights, int64_t vocab, Scratch& scratch) {
  std::fill_n(scratch.counts, kBuckets, 0);
  std::fill_n(scratch.sums, kBuckets, 0.0);
  for (int64_t i = 0; i < vocab; ++i) {
    const int b = bucket_of(weights[i]);
    ++scratch.counts[b];
    scratch.sums[b] += weights[i];
  }
}

// The members of one bucket in ranking order.
void rank_bucket(const float* weights, int64_t vocab, int bucket, std::vector<Ranked>& out) {
  out.clear();
  for (int64_t i = 0; i < vocab; ++i)
    if (bucket_of(weights[i]) == bucket) out.push_back({weights[i], static_cast<int32_t>(i)});
  std::sort(out.begin(), out.end());
}

// Only the one bucket in which the count or the sum is reached gets sorted.
Cut find_cut(const float* weights, int64_t vocab, double total, int32_t top_k, float top_p,
             Scratch& scratch) {
  Cut cut;
  fill_buckets(weights, vocab, scratch);
  int last = kBuckets - 1;
  int64_t within = vocab;  // how many of the last bucket may stay
  if (top_k > 0 && top_k < vocab) {
    int64_t left = top_k;
    total = 0.0;
    for (last = 0; left > scratch.counts[last]; ++last) {
      left -= scratch.counts[last];
      total += scratch.sums[last];
    }
    within = left;
    rank_bucket(weights, vocab, last, scratch.crossing);
    for (int64_t i = 0; i < within; ++i) total += scratch.crossing[i].weight;
    cut.weight = scratch.crossing[within - 1].weight;
    cut.id = scratch.crossing[within - 1].id;
  }
  if (top_p >= 1.0f) return cut;
  const double target = static_cast<double>(top_p) * total;
  double sum = 0.0;
  int bucket = 0;
  while (bucket < last && sum + scratch.sums[bucket] < target) sum += scratch.sums[bucket++];
  rank_bucket(weights, vocab, bucket, scratch.crossing);
  const int64_t count = static_cast<int64_t>(scratch.crossing.size());
  const int64_t members = bucket == last ? std::min(within, count) : count;
  for (int64_t i = 0; i < members; ++i) {  // the token that crosses the target stays
    cut.weight = scratch.crossing[i].weight;
    cut.id = scratch.crossing[i].id;
    sum += scratch.crossing[i].weight;
    if (sum >= target) break;
  }
  return cut;
}

// Zeroes what is cut away, and leaves the sum of every 16 weights in `blocks`.
SRLM_CLONES
double apply_cut(float* weights, int64_t padded, const Cut& cut, double* blocks) {
  double total = 0.0;
  const v8i lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int64_t start = 0; start < padded; start += 2 * kLanes) {
    v8f sum = splat(0.0f);
    for (int64_t i = start; i < start + 2 * kLanes; i += kLanes) {
      const v8f w = load8(weights + i);
      const v8i early = lanes + static_cast<int32_t>(i) <= cut.id;
      const v8i keep =
          ((w > splat(cut.weight)) | ((w == splat(cut.weight)) & early)) & (w >= splat(cut.floor));
      const v8f kept = keep ? w : splat(0.0f);
      store8(weights + i, kept);
      sum += kept;
    }
    blocks[start / (2 * kLanes)] = static_cast<double>(sum_lanes(sum));
    total += blocks[start / (2 * kLanes)];
  }
  return total;
}

// The first token whose cumulative weight exceeds uniform * total.
int32_t draw(const float* weights, int64_t padded, const double* blocks, double target) {
  double sum = 0.0;
  int64_t block = 0, last = 0;
  for (; block < padded / (2 * kLanes); ++block) {
    if (blocks[block] == 0.0) continue;
    last = block;
    if (sum + blocks[block] > target) break;
    sum += blocks[block];
  }
  int64_t token = last * 2 * kLanes;
  for (int64_t i = last * 2 * kLanes; i < (last + 1) * 2 * kLanes; ++i) {
    if (weights[i] == 0.0f) continue;
    token = i;  // rounding may leave the target just beyond the block: then its last token
    sum += weights[i];
    if (sum > target) break;
  }
  return static_cast<int32_t>(token);
}

void penalise(const SamplingBatch& batch, int64_t n, std::vector<float>& scores,
              const float* logits) {
  const float penalty = batch.repetition_penalty[n];
  for (int32_t i = batch.history_starts[n]; i < batch.history_starts[n + 1]; ++i) {
    const int32_t token = batch.history[i];  // from the raw logit, so a repeat counts once
    scores[token] = logits[token] > 0.0f ? logits[token] / penalty : logits[token] * penalty;
  }
  for (int32_t i = batch.banned_starts[n]; i < batch.banned_starts[n + 1]; ++i)
    scores[batch.banned[i]] = -std::numeric_limits<float>::infinity();
}

int32_t choose(const SamplingBatch& batch, int64_t n, int64_t padded, Scratch& scratch) {
  float* weights = scratch.weights.data();
  const float temperature = batch.temperature[n];
  const Mass mass =
      weigh(scratch.scores.data(), padded, temperature > 0.0f ? 1.0f / temperature : 1.0f, weights);
  if (!mass.finite) return -1;
  if (temperature == 0.0f) {
    const auto best = std::find(scratch.scores.begin(), scratch.scores.end(), mass.top);
    return static_cast<int32_t>(best - scratch.scores.begin());
  }
  Cut cut;
  const int32_t top_k = batch.top_k[n];
  if (batch.top_p[n] < 1.0f || (top_k > 0 && top_k < batch.vocab))
    cut = find_cut(weights, batch.vocab, mass.total, top_k, batch.top_p[n], scratch);
  cut.floor = batch.min_p[n];
  const double total = apply_cut(weights, padded, cut, scratch.blocks.data());
  const double uniform =
      noise_uniform(batch.noise_keys[n], static_cast<uint64_t>(batch.positions[n]));
  return draw(weights, padded, scratch.blocks.data(), uniform * total);
}

void sample_row(const SamplingBatch& batch, int64_t n, Scratch& scratch, int32_t* tokens,
                float* logprobs) {
  const float* logits = batch.logits + batch.rows[n] * batch.vocab;
  const int64_t padded = (batch.vocab + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes);
  scratch.scores.assign(padded, -std::numeric_limits<float>::infinity());
  scratch.weights.resize(padded);
  scratch.blocks.resize(padded / (2 * kLanes));
  std::copy_n(logits, batch.vocab, scratch.scores.begin());
  const Mass raw = weigh(scratch.scores.data(), padded, 1.0f, scratch.weights.data());
  penalise(batch, n, scratch.scores, logits);
  const int32_t token = raw.finite ? choose(batch, n, padded, scratch) : -1;
  tokens[n] = std::max(token, 0);
  logprobs[n] = token < 0 ? std::numeric_limits<float>::quiet_NaN()
                          : static_cast<float>(static_cast<double>(logits[token]) - raw.top -
                                               std::log(raw.total));
}

}  // namespace

void sample(const SamplingBatch& batch, int32_t* tokens, float* logprobs) {
#pragma omp parallel if (batch.num_samples * batch.vocab > 16384)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 4)
    for (int64_t n = 0; n < batch.num_samples; ++n)
      sample_row(batch, n, scratch, tokens, logprobs);
  }
}

}  // namespace srlm
