// Exact search for the most similar text. The F-measure of two texts of m and n ids is at most
// 2 B / (m + n), B the ids they have in common in any order; B is counted for all texts at once
// along an inverted index. To reach `least`, B must be at least a = least m / (2 - least), so the
// commonest ids of a text, as long as they are fewer than a, need not be looked up: a text that
// shares nothing else cannot reach it (prefix filtering, Chaudhuri et al. 2006). What is left is
// taken in the order of its bound until the best found is above the rest. The subsequence is
// bit-parallel (Hyyro 2004): an id costs one addition per 64 ids of the other text.
#include "rouge.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace srlm {
namespace {

constexpr double kSlack = 1e-9;  // a bound must not fall short by the rounding of its own formula

}  // namespace

void TextIndex::add(const int32_t* ids, int64_t length) {
  const int32_t text = static_cast<int32_t>(size());
  for (int64_t i = 0; i < length; ++i) {
    if (static_cast<size_t>(ids[i]) >= postings_.size()) postings_.resize(ids[i] + 1);
    std::vector<Posting>& texts = postings_[ids[i]];
    if (texts.empty() || texts.back().text != text) texts.push_back({text, 0});
    ++texts.back().times;
  }
  ids_.insert(ids_.end(), ids, ids + length);
  starts_.push_back(static_cast<int64_t>(ids_.size()));
}

// One thread's memory, used for one text after the other.
class TextIndex::Query {
 public:
  explicit Query(const TextIndex& index)
      : index_(index), place_(index.postings_.size(), -1), common_(index.size(), 0) {}

  double best(const int32_t* ids, int64_t length, double least, bool in_order) {
    read(ids, length);
    const int64_t skipped = count_common(least);
    rank(skipped, least);
    const double found = search(in_order);
    for (const Distinct& each : distinct_) place_[each.id] = -1;
    for (const int32_t text : touched_) common_[text] = 0;
    return found >= least ? found : 0.0;
  }

 private:
  struct Distinct {
    int32_t id, times;
  };

  double f_measure(int64_t common, int32_t text) const {
    const int64_t both = length_ + index_.starts_[text + 1] - index_.starts_[text];
    return 2.0 * static_cast<double>(common) / static_cast<double>(both);
  }

  // The distinct ids that the index has, and where each stands: masks of 64 places a word.
  void read(const int32_t* ids, int64_t length) {
    length_ = length;
    words_ = (length + 63) / 64;
    distinct_.clear();
    masks_.clear();
    for (int64_t i = 0; i < length; ++i) {
      if (ids[i] < 0 || static_cast<size_t>(ids[i]) >= place_.size()) continue;
      int32_t& place = place_[ids[i]];
      if (place < 0) {
        place = static_cast<int32_t>(distinct_.size());
        distinct_.push_back({ids[i], 0});
        masks_.resize(masks_.size() + words_, 0);
      }
      ++distinct_[place].times;
      masks_[place * words_ + i / 64] |= uint64_t(1) << (i % 64);
    }
  }

  // Counts what each text has in common with this one, without the commonest ids that alone cannot
  // reach `least`; returns how many of this text's ids those are.
  int64_t count_common(double least) {
    touched_.clear();
    const auto texts = [this](const Distinct& each) -> const std::vector<Posting>& {
      return index_.postings_[each.id];
    };
    std::sort(distinct_.begin(), distinct_.end(), [&](const Distinct& a, const Distinct& b) {
      return texts(a).size() > texts(b).size();
    });
    const double wanted = least * static_cast<double>(length_) / (2.0 - least) - kSlack;
    size_t first = 0;
    int64_t skipped = 0;
    while (first < distinct_.size() && skipped + distinct_[first].times < wanted)
      skipped += distinct_[first++].times;
    for (size_t i = first; i < distinct_.size(); ++i)
      for (const Posting& each : texts(distinct_[i])) {
        if (common_[each.text] == 0) touched_.push_back(each.text);
        common_[each.text] += std::min(each.times, distinct_[i].times);
      }
    return skipped;
  }

  // The texts whose bound reaches `least`, the highest bound on top of the heap.
  void rank(int64_t skipped, double least) {
    ranked_.clear();
    for (const int32_t text : touched_) {
      const int64_t length = index_.starts_[text + 1] - index_.starts_[text];
      const int64_t most = std::min({common_[text] + skipped, length_, length});
      const double bound = f_measure(most, text);
      if (bound >= least) ranked_.push_back({bound, text});
    }
    std::make_heap(ranked_.begin(), ranked_.end());
  }

  double search(bool in_order) {
    double found = 0.0;
    while (!ranked_.empty() && ranked_.front().first > found) {
      const int32_t text = ranked_.front().second;
      const int64_t common = in_order ? common_in_order(text) : common_in_any_order(text);
      found = std::max(found, f_measure(common, text));
      std::pop_heap(ranked_.begin(), ranked_.end());
      ranked_.pop_back();
    }
    return found;
  }

  // A zero bit of `row_` marks a step of the last row of the dynamic programme.
  int64_t common_in_order(int32_t text) {
    row_.assign(words_, ~uint64_t(0));
    for (int64_t i = index_.starts_[text]; i < index_.starts_[text + 1]; ++i) {
      const int32_t place = place_[index_.ids_[i]];
      if (place < 0) continue;
      const uint64_t* mask = &masks_[place * words_];
      uint64_t carry = 0;
      for (int64_t w = 0; w < words_; ++w) {
        const uint64_t old = row_[w], hit = old & mask[w];
        const uint64_t low = old + hit, sum = low + carry;
        carry = (low < old) | (sum < low);
        row_[w] = sum | (old & ~mask[w]);
      }
    }
    int64_t ones = 0;
    for (int64_t w = 0; w < words_; ++w) {
      const int64_t left = length_ - w * 64;
      const uint64_t used = left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
      ones += __builtin_popcountll(row_[w] & used);
    }
    return length_ - ones;
  }

  int64_t common_in_any_order(int32_t text) {
    int64_t common = 0;
    left_.assign(masks_.size(), 0);
    for (size_t i = 0; i < masks_.size(); ++i) left_[i / words_] += __builtin_popcountll(masks_[i]);
    for (int64_t i = index_.starts_[text]; i < index_.starts_[text + 1]; ++i) {
      const int32_t place = place_[index_.ids_[i]];
      if (place >= 0 && left_[place] > 0) --left_[place], ++common;
    }
    return common;
  }

  const TextIndex& index_;
  std::vector<int32_t> place_;   // of each id of the index: its masks, -1 where the text has it not
  std::vector<int64_t> common_;  // of each text of the index
  std::vector<Distinct> distinct_;
  std::vector<uint64_t> masks_, row_;
  std::vector<int32_t> left_, touched_;
  std::vector<std::pair<double, int32_t>> ranked_;
  int64_t length_ = 0, words_ = 0;
};

void TextIndex::best(const int32_t* ids, const int64_t* starts, int64_t count, double least,
                     bool in_order, double* found) const {
#pragma omp parallel if (count > 1)
  {
    Query query(*this);
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < count; ++i)
      found[i] = query.best(ids + starts[i], starts[i + 1] - starts[i], least, in_order);
  }
}

}  // namespace srlm
