// Large blocks of memory that are read from end to end: on huge pages where the system grants them,
// because a processor's prefetching stops at the end of a page.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace srlm {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <typename T>
using Block = std::unique_ptr<T[], Free>;

// Uninitialised, aligned to a cache line.
template <typename T>
Block<T> allocate(size_t count) {
  constexpr size_t kLine = 64, kHuge = size_t{1} << 21;
  const size_t align = count * sizeof(T) >= kHuge ? kHuge : kLine;
  const size_t bytes = (count * sizeof(T) + align) / align * align;
  void* memory = std::aligned_alloc(align, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (align == kHuge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return Block<T>(static_cast<T*>(memory));
}

}  // namespace srlm
