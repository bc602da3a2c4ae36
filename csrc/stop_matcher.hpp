// Stop strings, matched on the bytes of the tokens as they are sampled.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace srlm {

// The bytes of every token of a vocabulary, built once per tokenizer.
struct TokenBytes {
  std::string bytes;
  std::vector<int64_t> starts;  // one more than there are tokens

  void append_to(std::string& text, int32_t token) const {
    if (token + 1 < static_cast<int64_t>(starts.size()))
      text.append(bytes, starts[token], starts[token + 1] - starts[token]);
  }
};

// Where the first of `stops` begins that ends in the bytes added to `text` since it was `before`
// long; -1 if none does.
inline int64_t find_stop(const std::vector<std::string>& stops, const std::string& text,
                         size_t before) {
  size_t first = std::string::npos;
  for (const std::string& stop : stops) {
    const size_t from = before + 1 > stop.size() ? before + 1 - stop.size() : 0;
    first = std::min(first, text.find(stop, from));
  }
  return first == std::string::npos ? -1 : static_cast<int64_t>(first);
}

}  // namespace srlm
