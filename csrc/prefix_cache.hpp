// Full pages by the tokens they hold and everything before them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "hash.hpp"

namespace srlm {

// A page's key chains the key of the page before it, and the first one the weights' version, so
// equal keys mean equal prefixes under equal weights. The page's own tokens are compared as well:
// a wrong hit would need two different pasts with one 64-bit key and the same last page.
class PrefixCache {
 public:
  PrefixCache(int32_t num_pages, int32_t page_tokens)
      : page_tokens_(page_tokens), tokens_(int64_t(num_pages) * page_tokens), keys_(num_pages),
        known_(num_pages, 0) {}

  static uint64_t root(int64_t version) { return mix64(static_cast<uint64_t>(version)); }
  uint64_t extend(uint64_t parent, const int32_t* tokens) const {
    return hash_tokens(parent, tokens, page_tokens_);
  }

  bool knows(int32_t page) const { return known_[page] != 0; }
  int64_t size() const { return static_cast<int64_t>(pages_.size()); }

  // The page that holds these tokens after this past, or -1.
  int32_t find(uint64_t key, const int32_t* tokens) const {
    const auto found = pages_.find(key);
    if (found == pages_.end()) return -1;
    const int32_t* held = &tokens_[int64_t(found->second) * page_tokens_];
    return std::equal(tokens, tokens + page_tokens_, held) ? found->second : -1;
  }

  // The first page with a key keeps it; a second one with the same content stays unknown.
  void insert(uint64_t key, const int32_t* tokens, int32_t page) {
    if (!pages_.emplace(key, page).second) return;
    std::copy(tokens, tokens + page_tokens_, &tokens_[int64_t(page) * page_tokens_]);
    keys_[page] = key;
    known_[page] = 1;
  }

  // Called when a page is about to be overwritten.
  void forget(int32_t page) {
    if (!known_[page]) return;
    pages_.erase(keys_[page]);
    known_[page] = 0;
  }

  void clear() {
    pages_.clear();
    std::fill(known_.begin(), known_.end(), 0);
  }

 private:
  int32_t page_tokens_;
  std::vector<int32_t> tokens_;
  std::vector<uint64_t> keys_;
  std::vector<uint8_t> known_;
  std::unordered_map<uint64_t, int32_t> pages_;
};

}  // namespace srlm
