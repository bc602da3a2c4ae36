// Large blocks of memory that are read from end to end: on huge pages where the system grants them,
// because a processor's prefetching stops at the end of a page, and because scattered reads would
// spend more time on address translation than on the data.
#pragma once

#include <cstddef>
#include <cstdint>
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

constexpr size_t kHugePage = size_t{1} << 21;

// A request, for the whole huge pages within; memory that was touched before stays as it is.
inline void ask_for_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kHugePage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// Uninitialised, aligned to a cache line.
template <typename T>
Block<T> allocate(size_t count) {
  constexpr size_t kLine = 64;
  const size_t align = count * sizeof(T) >= kHugePage ? kHugePage : kLine;
  const size_t bytes = (count * sizeof(T) + align) / align * align;
  void* memory = std::aligned_alloc(align, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  ask_for_huge_pages(memory, bytes);
  return Block<T>(static_cast<T*>(memory));
}

}  // namespace srlm
