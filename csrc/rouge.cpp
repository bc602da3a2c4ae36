// ROUGE-L against a pool, by the bit-parallel longest common subsequence (Hyyro 2004): one word of
// the pool costs one addition per 64 words of the candidate.
#include <algorithm>
#include <unordered_map>
#include <vector>

#include "kernels.hpp"

namespace srlm {
namespace {

class Matcher {
 public:
  Matcher(const int32_t* candidate, int64_t length)
      : length_(length), words_((length + 63) / 64) {
    for (int64_t i = 0; i < length; ++i) {
      const auto found = index_.emplace(candidate[i], static_cast<int64_t>(index_.size())).first;
      if (static_cast<int64_t>(masks_.size()) < (found->second + 1) * words_)
        masks_.resize((found->second + 1) * words_, 0);
      masks_[found->second * words_ + i / 64] |= uint64_t(1) << (i % 64);
    }
  }

  // A zero bit of `row` marks a step of the last row of the dynamic programme.
  int64_t common(const int32_t* other, int64_t count, std::vector<uint64_t>& row) const {
    row.assign(words_, ~uint64_t(0));
    for (int64_t i = 0; i < count; ++i) {
      const auto found = index_.find(other[i]);
      if (found == index_.end()) continue;
      const uint64_t* mask = &masks_[found->second * words_];
      uint64_t carry = 0;
      for (int64_t w = 0; w < words_; ++w) {
        const uint64_t old = row[w], hit = old & mask[w];
        const uint64_t low = old + hit, sum = low + carry;
        carry = (low < old) | (sum < low);
        row[w] = sum | (old & ~mask[w]);
      }
    }
    int64_t ones = 0;
    for (int64_t w = 0; w < words_; ++w) {
      const int64_t left = length_ - w * 64;
      const uint64_t used = left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
      ones += __builtin_popcountll(row[w] & used);
    }
    return length_ - ones;
  }

 private:
  int64_t length_, words_;
  std::vector<uint64_t> masks_;
  std::unordered_map<int32_t, int64_t> index_;
};

}  // namespace

double rouge_l_max(const int32_t* candidate, int64_t length, const int32_t* pool,
                   const int64_t* starts, int64_t num_sequences) {
  if (length == 0) return 0.0;
  const Matcher matcher(candidate, length);
  double best = 0.0;
#pragma omp parallel if (num_sequences > 256)
  {
    std::vector<uint64_t> row;
    double mine = 0.0;
#pragma omp for schedule(static)
    for (int64_t s = 0; s < num_sequences; ++s) {
      const int64_t count = starts[s + 1] - starts[s];
      const double scale = 2.0 / static_cast<double>(length + count);
      if (scale * static_cast<double>(std::min(length, count)) <= mine) continue;
      const int64_t lcs = matcher.common(pool + starts[s], count, row);
      mine = std::max(mine, scale * static_cast<double>(lcs));
    }
#pragma omp critical
    best = std::max(best, mine);
  }
  return best;
}

}  // namespace srlm
