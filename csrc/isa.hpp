// The instruction-set levels that the matrix kernels are written for. The highest one this machine
// has is used; SRLM_FAST_ISA or `set_isa` hold it down, so that each can be tested anywhere.
#pragma once

#include <string>
#include <vector>

// Explicit copies of a kernel: GCC and Clang on x86-64. AMX needs a permission of Linux.
#if defined(__x86_64__) && defined(__GNUC__)
#define SRLM_X86 1
#define SRLM_AVX2 __attribute__((target("arch=x86-64-v3")))
#define SRLM_AVX512 __attribute__((target("arch=x86-64-v4")))
#if defined(__linux__)
#define SRLM_AMX __attribute__((target("arch=x86-64-v4,amx-tile,amx-bf16")))
#endif
#endif

namespace srlm {

enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

Isa isa();
// "generic", "avx2", "avx512", "avx512_bf16" or "amx"; throws std::invalid_argument for another
// name. A level that the machine lacks gives its highest.
void set_isa(const std::string& name);
std::string isa_name();
// The levels of this machine, lowest first.
std::vector<std::string> isa_names();

}  // namespace srlm
