// A score pattern as a table over tokens; the packing is that of srlm_fast/kernels/judge_score.py.
#pragma once

#include <cstdint>

namespace srlm {

struct ScoreTableView {
  const int32_t* token_maps;  // [vocab] the map of each token
  int64_t vocab;
  const int32_t* maps;  // [M, states] state | outcome << 16 | flags
  int64_t states;
  const int32_t* ends;  // [2, states] outcome | flags, of an unfinished and of a finished row
  int32_t start, low;

  static constexpr int32_t kStateMask = 0xFFFF, kOutcomeMask = 0xFFF;
  static constexpr int kOutcomeShift = 16;
  // A line ends inside the token: one with a number in it, or any.
  static constexpr int32_t kNumberLine = 1 << 28, kAnyLine = 1 << 29;
  static constexpr int32_t kOpen = 1 << 12, kOver = 1 << 13;  // of an end

  // What a token does to a state; nothing where the id is none of the vocabulary.
  int32_t entry(int64_t id, int32_t state) const {
    return id < 0 || id >= vocab ? state : maps[token_maps[id] * states + state];
  }
};

}  // namespace srlm
