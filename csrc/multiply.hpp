// Products of matrices in 32-bit words, a float each or a pair of bfloat16 neighbours of the depth,
// at the instruction-set level in use.
#pragma once

#include "simd.hpp"

namespace srlm {

// Word rows [rows, depth] times words [depth, columns] in panels: see TileShape; a_step is 1.
using Multiply = void (*)(int rows, const TileShape& shape, const uint32_t* a, const uint32_t* b,
                          int64_t columns, float* c, bool accumulate);

// Of any rows; columns a multiple of 16. `most_rows`: those that it multiplies at once.
struct WordProduct {
  Multiply multiply;
  int most_rows;
};
WordProduct word_product(bool is_bf16);

// Tiles of AMX where there are any, for bfloat16: whole tiles alone, rows and words of the depth in
// multiples of 16. A thread stands between begin and end while it multiplies. Otherwise as above.
class TileProduct {
 public:
  explicit TileProduct(bool is_bf16);
  void begin() const;
  void end() const;
  void operator()(int64_t rows, const TileShape& shape, const uint32_t* a, const uint32_t* b,
                  int64_t columns, float* c, bool accumulate) const {
    multiply_(static_cast<int>(rows), shape, a, b, columns, c, accumulate);
  }

 private:
  Multiply multiply_;
  bool tiles_ = false;
};

}  // namespace srlm
