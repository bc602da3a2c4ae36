// Scores of judgements from their token ids: one look-up per token in the table of
// srlm_fast/kernels/judge_score.py, whose packing this follows.
#include "kernels.hpp"

#include <limits>

namespace srlm {
namespace {

constexpr int32_t kOk = 0, kMissing = 1, kOutOfRange = 2, kTruncated = 3;

template <typename Id>
void read_row(const Id* ids, int64_t length, const ScoreTableView& table, bool finished,
              float* score, int32_t* status) {
  int32_t state = table.start, outcome = 0;
  for (int64_t t = 0; t < length; ++t) {
    const int32_t entry = table.entry(ids[t], state);
    const int32_t brought = entry >> table.kOutcomeShift & table.kOutcomeMask;
    outcome = brought ? brought : outcome;
    state = entry & table.kStateMask;
  }
  const int32_t end = table.ends[finished * table.states + state];
  if (end & table.kOutcomeMask) outcome = end & table.kOutcomeMask;
  if (end & table.kOpen) *status = kTruncated;
  else if (outcome == 0) *status = end & table.kOver ? kMissing : kTruncated;
  else *status = outcome == 1 ? kOutOfRange : kOk;
  *score = *status == kOk ? static_cast<float>(outcome - 2 + table.low)
                          : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

template <typename Id>
void extract_scores(const Id* ids, int64_t stride, const int64_t* lengths, const bool* finished,
                    int64_t rows, const ScoreTableView& table, float* scores, int32_t* status) {
#pragma omp parallel for schedule(static) if (rows > 64)
  for (int64_t r = 0; r < rows; ++r)
    read_row(ids + r * stride, lengths[r], table, finished[r], scores + r, status + r);
}

template void extract_scores(const int64_t*, int64_t, const int64_t*, const bool*, int64_t,
                             const ScoreTableView&, float*, int32_t*);
template void extract_scores(const int32_t*, int64_t, const int64_t*, const bool*, int64_t,
                             const ScoreTableView&, float*, int32_t*);

}  // namespace srlm
