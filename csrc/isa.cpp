#include "isa.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#if defined(SRLM_X86)
#include <cpuid.h>
#endif
#if defined(SRLM_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace srlm {
namespace {

const std::vector<std::string> kNames = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(SRLM_X86)
bool feature(unsigned subleaf, unsigned output, unsigned bit) {
  unsigned r[4] = {};
  if (!__get_cpuid_count(7, subleaf, &r[0], &r[1], &r[2], &r[3])) return false;
  return (r[output] >> bit & 1) != 0;
}

// Tile data is state that Linux saves only for a process that has asked for it.
bool tiles_allowed() {
#if defined(SRLM_AMX)
  constexpr long kRequest = 0x1023, kTileData = 18;
  return feature(0, 3, 24) && feature(0, 3, 22) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Isa highest() {
  __builtin_cpu_init();
  const auto has = [](bool first, bool second) { return first && second; };
  if (!has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"))) return Isa::kGeneric;
  if (!has(__builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512vl")) ||
      !has(__builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512cd")))
    return Isa::kAvx2;
  if (!feature(1, 0, 5)) return Isa::kAvx512;
  return tiles_allowed() ? Isa::kAmx : Isa::kAvx512Bf16;
}
#else
Isa highest() { return Isa::kGeneric; }
#endif

Isa machine_isa() {
  static const Isa found = highest();
  return found;
}

Isa level_of(const std::string& name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end())
    throw std::invalid_argument("SRLM_FAST_ISA: '" + name +
                                "', wanted generic, avx2, avx512, avx512_bf16 or amx");
  return std::min(static_cast<Isa>(found - kNames.begin()), machine_isa());
}

Isa& current() {
  static Isa level = [] {
    const char* asked = std::getenv("SRLM_FAST_ISA");
    return asked != nullptr && *asked != '\0' ? level_of(asked) : machine_isa();
  }();
  return level;
}

}  // namespace

Isa isa() { return current(); }

void set_isa(const std::string& name) { current() = level_of(name); }

std::string isa_name() { return kNames[static_cast<size_t>(isa())]; }

std::vector<std::string> isa_names() {
  return {kNames.begin(), kNames.begin() + static_cast<int>(machine_isa()) + 1};
}

}  // namespace srlm
