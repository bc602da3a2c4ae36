// Texts to compare a new one with, by ROUGE F-measures: each a row of int32 ids (of words, or of
// word pairs), found again by the ids that they share.
#pragma once

#include <cstdint>
#include <vector>

namespace srlm {

class TextIndex {
 public:
  // Ids from 0, dense; their order counts.
  void add(const int32_t* ids, int64_t length);

  int64_t size() const { return static_cast<int64_t>(starts_.size()) - 1; }

  // For each text ids[starts[i]:starts[i + 1]] the largest F-measure 2 C / (both lengths) against a
  // text of the index, 0 where none reaches `least`. C: the longest common subsequence where
  // `in_order` (ROUGE-L), else the ids in common, each as often as both have it. Ids below 0 match
  // nothing. All threads take part.
  void best(const int32_t* ids, const int64_t* starts, int64_t count, double least, bool in_order,
            double* found) const;

 private:
  struct Posting {
    int32_t text, times;
  };
  class Query;

  std::vector<int32_t> ids_;
  std::vector<int64_t> starts_{0};
  std::vector<std::vector<Posting>> postings_;  // of each id: the texts that have it, and how often
};

}  // namespace srlm
