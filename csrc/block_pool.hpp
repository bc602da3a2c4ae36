// Reference-counted pages with a least-recently-used free list, every operation O(1).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace srlm {

// Pages with no owner stand in one doubly linked list through the arrays `next_` and `prev_`.
// The front is taken first: pages that hold nothing worth keeping go there, pages that the prefix
// cache still knows go to the back, so the oldest cached page is overwritten last.
class BlockPool {
 public:
  explicit BlockPool(int32_t num_pages)
      : refs_(num_pages, 0), next_(num_pages + 1), prev_(num_pages + 1), end_(num_pages) {
    for (int32_t i = 0; i <= num_pages; ++i) {
      next_[i] = i == num_pages ? 0 : i + 1;
      prev_[i] = i == 0 ? num_pages : i - 1;
    }
    num_free_ = num_pages;
  }

  int32_t num_pages() const { return end_; }
  int32_t num_free() const { return num_free_; }
  int32_t refs(int32_t page) const { return refs_[page]; }

  // The page at the front of the free list, now with one owner; the caller checks num_free().
  int32_t take() {
    if (num_free_ == 0) throw std::logic_error("BlockPool::take: no free page");
    const int32_t page = next_[end_];
    unlink(page);
    refs_[page] = 1;
    return page;
  }

  // One more owner; a free page that the prefix cache still knows comes back to life.
  void share(int32_t page) {
    if (refs_[page]++ == 0) unlink(page);
  }

  // One owner less; the last one puts the page on the free list.
  void release(int32_t page, bool cached) {
    if (refs_[page] <= 0) throw std::logic_error("BlockPool::release: page has no owner");
    if (--refs_[page] == 0) link(page, cached ? prev_[end_] : end_);
  }

 private:
  void unlink(int32_t page) {
    next_[prev_[page]] = next_[page];
    prev_[next_[page]] = prev_[page];
    --num_free_;
  }

  void link(int32_t page, int32_t after) {
    next_[page] = next_[after];
    prev_[page] = after;
    prev_[next_[after]] = page;
    next_[after] = page;
    ++num_free_;
  }

  std::vector<int32_t> refs_, next_, prev_;
  int32_t end_;  // the list's sentinel: next_[end_] is the front, prev_[end_] the back
  int32_t num_free_;
};

}  // namespace srlm
